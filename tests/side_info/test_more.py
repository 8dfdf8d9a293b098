"""Side tables that go on, by place and with the time a row was known, are those computed whole."""

from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest
from fixtures.live import DAYS, check_whole, day, down_the_road, land
from fixtures.synthetic import make_spec, tables

from stfm_pipeline.datasets.catalog import folder
from stfm_pipeline.datasets.export import export
from stfm_pipeline.datasets.spec import Join, PointsNear
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings

NAME = "live"
JOINS = (
    Join(
        table="weather",
        columns=("temp_c",),
        availability="past",
        via="place",
        within_km=150.0,
        nearest=2,
        tolerance="5h",
    ),
    Join(table="plan", columns=("planned",), availability="ahead"),
    Join(table="sites", columns=("altitude_m", "land"), availability="static"),
)


def sides() -> dict[str, pl.DataFrame]:
    raw = tables(DAYS)
    weather, plan = raw["weather"], raw["plan"]
    late = weather.with_columns(known_at=pl.col("time") + pl.duration(minutes=90 + pl.col("time").dt.hour() * 10))
    # A station that begins to report when the files do, nearer to b than the other.
    new = weather.filter((pl.col("entity") == "a") & (pl.col("time") >= day(50))).with_columns(
        entity=pl.lit("new"), temp_c=pl.col("temp_c") + 1, known_at=None
    )
    where = {"a": (-74.0, 40.0), "d": (8.0, 47.0), "new": (-73.4, 40.5)}
    both = pl.concat([late, new.cast(dict(late.schema))]).with_columns(
        lon=pl.col("entity").replace_strict({k: v[0] for k, v in where.items()}),
        lat=pl.col("entity").replace_strict({k: v[1] for k, v in where.items()}),
    )
    told = [
        plan.with_columns(planned=pl.col("planned") + k, known_at=pl.col("time") - timedelta(hours=h))
        for k, h in ((0, 20), (1, 5), (2, -1))
    ]
    sites = pl.DataFrame({"entity": ["a", "b"], "altitude_m": [1.0, 5.0], "land": ["town", "field"]})
    poi = pl.DataFrame({"lon": [-74.0, 8.0], "lat": [40.1, 47.0], "kind": ["school", "pub"]})
    return {"weather": both, "plan": pl.concat(told), "sites": sites, "poi": poi} | {
        t: raw[t] for t in ("observations", "entities", "edges")
    }


def part(frame: pl.DataFrame, start: float, stop: float) -> pl.DataFrame:
    if "time" not in frame.columns or frame["time"].n_unique() < 2:
        return frame
    return frame.filter((pl.col("time") >= day(start)) & (pl.col("time") < day(stop))).sort("time", maintain_order=True)


@pytest.fixture
def live(lake: Lake, settings: Settings) -> dict[str, pl.DataFrame]:
    whole = sides()
    spec = make_spec(NAME, joins=JOINS, poi=(PointsNear(table="poi", category="kind", radii_km=(50.0,)),))
    export(spec, {t: part(f, 0, 50) for t, f in whole.items()}, folder(), NAME)
    down_the_road(lake, settings)
    return whole


def test_what_goes_on_is_what_is_computed_whole(live: dict[str, pl.DataFrame], lake: Lake, settings: Settings) -> None:
    first = lake.require(NAME, "enriched").tables
    for stop in (52, 53.3):
        for table in ("weather", "plan", "observations"):
            (taken,) = land(part(live[table], 50 if stop == 52 else 52, stop), f"{table}-{stop}.csv", lake, settings)
            assert taken.accepted, taken.reason
        stages = down_the_road(lake, settings)
    assert stages["enriched"].tables["provenance"] == first["provenance"], "what is counted on train is not made again"
    assert stages["enriched"].tables["ahead_lead"] > first["ahead_lead"]
    check_whole(lake, settings)


def test_a_plan_remade_later_and_late_reports_are_put_where_they_belong(
    live: dict[str, pl.DataFrame], lake: Lake, settings: Settings
) -> None:
    for table, frame in (
        ("weather", part(live["weather"], 47, 49).with_columns(temp_c=40.0, known_at=pl.lit(day(49.5)))),
        (
            "plan",
            part(live["plan"], 48, 49).with_columns(planned=pl.lit(9.0), known_at=pl.col("time") - timedelta(hours=12)),
        ),
    ):
        (taken,) = land(frame, f"{table}-late.csv", lake, settings)
        assert taken.accepted, taken.reason
        down_the_road(lake, settings)
    check_whole(lake, settings)


def test_attributes_and_points_that_land_change_what_never_changes(
    live: dict[str, pl.DataFrame], lake: Lake, settings: Settings
) -> None:
    sites = pl.DataFrame({"entity": ["b", "c"], "altitude_m": [7.0, 9.0], "land": ["town", "sea"]})
    points = pl.DataFrame({"lon": [-73.5, 8.0], "lat": [40.5, 47.0], "kind": ["pub", "pub"]})
    for table, frame in (("sites", sites), ("poi", points)):
        (taken,) = land(frame, f"{table}-1.csv", lake, settings)
        assert taken.accepted, taken.reason
    static = lake.read(down_the_road(lake, settings)["enriched"], "static")
    assert static["altitude_m"].to_list() == [1, 7, 9, None, None, None]
    assert static["pub_within_50km"].to_list() == [0, 1, 0, 1, 0, 0]
    check_whole(lake, settings)
