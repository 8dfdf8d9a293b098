"""Every number on a dataset's page is counted again here, by other means, from the raw tables or with SQL."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from collections.abc import Callable
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import NAMES, make_spec, tables
from numpy.typing import NDArray
from typer.testing import CliRunner

from stfm_pipeline.cli import app
from stfm_pipeline.datasets.spec import Channel, Dataset, Embed, Facts, Tokens
from stfm_pipeline.embed.strength import strengths
from stfm_pipeline.lake import Lake
from stfm_pipeline.pages.dataset import Page, dataset_page
from stfm_pipeline.pages.dataset import values as values_module
from stfm_pipeline.pages.dataset.loaded import stride
from stfm_pipeline.pages.dataset.seasons import outstanding
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS
from stfm_pipeline.tables import dense_observations
from stfm_pipeline.windows import load_panel

HOURS, TRAIN = 1440, 864
EVIL = "<script>alert(1)</script>"
Build = Callable[..., tuple[Dataset, Lake]]


class Read(HTMLParser):
    """Tables as rows of text under the id or heading before them, figures by caption, links, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.figures: dict[str, dict[str, Any]] = {}
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self._open: list[str] = []
        self._heading, self._caption = "", ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {k: v or "" for k, v in attrs}
        self.tags.add(tag)
        self.links += [found[k] for k in ("src", "href") if k in found]
        if tag not in ("meta", "img", "br", "link"):
            self._open.append(tag)
        if tag in ("h2", "h3"):
            self._heading = ""
        elif tag == "table":
            self.tables[self._heading] = []
        elif tag == "tr":
            self.tables[self._heading].append([])
        elif tag in ("th", "td"):
            self.tables[self._heading][-1].append("")
        elif tag == "figcaption":
            self._caption = ""
        elif "aria-label" in found and found.get("role") == "img":
            self.figures[self._caption] = {"alt": found["aria-label"], "style": found["style"], "marks": [], "y": []}
        elif tag == "path" and "class" in found and self.figures:
            self.figures[self._caption]["marks"].append((found["class"], found["d"]))
        elif tag == "img":
            self.figures[self._caption]["image"] = found["src"]
        elif tag == "g":
            self.figures[self._caption]["marks"].append((found["style"], ""))
        elif tag == "path" and "class" not in found:
            kind, _ = self.figures[self._caption]["marks"][-1]
            self.figures[self._caption]["marks"].append((kind, found["d"]))
        elif tag == "span" and found.get("class") == "y":
            self.figures[self._caption]["y"].append([float(found["style"][4:-1]), ""])

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        inside = set(self._open)
        if not inside & {"style", "title"}:
            self.text += data
        if inside & {"th", "td"}:
            self.tables[self._heading][-1][-1] += data
        elif inside & {"h2", "h3"}:
            self._heading += data
        elif "figcaption" in inside:
            self._caption += data
        elif "figure" in inside and self._open[-1] == "span" and self.figures and self.figures[self._caption]["y"]:
            last = self.figures[self._caption]["y"][-1]
            last[1] = last[1] or data


@pytest.fixture
def build(add_dataset: Callable[[Dataset], Dataset], lake: Lake, settings: Settings) -> Build:
    """A dataset of some raw tables, published as far as `until`."""

    def go(raw: dict[str, pl.DataFrame], until: str | None = "enriched", **changes: Any) -> tuple[Dataset, Lake]:
        fields = {"joins": (), "facts": Facts(), **changes}
        made = add_dataset(Dataset(spec=make_spec("small", **fields), read=lambda files: raw, module="stfm_pipeline"))
        for stage in STEPS if until else ():
            outcome = materialize("small", stage, lake, settings)
            assert outcome.stage is not None, outcome.checks
            if stage == until:
                break
        return made, lake

    return go


def show(made: Dataset, lake: Lake) -> tuple[Page, Read]:
    page = dataset_page(made.spec, lake)
    json.dumps(page.numbers, allow_nan=False)
    return page, Read(page.html)


