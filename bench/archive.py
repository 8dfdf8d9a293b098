"""The days that an archive holds already, as the files in which they would have landed one after the other."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

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
