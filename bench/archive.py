"""The days that `nyc-airports`' archive holds already, as the files in which they would have landed.

`python -m bench.archive 2013-12-16 2013-12-21 [--to FOLDER]`: a file per member for each date up to the next, and for
all that follows the last.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import polars as pl

from stfm_pipeline.datasets import nyc_airports as nyc
from stfm_pipeline.settings import Settings
from stfm_pipeline.sources import fetch

INSTANT = timedelta(microseconds=1)


def flights_and_weather(edges: list[datetime], folder: Path) -> list[list[Path]]:
    """Write what `nyc-airports` came to know between each edge and the next, and after the last; paths by period.

    A flight that was in the air at an edge is in both files, complete in the later one.
    """
    files = fetch(nyc.SOURCE, Settings())
    flights = pl.read_csv(files["flights"], null_values="NA", infer_schema_length=10_000)
    weather = pl.read_csv(files["weather"], null_values="NA", infer_schema_length=None)
    airports = pl.read_csv(files["airports"], null_values=["NA", "\\N"])
    timed = nyc.flight_times(flights, nyc.airport_table(airports, [flights]))
    scheduled = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us", time_zone="UTC")
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for start, stop in zip(edges, [*edges[1:], None], strict=True):
        until = pl.lit(True) if stop is None else scheduled < stop
        moves = [pl.col(c) >= start for c in ("dep", "arr")]
        touched = timed.filter(until & pl.any_horizontal(scheduled >= start, *moves))
        rows = touched if stop is None else nyc.known_by(touched, stop - INSTANT)
        hours = weather.filter((scheduled >= start) & until)
        written = []
        for name, frame in (("flights", rows.select(flights.columns)), ("weather", hours)):
            path = folder / f"{name}-{start:%Y-%m-%d}.csv"
            if len(frame):
                frame.write_csv(path, null_value="NA")
                written.append(path)
        out.append(written)
    return out


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("dates", nargs="+", type=datetime.fromisoformat)
    asked.add_argument("--to", type=Path, default=Path("days"))
    given = asked.parse_args()
    zone = ZoneInfo(nyc.SPEC.zone)
    dates = [(d if d.tzinfo else d.replace(tzinfo=zone)).astimezone(UTC) for d in sorted(given.dates)]
    for period in flights_and_weather(dates, given.to):
        print(*period, sep="\n")


if __name__ == "__main__":
    main()