def long(lake: Lake, name: str = "synthetic") -> pl.DataFrame:
    found = lake.connect().sql(f"select * from {name}.harmonized order by time, entity").pl()
    return found.with_columns(pl.col("time").dt.convert_time_zone("UTC"))


def dense(lake: Lake, channel: str, name: str = "synthetic") -> NDArray[np.float64]:
    """(t, n) with NaN where unobserved, through SQL."""
    rows = long(lake, name)
    return rows[channel].fill_null(np.nan).to_numpy().astype(float).reshape(-1, rows["entity"].n_unique())


def observations(columns: dict[str, NDArray[Any]], names: tuple[str, ...] = ("p", "q")) -> pl.DataFrame:
    """Hourly long rows from arrays (t, n)."""
    t, n = next(iter(columns.values())).shape
    hours = np.datetime64("2023-01-02", "us") + np.arange(t) * np.timedelta64(1, "h")
    return pl.DataFrame(
        {
            "entity": np.tile(np.array(names), t),
            "time": pl.Series(np.repeat(hours, n)).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
            **{k: v.astype(float).ravel() for k, v in columns.items()},
        }
    )


def channels(*names: str, **fields: Any) -> tuple[Channel, ...]:
    return tuple(Channel(name=n, unit="u", **fields) for n in names)


def test_tiles_shares_and_split_are_those_of_the_tables(enriched: Lake, synthetic: Dataset, tmp_path: Path) -> None:
    page, read = show(synthetic, enriched)
    level = np.isfinite(dense(enriched, "level"))
    assert level.shape == (HOURS, 6)
    tiles = re.sub(r"\s+", " ", read.text)
    assert "entities66 edges in train" in tiles
    assert "steps1,440" in tiles
    assert f"observed{(1 + level.mean()) / 2:.1%}" in tiles
    header, count, row = read.tables["Missing share"]
    assert header[:6] == ["channel", "all", "train", "val", "gate", "test"]
    assert count == ["count", *["0.0%"] * 5, "6", "0"]
    ends = [0, 864, 1008, 1152, 1440]
    expected = [1 - level.mean(), *(1 - level[a:b].mean() for a, b in itertools.pairwise(ends))]
    assert row == ["level", *(f"{v:.1%}" for v in expected), "0", "0"]
    assert [page.numbers["missing"][1][k] for k in ("all", "train", "val", "gate", "test")] == pytest.approx(expected)
    panel = load_panel(enriched, "synthetic", tmp_path)
    windows = {p: len(panel.origins(p)) for p in ("train", "val", "gate", "test")}
    rows = {r["part"]: r for r in page.numbers["split"]}
    assert {p: r["windows"] for p, r in rows.items()} == windows
    assert [r["steps"] for r in rows.values()] == list(np.diff(ends))
    assert windows["train"] == TRAIN - 48 - 12 + 1
    assert read.tables["Split"][1] == ["train", "2023-02-20 00:00", "2023-03-28 00:00", "864", "805"]


def test_gaps_are_the_longest_runs_without_a_value(enriched: Lake, synthetic: Dataset) -> None:
    page, read = show(synthetic, enriched)
    level = np.isnan(dense(enriched, "level"))
    expected = []
    for i, name in enumerate(NAMES):
        runs = re.finditer("1+", "".join("1" if m else "0" for m in level[:, i]))
        longest = max(runs, key=lambda m: len(m[0]))
        expected.append((len(longest[0]), name, longest.start(), level[:, i].mean()))
    expected.sort(key=lambda e: -e[0])
    found = page.numbers["gaps"]
    assert [g["steps"] for g in found] == [e[0] for e in expected]
    assert {(g["entity"], g["steps"]) for g in found} == {(e[1], e[0]) for e in expected}
    start = np.datetime64("2023-02-20", "us")
    by = {g["entity"]: g for g in found}
    for steps, name, at, share in expected:
        assert by[name]["start"] == str(start + at * np.timedelta64(1, "h"))
        assert by[name]["end"] == str(start + (at + steps) * np.timedelta64(1, "h"))
        assert by[name]["missing"] == pytest.approx(share)
    first = read.tables["Longest gaps, one per series"][1]
    assert first[:2] == [found[0]["entity"], "level"]
    assert first[4] == f"{found[0]['steps']} h"
    assert page.numbers["silent"] is None


