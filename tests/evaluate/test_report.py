"""The page is self-contained, escapes what it is given, and says where its champion loses."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import polars as pl
import pytest
from fixtures.synthetic import make_spec

from stfm_pipeline.evaluate import report
from stfm_pipeline.evaluate.choose import Decision
from stfm_pipeline.evaluate.metrics import Row
from stfm_pipeline.evaluate.run import Evaluation
from stfm_pipeline.pictures import leaderboard_picture, learning_curve, markdown_image

FACTS = {
    "steps": 10, "entities": 1, "edges": 0, "start": "2024", "end": "2025", "step": "1h", "report": {},
    "masked": {"count": {}, "level": {}},
    "observed_share": {"count": 1.0, "level": 0.5}, "zero_share": {"count": 0.5, "level": 0.0},
}  # fmt: skip


def row(system: str, scale: str, channel: str | None, horizon: int | str, mae: float, rmse: float) -> Row:
    return Row("d", "forecasting", system, "test", scale, channel, horizon, rmse**2, mae, rmse, None, 0.5, 100, 10, 1)


@pytest.fixture
def evaluation() -> Evaluation:
    rows = []
    for system, level in (("stid", 1.0), ("constant", 2.0)):
        for channel in ("count", "level"):
            rows += [row(system, "data", channel, h, level, 2 * level) for h in ("avg", 1, 2)]
        rows.append(row(system, "standardised", None, "avg", level, level))
    return Evaluation(
        spec=make_spec(title="A <script>alert(1)</script> title"),
        rows=rows,
        ranking=[
            {"system": "stid", "val_score": 0.5, "branch": "primitive", "title": "STID"},
            {"system": "constant", "val_score": 1.0, "branch": "baseline", "title": "Constant"},
        ],
        candidate="stid",
        decision=Decision(True, "beats every rival"),
        margins=[
            {"rival": "constant", "channel": c, "split": "test", "margin": 0.5, "low": 0.4, "high": 0.6}
            for c in ("count", "level")
        ],
        coverage=[
            {"split": "test", "channel": "count", "group": "target is 0", "nominal": 0.8, "n": 0}
            | {"coverage": None, "mean_width": None}
        ],
        fallback=[{"system": s, "channel": c, "share": 0.1} for s in ("stid", "constant") for c in ("count", "level")],
        cost=[{"system": "stid", "seconds": 1.0, "peak_mb": 2.0, "trainable": 3, "epochs": 4, "seeds": 1}],
        hours={s: [[1.0, None]] * 24 for s in ("stid", "constant")},
        entities=[
            {"entity": "x", "baseline": "constant"}
            | {"mae": {"count": 1.0, "level": None}, "baseline_mae": {"count": 2.0, "level": None}}
        ],
        examples=[
            {"entity": "x", "channel": "count", "ds": ["2024-01-01", "2024-01-02"], "history": [1.0]}
            | {"truth": [None], "forecast": [2.0], "low": [1.0], "high": [3.0]}
        ],
        without_side=[],
        warning=None,
        lineage={"raw": "abc123"},
        parts={p: ["2024-01-01T00", "2024-02-01T00"] for p in ("train", "val", "gate", "test")},
    )  # fmt: skip


def page(evaluation: Evaluation, lon: float | None = 8.0) -> str:
    entities = pl.DataFrame({"entity": ["x"], "lon": [lon], "lat": [lon], "zone": ["UTC"], "text": ["X."]})
    edges = pl.DataFrame(schema={"source": pl.String, "target": pl.String, "weight": pl.Float64})
    html = report.render(evaluation, entities, edges, FACTS)
    return re.sub(r"<script>/\*\*.*?</script>", "", html, count=1, flags=re.S)


def test_everything_given_is_escaped_and_nothing_is_loaded_from_outside(evaluation: Evaluation) -> None:
    html = page(evaluation)
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html

    class Links(HTMLParser):
        found: list[tuple[str, str]]

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.found += [(tag, str(v)) for k, v in attrs if k in ("src", "href")]

    links = Links()
    links.found = []
    links.feed(html)
    assert links.found == [("a", "https://example.org")]


def test_it_says_where_the_champion_loses_and_when_it_does_not(evaluation: Evaluation) -> None:
    assert "stid loses to no baseline" in page(evaluation)
    worse = [
        dataclasses.replace(r, rmse=9.0) if (r.system, r.channel, r.scale) == ("stid", "level", "data") else r
        for r in evaluation.rows
    ]
    text = page(dataclasses.replace(evaluation, rows=worse))
    assert "it loses on RMSE of level against constant (9 to 4)" in text
    assert "loses to no baseline" not in text


def test_sections_come_in_order_and_what_is_missing_is_a_dash_or_said(evaluation: Evaluation) -> None:
    html = page(evaluation, lon=None)
    order = [
        html.index(f'id="{i}"')
        for i in ("choice", "leaderboard", "horizon", "hour", "entity", "calibration", "lineage")
    ]
    assert order == sorted(order)
    assert "No coordinates, so no map." in html
    assert f"<td>{report.DASH}</td>" in html
    assert "Not a ranking" not in html
    assert "Not a ranking" in page(dataclasses.replace(evaluation, warning="too short"))
    refused = dataclasses.replace(evaluation, decision=Decision(False, "not better"))
    assert "is refused and stays challenger" in page(refused)


def test_a_page_is_put_in_place_whole(tmp_path: object, evaluation: Evaluation) -> None:
    from pathlib import Path

    path = report.write("<html>", Path(str(tmp_path)) / "a" / "b.html")
    assert path.read_text() == "<html>"
    assert [p.name for p in path.parent.iterdir()] == ["b.html"]


def test_pictures_are_small_pngs(evaluation: Evaluation) -> None:
    board = pl.DataFrame([{**vars(r), "horizon": str(r.horizon)} for r in evaluation.rows], infer_schema_length=None)
    curve = [{"epoch": 0.0, "train_loss": 1.0, "val_loss": 2.0}, {"epoch": 1.0, "train_loss": 0.5, "val_loss": 1.0}]
    for png in (leaderboard_picture(board, "stid"), learning_curve(curve)):
        assert png.startswith(b"\x89PNG")
        assert len(png) < 60_000
        assert markdown_image(png, "a picture").startswith("![a picture](data:image/png;base64,")
