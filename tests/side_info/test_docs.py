"""The dataset of docs/your-own-data.md, with files of the form it speaks of, comes down the road as it says."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from fixtures.live import down_the_road

from stfm_pipeline.datasets.catalog import folder
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings

DOC = Path(__file__).parents[2] / "docs" / "your-own-data.md"
GAUGES = pl.DataFrame(
    {"gauge": ["g1", "g2", "g3"], "lon": [8.0, 8.1, 9.9], "lat": [47.0, 47.1, 46.0], "river": ["Aare", "Aare", "Inn"]}
)
HOURS = 24 * 60


def _rows(who: str, names: list[str], column: str, every: int = 1) -> pl.DataFrame:
    times = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=h) for h in range(0, HOURS, every)]
    rng = np.random.default_rng(len(names))
    frame = pl.DataFrame({who: names * len(times), "time": [t for t in times for _ in names]})
    return frame.with_columns(pl.Series(column, rng.uniform(0, 9, len(frame)).round(2)))


def _files(where: Path) -> None:
    gauges, stations = ["g1", "g2", "g3"], ["s1", "s2", "s3"]
    ahead = _rows("entity", gauges, "rain_ahead_mm")
    told = [ahead.with_columns(issued=pl.col("time") - timedelta(hours=h)) for h in (2, 8, 12)]
    tables = {
        "levels": _rows("gauge", gauges, "level_m"),
        "gauges": GAUGES,
        "rivers": pl.DataFrame({"source": ["g1"], "target": ["g2"], "weight": [1.0]}),
        "pumping": _rows("entity", ["g1", "g2"], "pumped_m3"),
        "rain": _rows("entity", stations, "rain_mm", 2),
        "stations": pl.DataFrame({"entity": stations, "lon": [8.0, 8.2, 9.0], "lat": [47.1, 47.1, 40.0]}),
        "snow": _rows("entity", ["g1"], "snow_cm", 24),
        "opening": _rows("entity", gauges, "gates", 12),
        "weather_ahead": pl.concat(told),
        "catchments": pl.DataFrame({"entity": gauges, "area_km2": [1.0, 2.0, None], "soil": ["clay", "rock", "clay"]}),
        "buildings": pl.DataFrame({"lon": [8.0, 8.01], "lat": [47.01, 47.0], "kind": ["dam", "mill"]}),
    }
    for name, frame in tables.items():
        frame.with_columns(pl.selectors.datetime().dt.strftime("%Y-%m-%dT%H:%M:%SZ")).write_csv(where / f"{name}.csv")


def test_the_dataset_of_the_docs_has_a_join_of_each_kind(lake: Lake, settings: Settings) -> None:
    section = DOC.read_text().split("## Side information")[1]
    (written,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    folder().mkdir(parents=True)
    _files(folder())
    (folder() / "gauges.yaml").write_text(written)
    enriched = down_the_road(lake, settings, name="gauges")["enriched"]
    joins = {j["table"]: j for j in enriched.facts["joins"]}
    assert {k: (j["availability"], j["via"]) for k, j in joins.items()} == {
        "pumping": ("past", "entity"),
        "snow": ("past", "edges"),
        "rain": ("past", "place"),
        "opening": ("ahead", "entity"),
        "weather_ahead": ("ahead", "entity"),
        "catchments": ("static", "entity"),
    }
    assert {k: j["entities_without_partner"] for k, j in joins.items() if j["entities_without_partner"]} == {
        "pumping": 1,
        "snow": 1,
        "rain": 1,
    }
    assert joins["rain"]["rows_unmatched"] == joins["rain"]["rows_used"] / 2
    provenance = lake.read(enriched, "provenance")
    assert set(provenance.filter(join="rain", entity="g2")["partner"]) == {"s1", "s2"}
    assert provenance.filter(join="rain", entity="g2")["weight"].sum() == 1
    static = lake.read(enriched, "static")
    assert static.columns[1:3] == ["area_km2", "soil"]
    assert static["dam_within_5km"].to_list() == [1, 0, 0]
    # Windows of six steps: what is issued eight hours before is the last that all of them have.
    assert set(lake.read(enriched, "ahead_lead")["lead"].explode(empty_as_null=False)) >= {8}