def test_the_strip_shows_the_share_observed_of_each_block(enriched: Lake, synthetic: Dataset) -> None:
    from PIL import Image

    _, read = show(synthetic, enriched)
    assert not [c for c in read.figures if c.startswith("count:") and c.endswith("observed")], (
        "a channel that misses nothing needs no strip"
    )
    level = np.isfinite(dense(enriched, "level"))
    figure = read.figures[f"level: {level.mean():.1%} observed"]
    png = base64.b64decode(figure["image"].removeprefix("data:image/png;base64,"))
    alpha = np.asarray(Image.open(io.BytesIO(png)))[..., 3].astype(float)
    columns = 250
    assert alpha.shape == (6, columns)
    borders = [i * HOURS // columns for i in range(columns)] + [HOURS]
    blocks = np.array([level[a:b].mean(axis=0) for a, b in itertools.pairwise(borders)]).T
    expected = np.where(blocks > 0, 40 + 215 * blocks, 0)
    assert np.abs(alpha - expected).max() <= 0.5


def test_quantiles_before_and_after_are_those_of_all_values(enriched: Lake, synthetic: Dataset) -> None:
    page, read = show(synthetic, enriched)
    raw = tables()["observations"]
    for k, name in enumerate(("count", "level")):
        entry = page.numbers["values"][k]
        rows = {r["stage"]: r for r in entry["rows"]}
        before = raw[name].drop_nulls().to_numpy()
        after = dense(enriched, name)
        fit = after[:TRAIN]
        scaled = (after - np.nanmean(fit)) / np.nanstd(fit)
        for stage, values in (("raw", before), ("harmonized", after), ("standardised", scaled)):
            known = values[np.isfinite(values)]
            assert rows[stage]["count"] == len(known)
            wanted = np.quantile(known, [0, 0.01, 0.25, 0.5, 0.75, 0.99, 1])
            assert rows[stage]["quantiles"] == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    shown = read.tables["count, events per hour"]
    assert shown[1][:3] == ["raw", f"{len(raw):,}", "0"]
    assert shown[2] == ["harmonized", "8,640", *(f"{v:.0f}" for v in page.numbers["values"][0]["rows"][1]["quantiles"])]


def test_extremes_and_counts_stay_exact_where_values_are_sampled(
    enriched: Lake, synthetic: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = show(synthetic, enriched)[0].numbers["values"]
    monkeypatch.setattr(values_module, "SAMPLE", 2000)
    sampled = show(synthetic, enriched)[0].numbers["values"]
    for a, b in zip(whole, sampled, strict=True):
        for x, y in zip(a["rows"], b["rows"], strict=True):
            assert x["count"] == y["count"]
            assert [x["quantiles"][i] for i in (0, -1)] == [y["quantiles"][i] for i in (0, -1)]
            assert x["quantiles"] != y["quantiles"] or a["channel"] == "count"
            spread = x["quantiles"][4] - x["quantiles"][2]
            assert abs(x["quantiles"][3] - y["quantiles"][3]) <= 0.15 * spread + 1


@pytest.mark.parametrize(("cells", "most", "repeats"), [(10, 20, (24, 168)), (75_336_000, 1_000_000, (24, 168, 8600))])
def test_a_sample_beats_with_no_season(cells: int, most: int, repeats: tuple[int, ...]) -> None:
    step = stride(cells, most, *repeats)
    assert cells / step <= most
    for period in repeats:
        assert len({i * step % period for i in range(period)}) == period
    assert stride(10, 20, *repeats) == 1


def test_histogram_heights_are_shares_on_the_axis_drawn(build: Build) -> None:
    values = np.repeat([0.0, 1.0, 2.0, 3.0], [40, 30, 20, 10])
    rng = np.random.default_rng(0)
    block = np.stack([rng.permutation(np.tile(values, 5)) for _ in range(2)], axis=1)
    made, lake = build({"observations": observations({"x": block})}, channels=channels("x"))
    _, read = show(made, lake)
    figure = read.figures["x"]
    (a, low), (b, high) = [(top, float(text)) for top, text in (figure["y"][0], figure["y"][-1])]
    for kind in ("area t0", "line t4"):
        path = next(d for c, d in figure["marks"] if c == kind)
        tops = [float(p.split()[1]) / 10 for p in path[1:].split("L")][1:-1:2]
        assert [low + (t - a) / (b - a) * (high - low) for t in tops[:4]] == pytest.approx(
            [0.4, 0.3, 0.2, 0.1], abs=1e-3
        )
    assert figure["alt"] == "Histogram of x in u: raw from 0 to 3, median 1; harmonized from 0 to 3, median 1."


def test_strength_is_that_of_each_entity_by_its_own_civil_day(enriched: Lake, synthetic: Dataset) -> None:
    page, read = show(synthetic, enriched)
    times = long(lake=enriched).filter(entity="a")["time"].to_list()[:TRAIN]
    zones = ["America/New_York"] * 3 + ["Europe/Zurich"] * 3
    for k, channel in enumerate(("count", "level")):
        values = dense(enriched, channel)[:TRAIN]
        each = []
        for i, zone in enumerate(zones):
            hour = np.array([t.astimezone(ZoneInfo(zone)).hour for t in times])
            x = values[:, i, None, None]
            each.append(strengths(np.nan_to_num(x), np.isfinite(x), 24, hour)[0][0, 0])
        row = page.numbers["seasons"][k]
        assert (row["channel"], row["season"], row["series"]) == (channel, "day", 6)
        assert row["strength"] == pytest.approx(np.quantile(each, [0.25, 0.5, 0.75]), abs=1e-6)
        shown = read.tables["Seasonal strength"][1 + k]
        assert shown[1] == "day, civil time"
        assert shown[2].startswith(f"{np.median(each):.2f} ({np.quantile(each, 0.25):.2f} to")


def test_the_mean_day_peaks_where_sql_says(enriched: Lake, synthetic: Dataset) -> None:
    _, read = show(synthetic, enriched)
    zone = tables()["entities"].select("entity", "zone")
    rows = long(enriched).filter(pl.col("time") < datetime(2023, 3, 28, tzinfo=ZoneInfo("UTC"))).join(zone, on="entity")
    hour = pl.when(zone="Europe/Zurich").then(pl.col("time").dt.convert_time_zone("Europe/Zurich").dt.hour())
    hour = hour.otherwise(pl.col("time").dt.convert_time_zone("America/New_York").dt.hour())
    mean = rows.group_by(hour.alias("hour")).agg(pl.col("level").mean()).sort("level")
    alt = read.figures["level: mean day"]["alt"]
    assert f"highest at {mean['hour'][-1]:02d}:00" in alt
    assert f"from {mean['level'][0]:.1f} to {mean['level'][-1]:.1f}" in alt


def test_the_day_stands_out_with_its_share_of_the_variance(enriched: Lake, synthetic: Dataset) -> None:
    page, read = show(synthetic, enriched)
    x = dense(enriched, "count")[:TRAIN]
    x = x - x.mean(axis=0)
    wave = np.exp(-2j * np.pi * np.arange(TRAIN) / 24)
    # Parseval: the powers of all positive frequencies are half of t times the sum of squares, the last one's whole.
    last = np.abs((x * (-1.0) ** np.arange(TRAIN)[:, None]).sum(axis=0)) ** 2
    share = np.abs(wave @ x) ** 2 / ((TRAIN * (x**2).sum(axis=0) + last) / 2)
    entry = page.numbers["spectrum"][0]
    assert (entry["series"], entry["left_out"]) == (6, 0)
    assert [p["steps"] for p in entry["peaks"]] == [24.0]
    assert entry["peaks"][0]["share"] == pytest.approx(share.mean())
    assert f"count, 6 series: standing out: 1 d ({share.mean():.1%})." in read.text


def test_noise_has_no_period_that_stands_out_and_a_weak_wave_has() -> None:
    rng = np.random.default_rng(0)
    t = 2000

    def power(x: NDArray[np.float64]) -> NDArray[np.float64]:
        p = np.abs(np.fft.rfft(x - x.mean())[1:]) ** 2
        return np.asarray(p / p.sum())

    white = rng.normal(size=(60, t))
    red = np.zeros_like(white)
    for i in range(1, t):
        red[:, i] = 0.9 * red[:, i - 1] + white[:, i]
    assert sum(bool(outstanding(power(x))) for x in white) <= 8
    assert sum(bool(outstanding(power(x))) for x in red) <= 8
    wave = 0.4 * np.sin(np.arange(t) * 2 * np.pi / 20)
    assert np.mean([99 in outstanding(power(x + wave)) for x in white[:20]]) > 0.9
    assert outstanding(np.zeros(0)) == []
    assert outstanding(np.zeros(50)) == []


def test_the_map_is_to_scale_and_shows_patches_and_pairs(enriched: Lake, synthetic: Dataset) -> None:
    _, read = show(synthetic, enriched)
    places = enriched.read(enriched.require("synthetic", "embedded"), "spatial")
    patches = dict(places.group_by("patch").agg(pl.col("entity").sort()).iter_rows())
    figure = read.figures[f"Map: 6 entities in {len(patches)} patches, 6 linked pairs"]
    table = read.tables["Map and patches"][1:]
    assert {int(r[0]): (int(r[1]), sorted(r[2].split(", "))) for r in table} == {
        p: (len(e), e) for p, e in patches.items()
    }
    dots = np.array([[float(v) for v in d[1:-2].split()] for c, d in figure["marks"] if "--h" in c and d])
    order = [e for p in sorted(patches) for e in patches[p]]
    where = {r["entity"]: (r["lon"], r["lat"]) for r in tables()["entities"].to_dicts()}
    lon, lat = np.array([where[e] for e in order]).T
    aspect = float(figure["style"].split(";")[0].removeprefix("aspect-ratio:"))
    east, north = dots[:, 0] * aspect, -dots[:, 1]
    per_degree = np.ptp(east) / np.ptp(lon), np.ptp(north) / np.ptp(lat)
    assert per_degree[0] / per_degree[1] == pytest.approx(np.cos(np.deg2rad((lat.min() + lat.max()) / 2)), rel=0.01)
    assert np.abs((east - east.min()) / per_degree[0] - (lon - lon.min())).max() < 0.1
    assert len({c for c, d in figure["marks"] if "--h" in c and d}) == len(patches)
    segments = next(d for c, d in figure["marks"] if c == "hair")
    assert segments.count("M") == 6


def test_without_coordinates_and_edges_the_page_says_so(build: Build) -> None:
    rng = np.random.default_rng(0)
    block = rng.normal(size=(400, 3)) + 5 * np.sin(np.arange(400) * 2 * np.pi / 24)[:, None]
    raw = {"observations": observations({"x": block}, ("p", "q", "r"))}
    made, lake = build(raw, channels=channels("x"))
    _, read = show(made, lake)
    assert "There are neither coordinates nor edges, so there is no map." in read.text
    assert not [c for c in read.figures if c.startswith(("Map", "Stand-in"))]
    assert "No cell is missing." in read.text
    assert "x: mean day" in read.figures


def test_edges_without_coordinates_are_laid_out_by_the_graph(build: Build) -> None:
    names = tuple(f"n{i}" for i in range(8))
    rng = np.random.default_rng(0)
    edges = pl.DataFrame(
        {"source": list(names[:-1]), "target": list(names[1:]), "weight": [1.0] * 7},
    ).with_columns(time=pl.lit(None, pl.Datetime("us", "UTC")))
    raw = {"observations": observations({"x": rng.normal(size=(400, 8))}, names), "edges": edges}
    made, lake = build(raw, channels=channels("x"), embed=Embed(eigenvectors=3, patch_size=4))
    _, read = show(made, lake)
    assert "places stand for the two slowest eigenvectors" in read.text
    dots = [
        d for c, d in read.figures["Stand-in layout: 8 entities in 2 patches, 7 linked pairs"]["marks"] if "--h" in c
    ]
    assert sum(d.count("M") for d in dots) == 8


def test_entities_without_coordinates_are_left_off_the_map(build: Build) -> None:
    raw = tables()
    lost = pl.when(pl.col("entity") != "c").then(pl.col("lon")).alias("lon")
    raw["entities"] = raw["entities"].with_columns(lost)
    made, lake = build(raw)
    _, read = show(made, lake)
    assert "1 of 6 entities have no coordinates and are not drawn" in read.text
    assert [c for c in read.figures if c.startswith("Map: 5 entities in")]


def test_a_single_series_has_a_page(build: Build) -> None:
    wave = 10 + 3 * np.sin(np.arange(600) * 2 * np.pi / 24)[:, None]
    made, lake = build({"observations": observations({"x": wave}, ("only",))}, channels=channels("x"))
    page, read = show(made, lake)
    assert page.numbers["seasons"][0]["strength"] == pytest.approx([1, 1, 1], abs=1e-5)
    assert [p["length"] for p in page.numbers["spectrum"][0]["peaks"]] == ["1 d"]
    assert read.tables["x, u"][1][1] == "600"


def test_constant_zero_and_silent_stretches(build: Build) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(480, 2))
    noise[100:150] = np.nan
    zeros, flat = np.zeros((480, 2)), np.full((480, 2), 3.7)
    zeros[100:150] = flat[100:150] = np.nan
    raw = {"observations": observations({"zero": zeros, "flat": flat, "noise": noise})}
    made, lake = build(raw, channels=channels("zero", "flat", "noise"))
    page, read = show(made, lake)
    assert [r["strength"] for r in page.numbers["seasons"][:2]] == [None, None]
    assert [r["series"] for r in page.numbers["seasons"]] == [0, 0, 2]
    assert [s["series"] for s in page.numbers["spectrum"]] == [0, 0, 2]
    assert "zero, no series that varies" in read.text
    assert "Without a number: series that never vary" in read.text
    assert page.numbers["silent"] == {
        "count": 50,
        "start": "2023-01-06T04:00:00.000000",
        "end": "2023-01-08T06:00:00.000000",
        "steps": 50,
        "length": "2.08 d",
        "whole": False,
    }
    assert "50 steps hold no value of any entity; the longest stretch of them is 2.08 d" in read.text
    assert read.tables["zero, u"][1] == ["raw", "860", *["0"] * 7]
    assert read.tables["flat, u"][2] == ["harmonized", "860", *["3.70"] * 7]


def test_what_was_masked_is_counted_with_its_rule(build: Build) -> None:
    rng = np.random.default_rng(0)
    block = rng.normal(10, 1, (480, 2))
    block[3, 0] = block[5, 1] = -1.0
    block[7, 0] = 1000.0
    block[:, 1][200:] = np.nan
    rule = Channel(name="x", unit="u", missing=(-1.0,), maximum=100.0)
    made, lake = build({"observations": observations({"x": block})}, channels=(rule,))
    page, read = show(made, lake)
    assert page.numbers["values"][0]["masked"] == {"with a code for missing (-1)": 2, "outside −∞ to 100 u": 1}
    assert "Masked: 2 with a code for missing (-1); 1 outside −∞ to 100 u." in read.text
    assert [r["count"] for r in page.numbers["values"][0]["rows"]] == [680, 677, 677]
    assert page.numbers["values"][0]["rows"][0]["quantiles"][-1] == 1000
    assert page.numbers["values"][0]["rows"][1]["quantiles"][-1] == pytest.approx(np.nanmax(block[block < 100]))


def test_dense_raw_tables_give_the_page_of_their_long_twin(
    build: Build, add_dataset: Callable[[Dataset], Dataset], settings: Settings
) -> None:
    rng = np.random.default_rng(0)
    block = rng.normal(10, 1, (480, 3)).astype(np.float32)
    block[rng.random(block.shape) < 0.2] = np.nan
    rows = observations({"x": block}, ("p", "q", "r"))
    made, lake = build({"observations": rows.drop_nulls().filter(pl.col("x").is_not_nan())}, channels=channels("x"))
    times = rows["time"].unique(maintain_order=True)
    places = pl.DataFrame({"entity": ["p", "q", "r"]}).with_columns(
        lon=pl.lit(None, pl.Float64),
        lat=pl.lit(None, pl.Float64),
        zone=pl.lit("America/New_York"),
        text=pl.lit(None, pl.String),
    )
    raw = {"observations": dense_observations(times, {"x": block}), "entities": places}
    twin = add_dataset(
        Dataset(spec=made.spec.model_copy(update={"name": "twin"}), read=lambda files: raw, module="stfm_pipeline")
    )
    for stage in STEPS:
        outcome = materialize("twin", stage, lake, settings)
        assert outcome.stage is not None, outcome.checks
    assert "entity" not in lake.read(lake.require("twin", "raw"), "observations").columns
    ours, theirs = show(made, lake)[0].numbers, show(twin, lake)[0].numbers
    assert theirs == ours


def test_names_are_text_and_nothing_is_loaded_from_outside(build: Build) -> None:
    rng = np.random.default_rng(0)
    block = rng.normal(size=(400, 2))
    block[10:20, 0] = np.nan
    names = (EVIL, "<b>&amp;")
    evil = {"title": EVIL, "description": EVIL, "licence": EVIL, "homepage": "javascript:alert(1)"}
    places = pl.DataFrame(
        {"entity": names, "lon": [1.0, 2.0], "lat": [1.0, 2.0], "zone": ["UTC"] * 2, "text": [EVIL, EVIL]}
    )
    raw = {"observations": observations({EVIL: block}, names), "entities": places}
    made, lake = build(raw, channels=channels(EVIL, description=EVIL), **evil)
    page, read = show(made, lake)
    assert not read.tags & {"script", "b>", "iframe", "link", "object"}
    assert read.text.count(EVIL) >= 8
    assert read.tables["Longest gaps, one per series"][1][0] == EVIL
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in read.links)
    assert not re.search(r"url\(|@import|\son\w+=", page.html)
    assert "default-src 'none'" in page.html


