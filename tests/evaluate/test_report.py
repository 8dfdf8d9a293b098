"""The page is self-contained, escapes what it is given, and says where its champion loses."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fixtures.synthetic import make_spec

from stfm_pipeline.evaluate import report
from stfm_pipeline.evaluate.choose import Decision
from stfm_pipeline.evaluate.metrics import Row
from stfm_pipeline.evaluate.run import Evaluation

CHANNELS = ("count", "level")
SYSTEMS = ("stid", "constant")
SECTIONS = (
    *("headline", "choice", "leaderboard", "horizon", "hour", "entity", "examples"),
    *("calibration", "side", "cost", "data", "lineage", "notes"),
)
EVIL = "<script>alert(1)</script>"
FACTS = {
    "steps": 10_000, "entities": 2, "edges": 1, "start": "2024-01-01T00:00:00", "end": "2025-01-01T00:00:00",
    "step": "1h", "report": {"rows": 12, "rows_out_of_order": 0}, "masked": {"count": {"values": 9, "outliers": 3}},
    "observed_share": {"count": 1.0, "level": None}, "zero_share": {"count": 0.5, "level": float("nan")},
}  # fmt: skip


class Page(HTMLParser):
    """Ids in order, links, figures, and the text outside of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[tuple[str, str]] = []
        self.figures: list[dict[str, Any]] = []
        self.text, self.open = "", [""]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [str(v) for k, v in attrs if k == "id"]
        self.links += [(tag, str(v)) for k, v in attrs if k in ("src", "href")]
        self.open.append("figure" if found.get("type") == "application/json" else tag)

    def handle_endtag(self, tag: str) -> None:
        self.open.append("")

    def handle_data(self, data: str) -> None:
        if self.open[-1] == "figure":
            self.figures.append(json.loads(data))
        elif self.open[-1] not in ("script", "style"):
            self.text += data


def row(system: str, scale: str, channel: str | None, horizon: int | str, mae: float, rmse: float) -> Row:
    return Row("d", "forecasting", system, "test", scale, channel, horizon, rmse**2, mae, rmse, None, 0.5, 100, 10, 1)


@pytest.fixture
def evaluation() -> Evaluation:
    rows = []
    for system, level in zip(SYSTEMS, (1.0, 2.0), strict=True):
        for channel in CHANNELS:
            rows += [row(system, "data", channel, h, level, 2 * level) for h in ("avg", 1, 2, 3, 4)]
        rows.append(row(system, "standardised", None, "avg", level, level))
    example = {"entity": "x", "channel": "count", "ds": ["2024-01-01", "2024-01-02"], "history": [1.0]}
    margin = {"rival": "constant", "margin": 0.5, "low": 0.4, "high": 0.6}
    return Evaluation(
        spec=make_spec(title=f"A {EVIL} title"),
        rows=rows,
        ranking=[
            {"system": "stid", "val_score": 0.5, "branch": "primitive", "title": "STID"},
            {"system": "constant", "val_score": 1.0, "branch": "baseline", "title": "Constant"},
        ],
        candidate="stid",
        decision=Decision(True, "beats every rival", [margin]),
        margins=[{**margin, "channel": c, "split": "test"} for c in CHANNELS],
        coverage=[
            {"split": "test", "channel": "count", "group": "target is 0", "nominal": 0.8, "n": 0}
            | {"coverage": None, "mean_width": None}
        ],
        fallback=[{"system": s, "channel": c, "share": 0.1} for s in SYSTEMS for c in CHANNELS],
        cost=[{"system": "stid", "seconds": 1.0, "peak_mb": 2.0, "trainable": 12345, "epochs": 4, "seeds": 1}],
        hours={s: [[1.0, None]] * 24 for s in SYSTEMS},
        entities=[
            {"entity": name, "baseline": "constant"}
            | {"mae": {"count": 1.0, "level": None}, "baseline_mae": {"count": 2.0, "level": float("nan")}}
            for name in ("x", EVIL)
        ],
        examples=[{**example, "truth": [None], "forecast": [2.0], "low": [1.0], "high": [3.0]}],
        without_side=[{"channel": "count", "with": 1.0, "without": 1.25}],
        warning=None,
        lineage={"sources": [{"sha256": "abc123"}], "seed": 0},
        parts={p: [f"2024-0{i}-01T00", f"2024-0{i}-28T23"] for i, p in enumerate(("train", "val", "gate", "test"), 1)},
        notes=["Met no champion."],
    )


def render(evaluation: Evaluation, lon: float | None = 8.0, version: str | None = None) -> str:
    places = {"entity": ["x", EVIL], "lon": [lon, lon], "lat": [lon, 9.0], "zone": ["UTC"] * 2, "text": ["X."] * 2}
    entities = pl.DataFrame(places, schema_overrides={"lon": pl.Float64, "lat": pl.Float64})
    edges = pl.DataFrame({"source": ["x"], "target": [EVIL], "weight": [1.0]})
    return report.render(evaluation, entities, edges, FACTS, version)


def page(evaluation: Evaluation, lon: float | None = 8.0, version: str | None = None) -> Page:
    # Plotly itself is taken out: it is large, and not ours to judge.
    return Page(re.sub(r"<script>/\*\*.*?</script>", "", render(evaluation, lon, version), count=1, flags=re.S))


