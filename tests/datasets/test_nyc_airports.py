"""The real archive: every promise the dataset's page makes, and that no cell holds what was learned later."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

from bench.archive import flights_and_weather
from stfm_pipeline.datasets import nyc_airports as nyc
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.settings import Settings
from stfm_pipeline.side_info.run import enrich
from stfm_pipeline.sources import fetch
from stfm_pipeline.stage import Result
from stfm_pipeline.tables import Signal

pytestmark = pytest.mark.network
HOUR = timedelta(hours=1)
END = datetime(2014, 1, 1, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return fetch(nyc.SOURCE, Settings(home=tmp_path_factory.mktemp("nyc")))


@pytest.fixture(scope="module")
def raw(files: dict[str, Path]) -> dict[str, pl.DataFrame]:
    return nyc.read(files)


@pytest.fixture(scope="module")
def harmonized(raw: dict[str, pl.DataFrame]) -> Result:
    return harmonize(nyc.SPEC, raw)


@pytest.fixture(scope="module")
def timed(files: dict[str, Path], raw: dict[str, pl.DataFrame]) -> pl.DataFrame:
    flights = pl.read_csv(files["flights"], null_values="NA", infer_schema_length=10_000)
    return nyc.flight_times(flights, raw["entities"])


def test_a_year_of_hours_at_107_airports_keeps_every_check(harmonized: Result) -> None:
    assert [c.name for c in harmonized.checks if not c.passed] == []
    assert (harmonized.facts["steps"], harmonized.facts["entities"]) == (8760, 107)
    assert harmonized.facts["report"]["rows_in_a_shared_step"] == 0
    assert harmonized.facts["report"]["rows_off_the_clock"] == 0
    assert harmonized.facts["start"].startswith("2013-01-01T05:00")
    assert harmonized.facts["end"].startswith("2014-01-01T05:00")


def test_every_flight_that_happened_is_counted_once_at_each_end(
    timed: pl.DataFrame, raw: dict[str, pl.DataFrame], harmonized: Result
) -> None:
    happened = timed["dep"].count() + timed["arr"].count()
    assert happened == 336_776 - 8_255 + 336_776 - 9_430
    assert raw["observations"]["movements"].sum() == happened
    assert raw["timetable"]["scheduled"].sum() == 2 * 336_776, "cancelled flights stay in the timetable"
    names = harmonized.tables["entities"]["entity"].to_list()
    signal = Signal.from_frame(harmonized.tables["signal"], names, nyc.SPEC.channel_names)
    outside = raw["observations"].filter(~pl.col("time").is_between(nyc.SPEC.harmonize.start, END, closed="left"))
    assert signal.values[..., 0].sum(dtype=np.float64) == happened - outside["movements"].sum()
    assert signal.observed[..., 0].all()
    assert np.array_equal(signal.observed[..., 1], signal.values[..., 0] > 0), "a delay where there was a movement"


def test_from_departure_to_arrival_passes_the_time_in_the_air_and_at_most_five_hours_more(
    timed: pl.DataFrame,
) -> None:
    """A zone that is wrong by an hour, or an arrival on the wrong day, would show here."""
    ground = timed.drop_nulls(["dep", "arr", "air_time"]).select(
        minutes=(pl.col("arr") - pl.col("dep")).dt.total_minutes() - pl.col("air_time"), dest="dest", dep="dep"
    )
    assert len(ground) > 327_000
    assert ground.filter(~pl.col("minutes").is_between(0, 300)).to_dicts() == []
    assert 15 < ground["minutes"].median() < 30


def test_local_clock_times_are_those_of_the_file(timed: pl.DataFrame, raw: dict[str, pl.DataFrame]) -> None:
    zones = dict(raw["entities"].select("entity", "zone").iter_rows())
    checked = 0
    for row in timed.drop_nulls("dep").sample(400, seed=0).to_dicts():
        departure = row["dep"].astimezone(ZoneInfo("America/New_York"))
        assert (departure.hour * 100 + departure.minute) % 2400 == row["dep_time"] % 2400
        planned = row["sched_arr"].astimezone(ZoneInfo(zones[row["dest"]]))
        assert (planned.hour * 100 + planned.minute) % 2400 == row["sched_arr_time"] % 2400
        checked += 1
    assert checked == 400


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2013, 1, 15, 12, 0, tzinfo=UTC),
        datetime(2013, 3, 10, 7, 30, tzinfo=UTC),
        datetime(2013, 3, 10, 6, 59, tzinfo=UTC),
        datetime(2013, 7, 4, 23, 59, tzinfo=UTC),
        datetime(2013, 11, 3, 5, 30, tzinfo=UTC),
        datetime(2013, 11, 3, 6, 30, tzinfo=UTC),
        datetime(2013, 12, 24, 18, 0, tzinfo=UTC),
    ],
    ids=lambda moment: f"{moment:%m-%dT%H:%M}",
)
def test_what_was_known_at_a_moment_gives_the_table_as_it_is_up_to_then(
    timed: pl.DataFrame, raw: dict[str, pl.DataFrame], moment: datetime
) -> None:
    known = nyc.flight_times(nyc.known_by(timed, moment), raw["entities"])
    moves = nyc.movements(known)
    assert moves["time"].max() <= moment
    ended = pl.col("time") + HOUR <= moment
    rebuilt, whole = nyc.observations(moves).filter(ended), raw["observations"].filter(ended)
    assert len(whole) > 10_000 or moment.month == 1
    assert rebuilt.equals(whole)
    assert nyc.timetable(known).equals(raw["timetable"])
    dated = pl.col("time") <= moment
    assert nyc.routes(known).filter(dated).equals(raw["edges"].filter(dated))


def test_a_delay_is_the_mean_over_the_movements_of_its_hour(timed: pl.DataFrame, raw: dict[str, pl.DataFrame]) -> None:
    hour = datetime(2013, 7, 1, 20, tzinfo=UTC)
    ends = pl.concat(
        [
            timed.select(entity="origin", time="dep", delay="dep_delay"),
            timed.select(entity="dest", time="arr", delay="arr_delay"),
        ]
    ).filter(pl.col("time").is_between(hour, hour + HOUR, closed="left"))
    for entity in ("JFK", "ORD", "SFO"):
        delays = ends.filter(entity=entity)["delay"].to_list()
        row = raw["observations"].filter(entity=entity, time=hour).to_dicts()[0]
        assert row["movements"] == len(delays) > 0
        assert row["delay_min"] == pytest.approx(sum(delays) / len(delays))


def test_weather_is_in_si_units_and_one_row_per_station_and_hour(raw: dict[str, pl.DataFrame]) -> None:
    weather = raw["weather"]
    assert not weather.select("entity", "time").is_duplicated().any()
    assert weather["entity"].unique().sort().to_list() == ["EWR", "JFK", "LGA"]
    assert -25 < weather["temp_c"].min() < weather["temp_c"].max() < 45
    assert weather["humidity_pct"].max() <= 100
    assert weather.filter(pl.col("dewpoint_c") > pl.col("temp_c") + 0.5).is_empty()


def test_airports_have_a_place_a_zone_and_a_sentence(raw: dict[str, pl.DataFrame]) -> None:
    entities = raw["entities"]
    assert entities["entity"].is_sorted()
    assert not any(entities.null_count().row(0))
    zones = dict(entities.select("entity", "zone").iter_rows())
    assert (zones["HNL"], zones["PHX"], zones["SJU"]) == (
        "Pacific/Honolulu",
        "America/Phoenix",
        "America/Puerto_Rico",
    )


def test_other_airports_around_are_points_of_interest_and_no_railway_station_is(
    raw: dict[str, pl.DataFrame], harmonized: Result
) -> None:
    assert raw["airports"]["kind"].value_counts(sort=True).rows() == [("airfield", 1270), ("international", 164)]
    side = {t: raw[t] for t in nyc.SPEC.side_tables}
    static = enrich(nyc.SPEC, side, harmonized.frames).frame("static")
    jfk = static.row(static["entity"].index_of("JFK"), named=True)
    # LaGuardia is 17 km away, Newark 33 km.
    assert jfk["international_nearest_m"] == pytest.approx(33_500, abs=1500)
    assert jfk["airfield_nearest_m"] < 20_000
    assert jfk["altitude_m"] == pytest.approx(4, abs=0.1)
    assert static.null_count().sum_horizontal()[0] == 0


def test_what_lands_after_an_early_end_makes_the_whole_year(
    files: dict[str, Path], raw: dict[str, pl.DataFrame], tmp_path: Path
) -> None:
    """The real last days as the files that would have come, one of them with flights that were in the air before."""
    edges = [datetime(2013, 12, d, 5, tzinfo=UTC) for d in (16, 22)]
    early = nyc.revise(files, {}, edges[0], None)
    assert max(f["time"].max() for t, f in early.items() if "time" in f.columns and t != "timetable") <= edges[0]
    periods = flights_and_weather(edges, tmp_path)
    landed = {m: [p for period in periods for p in period if p.name.startswith(m)] for m in nyc.GROWS}
    assert [len(p) for p in landed.values()] == [2, 2]
    later = nyc.revise(files, landed, edges[0], None)
    for table, frame in raw.items():
        assert later[table].equals(frame), table
    part = nyc.revise(files, landed, edges[0], edges[1])
    for table in ("observations", "timetable", "edges"):
        assert part[table].filter(pl.col("time") >= edges[1]).equals(raw[table].filter(pl.col("time") >= edges[1]))


@pytest.mark.parametrize("member", nyc.GROWS)
def test_a_file_with_other_columns_says_which_are_missing(files: dict[str, Path], tmp_path: Path, member: str) -> None:
    (tmp_path / "bad.csv").write_text("origin,when\nJFK,today\n")
    with pytest.raises(ContractError, match=f"{member}: columns are missing") as caught:
        nyc.revise(files, {member: [tmp_path / "bad.csv"]}, None, None)
    assert "time_hour" in str(caught.value)