def test_before_anything_is_materialised_the_spec_alone_is_shown(build: Build) -> None:
    made, lake = build({}, until=None)
    page, read = show(made, lake)
    assert list(page.numbers) == ["protocol"]
    assert "Not materialised yet. Run stfm run small --until enriched" in re.sub(r"\s+", " ", read.text)
    assert ["Look-back", "48 steps (2 d)"] in read.tables["Protocol"]
    assert ["Horizon", "12 steps (12 h)"] in read.tables["Protocol"]
    assert ["level", "metres", "–", "-1000 to 1000", "-99", "missing"] in read.tables["Channels and their mask rule"]
    assert not read.figures


@pytest.mark.parametrize("until", ["raw", "harmonized", "embedded"])
def test_halfway_the_page_shows_what_is_there(build: Build, until: str) -> None:
    made, lake = build(tables(), until=until)
    page, read = show(made, lake)
    assert "Not all of it is there." in read.text
    assert ("seasons" in page.numbers) == (until != "raw")
    if until == "harmonized":
        assert read.tables["Seasonal strength"][1][1] == "1 d, 24 steps"
        assert "Patches come with" in read.text
        assert page.numbers["seasons"][1]["strength"][1] > 0.5
    if until == "embedded":
        assert read.tables["Seasonal strength"][1][1] == "day, civil time"