def with_row(e: Evaluation, system: str, channel: str, **changes: float) -> Evaluation:
    hit = (system, channel, "data")
    rows = [dataclasses.replace(r, **changes) if (r.system, r.channel, r.scale) == hit else r for r in e.rows]  # type: ignore[arg-type]
    return dataclasses.replace(e, rows=rows)


def test_everything_given_is_escaped_and_nothing_is_loaded_from_outside(evaluation: Evaluation) -> None:
    html = render(evaluation)
    assert EVIL not in html
    assert "&lt;script&gt;alert" in html
    assert "default-src 'none'" in html
    assert page(evaluation).links == [("a", "https://example.org")]
    shady = dataclasses.replace(evaluation, spec=make_spec(homepage="javascript:alert(1)"))
    assert page(shady).links == []


def test_names_in_figures_are_text_and_not_markup(evaluation: Evaluation) -> None:
    texts = json.dumps(page(evaluation).figures)
    assert "&lt;script&gt;" in texts
    assert "<script>" not in texts


def test_it_says_where_the_champion_loses_and_when_it_does_not(evaluation: Evaluation) -> None:
    assert "stid loses to no baseline on MAE or RMSE" in page(evaluation).text
    worse = page(with_row(evaluation, "stid", "level", rmse=9.0)).text
    assert "stid loses to a baseline on test" in worse
    assert "level, against constant (RMSE 9.000 to 4.000)" in worse
    assert "loses to no baseline" not in worse
    assert report.losses(with_row(evaluation, "stid", "level", rmse=4.0)) == []


def test_sections_come_in_order_and_say_which_numbers_chose(evaluation: Evaluation) -> None:
    found = page(evaluation, version="7")
    assert found.ids == list(SECTIONS)
    assert "stid, version 7, is promoted to champion:" in found.text
    for part, dates in evaluation.parts.items():
        assert f"{part.title()} ({dates[0].replace('T', ' ')} to" in found.text
    assert "+50.0% (+40.0% to +60.0%)" in found.text
    assert "12,345" in found.text
    assert "+25.0%" in found.text
    assert "masked: outliers" in found.text
    assert "└─ seed  0" in found.text
    refused = dataclasses.replace(evaluation, decision=Decision(False, "not better"), warning="too short", notes=[])
    text = page(refused).text
    assert "stid is refused and stays challenger: not better" in text
    assert "Not a ranking: too short" in text
    assert "Not a ranking" not in found.text


def test_one_figure_per_channel_and_kind_each_a_valid_plotly_figure(evaluation: Evaluation) -> None:
    import plotly.graph_objects as go

    figures = page(evaluation).figures
    assert len(figures) == 3 * len(CHANNELS) + 1
    for figure in figures:
        go.Figure(figure)
    colours = {
        (t["name"], t["line"]["color"], t["line"]["dash"])
        for f in figures[: 2 * len(CHANNELS)]
        for t in f["data"]
    }  # fmt: skip
    assert len(colours) == len(SYSTEMS)
    assert [t["name"] for t in figures[-1]["data"][1:]] == ["interval", "history", "truth", "forecast"]


def test_without_coordinates_hours_intervals_and_values_the_page_says_so(evaluation: Evaluation) -> None:
    bare = dataclasses.replace(
        evaluation,
        entities=evaluation.entities[:1],
        hours={s: [[1.0, 2.0]] for s in SYSTEMS},
        coverage=[],
        without_side=[],
        lineage={},
    )
    found = page(bare, lon=None)
    assert len(found.figures) == len(CHANNELS) + 1
    for said in ("No coordinates, so no map.", "no profile over the day", "gives no intervals", "no side information"):
        assert said in found.text
    assert "none recorded" in found.text
    assert f"<td>{report.DASH}</td>" in render(bare, lon=None)
    assert not re.search(r"\b(nan|None)\b", found.text)


def test_many_entities_are_cut_to_the_best_and_the_worst(evaluation: Evaluation) -> None:
    many = [
        {"entity": f"place {i:02d}", "baseline": "constant", "mae": dict.fromkeys(CHANNELS, float(i))}
        | {"baseline_mae": dict.fromkeys(CHANNELS, 20.0)}
        for i in range(40)
    ]
    text = page(dataclasses.replace(evaluation, entities=many)).text
    assert "place 09" in text
    assert "place 10" not in text
    assert "place 30" in text
    assert "It is better at 20 of 40 entities on count" in text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.24254, 1.5, None], ["0.2425", "1.5000", report.DASH]),
        ([12345.6, float("nan")], ["12,346", report.DASH]),
        ([0.0, 0.0], ["0", "0"]),
        ([], []),
    ],
)
def test_a_column_of_numbers_shares_its_decimals(values: list[float | None], expected: list[str]) -> None:
    assert report.numbers(values) == expected


def test_a_page_is_put_in_place_whole(tmp_path: Path) -> None:
    path = report.write("<html>", tmp_path / "a" / "b.html")
    assert path.read_text() == "<html>"
    assert [p.name for p in path.parent.iterdir()] == ["b.html"]


def test_the_picture_is_a_small_png(evaluation: Evaluation) -> None:
    png = report.picture(evaluation)
    assert png.startswith(b"\x89PNG")
    assert len(png) < 60_000
