"""nyc-airports against its promises, on the real archive."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest

from stfm_pipeline.datasets import nyc_airports as nyc
from stfm_pipeline.datasets.spec import RawTables
from stfm_pipeline.harmonize.run import check_raw, harmonize
from stfm_pipeline.settings import Settings
from stfm_pipeline.sources import fetch

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, pl.DataFrame, RawTables]:
    files = fetch(nyc.SOURCE, Settings(home=tmp_path_factory.mktemp("nyc")), progress=False)
    raw = nyc.read(files)
    flights = pl.read_csv(files["flights"], null_values="NA", infer_schema_length=10_000)
    return flights, nyc.flight_times(flights, raw["entities"]), raw


def test_every_arrival_follows_its_departure_by_a_plausible_time_on_the_ground(
    tables: tuple[pl.DataFrame, pl.DataFrame, RawTables],
) -> None:
    timed = tables[1].drop_nulls("arr")
    ground = (timed["arr"] - timed["dep"]).dt.total_minutes() - timed["air_time"]
    assert len(timed) == 327_346
    assert ground.min() >= 1
    assert ground.max() < 300


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2013, 1, 9, 17, tzinfo=UTC),
        datetime(2013, 3, 10, 7, tzinfo=UTC),
        datetime(2013, 6, 30, 23, tzinfo=UTC),
        datetime(2013, 11, 3, 6, tzinfo=UTC),
        datetime(2013, 12, 24, 3, tzinfo=UTC),
    ],
)
def test_the_past_is_the_same_when_rebuilt_from_what_was_known(
    tables: tuple[pl.DataFrame, pl.DataFrame, RawTables], moment: datetime
) -> None:
    flights, timed, raw = tables
    known = nyc.known_by(timed, moment)
    assert known.height == flights.height
    assert known["arr_delay"].null_count() > flights["arr_delay"].null_count()
    again = nyc.observations(nyc.movements(nyc.flight_times(known, raw["entities"])))
    ended = pl.col("time") + pl.duration(hours=1) <= moment
    assert again.filter(ended).equals(raw["observations"].filter(ended))
    assert again.filter(~ended).height <= 107


def test_harmonized_keeps_its_promises(tables: tuple[pl.DataFrame, pl.DataFrame, RawTables]) -> None:
    raw = tables[2]
    check_raw(nyc.SPEC, raw)
    result = harmonize(nyc.SPEC, raw)
    assert result.passed, [c for c in result.checks if not c.passed]
    assert result.facts["observed_share"]["movements"] == 1.0
    assert result.facts["observed_share"]["delay_min"] == pytest.approx(0.236, abs=0.001)
    assert result.facts["zero_share"]["movements"] == pytest.approx(0.764, abs=0.001)
    end = result.tables["split"].filter(part="train")["end"][0]
    late = raw["edges"].filter(pl.col("time") > end).select("source", "target").unique()
    assert late.join(result.tables["edges"], on=["source", "target"], how="anti").height > 0


def test_the_timetable_knows_cancelled_flights_and_the_observations_do_not(
    tables: tuple[pl.DataFrame, pl.DataFrame, RawTables],
) -> None:
    flights, _, raw = tables
    assert raw["timetable"]["scheduled"].sum() == 2 * flights.height
    happened = flights["dep_delay"].is_not_null().sum() + flights["arr_delay"].is_not_null().sum()
    assert raw["observations"]["movements"].sum() == happened