def test_a_stage_made_from_an_older_one_is_not_shown(enriched: Lake, synthetic: Dataset) -> None:
    stage = enriched.require("synthetic", "harmonized")
    renewed = {t: enriched.read(stage, t) for t in stage.tables}
    enriched.publish(
        "synthetic", "harmonized", renewed, fingerprint="x", facts={**stage.facts, "new": 1}, inputs=stage.inputs
    )
    _, read = show(synthetic, enriched)
    assert "embedded, enriched are missing or older than what came before" in re.sub(r"\s+", " ", read.text)
    assert "Patches come with" in read.text


def test_many_entities_and_channels_are_sampled_and_cut_and_it_is_said(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stfm_pipeline.pages.dataset import loaded

    monkeypatch.setattr(loaded, "CELLS", 1)
    monkeypatch.setattr(loaded, "FEWEST_ENTITIES", 3)
    rng = np.random.default_rng(0)
    names = tuple(f"e{i:02d}" for i in range(20))
    raw = {"observations": observations({f"c{k:02d}": rng.normal(size=(300, 20)) for k in range(14)}, names)}
    made, lake = build(raw, channels=channels(*(f"c{k:02d}" for k in range(14))))
    page, read = show(made, lake)
    assert "measured on 3 of 20 entities, evenly spaced in the index" in read.text
    assert "Figures show the first 12 of 14 channels" in read.text
    assert {r["series"] for r in page.numbers["seasons"]} == {3}
    assert len(page.numbers["values"]) == len(page.numbers["spectrum"]) == 14
    assert sum(c.endswith("periodogram") for c in read.figures) == 12


def test_the_command_shows_the_facts_and_writes_the_page(enriched: Lake, synthetic: Dataset, home: Path) -> None:
    done = CliRunner().invoke(app, ["datasets", "show", "synthetic"])
    assert done.exit_code == 0, done.output
    path = home / "reports" / "synthetic" / "dataset.html"
    page = dataset_page(synthetic.spec, enriched)
    assert path.read_text() == page.html
    median = page.numbers["seasons"][1]["strength"][1]
    gap = page.numbers["gaps"][0]
    for wanted in ("A synthetic dataset", "licence none needed", "48 steps (2 d)", f"{median:.2f}", str(path),
                   f"longest gap: {gap['entity']}, level, {gap['length']}", "harmonized", "15."):  # fmt: skip
        assert wanted in done.stdout
    done = CliRunner().invoke(app, ["datasets", "show", "synthetic", "--json"])
    found = json.loads(done.stdout)
    assert found["page"] == str(path)
    assert found["measured"] == json.loads(json.dumps(page.numbers))
    assert found["stages"]["harmonized"]["facts"]["entities"] == 6
    assert found["licence"] == "none needed"


def test_the_command_works_before_materialisation(synthetic: Dataset, home: Path) -> None:
    done = CliRunner().invoke(app, ["datasets", "show", "synthetic"])
    assert done.exit_code == 0, done.output
    assert "not materialised yet: `stfm run synthetic --until enriched`" in done.stdout
    assert (home / "reports" / "synthetic" / "dataset.html").is_file()
    found = json.loads(CliRunner().invoke(app, ["datasets", "show", "synthetic", "--json"]).stdout)
    assert found["stages"] == {}
    assert Path(found["page"]).is_file()


def test_each_part_of_the_embedded_stage_has_a_row_that_says_how_it_was_made(build: Build) -> None:
    raw = tables()
    rule = Embed(spatial=("coordinates", "h3", "geoclip-random"), patch_size=2, tokens=Tokens(codebook=4))
    made, lake = build(raw, embed=rule)
    page = dataset_page(made.spec, lake)
    stage = lake.require("small", "embedded")
    head, *rows = Read(page.html).tables["Embeddings"]
    assert head == ["part", "table", "how it was made"]
    found = {part: (table, how) for part, table, how in rows}
    assert set(found) == {
        *("civil time", "patch", *rule.spatial),
        *("dominant periods", "power spectral density", "bins", "codebook"),
    }
    assert {table for table, _ in found.values()} <= set(stage.tables)
    assert found["civil time"][1] == "America/New_York with holidays of US, Europe/Zurich with holidays of US"
    weights = stage.facts["spatial"]["geoclip-random"]["weights"][:16]
    assert found["geoclip-random"][1].endswith(f"encoder geoclip_random, weights {weights}")
    assert f"{stage.facts['codebook']['error']['val']['codebook']:.3f} against" in found["codebook"][1]
    assert stage.facts["made_from"]["training_part"] in page.html
