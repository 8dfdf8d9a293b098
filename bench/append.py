"""One more day beside the whole: seconds and bytes of taking it in and bringing the tables up to date."""

from __future__ import annotations

import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench.child import finish, line, measured

DAYS = {"nyc-airports": 365, "traffic": 119}


def road(name: str, lake: Any, settings: Any) -> float:
    """Seconds of the data road, whatever of it there is to do."""
    from stfm_pipeline.road import materialize
    from stfm_pipeline.steps import STEPS

    began = time.perf_counter()
    for stage in STEPS:
        outcome = materialize(name, stage, lake, settings)
        assert outcome.stage is not None, outcome.checks
    return time.perf_counter() - began


def size(folder: str) -> int:
    return sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())


def last_day(name: str, home: Path) -> list[Path]:
    """Cut the last day off the dataset, and give the files that it lands in."""
    from stfm_pipeline.datasets.catalog import stop_at

    if name == "nyc-airports":
        from bench.archive import flights_and_weather

        day = datetime(2013, 12, 31, 5, tzinfo=UTC)
        stop_at(name, day)
        return flights_and_weather([day], home / "day")[0]
    lines = (home / "datasets" / "speed.csv").read_text().splitlines()
    stop_at(name, datetime(2019, 1, 1, tzinfo=UTC) + timedelta(days=118))
    path = home / "speed-last.csv"
    path.write_text("\n".join([lines[0], *lines[1 + 118 * 288 :]]) + "\n")
    return [path]


def child(name: str, home: Path) -> None:
    import logging

    from stfm_pipeline.datasets.catalog import stop_at
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.landing import put, take_in
    from stfm_pipeline.settings import Settings

    logging.getLogger("stfm").setLevel(logging.ERROR)
    settings = Settings()
    files = last_day(name, home)
    lake = Lake(settings.lake_uri)
    # The first of all runs also fetches, and imports everything.
    road(name, Lake(f"{home}/warm"), settings)
    part = road(name, lake, settings)
    put(name, files, settings)
    before = size(lake.uri)
    began = time.perf_counter()
    taken = take_in(lake, settings)
    check = time.perf_counter() - began
    assert all(t.accepted for t in taken), taken
    more = road(name, lake, settings)
    wrote = size(lake.uri) - before
    stop_at(name, None)
    whole = Lake(f"{home}/whole")
    finish(part=part, check=check, more=more, wrote=wrote, whole=road(name, whole, settings), bytes=size(whole.uri))


def main(quick: bool) -> None:
    for name, days in DAYS.items():
        with tempfile.TemporaryDirectory(prefix="stfm-bench-") as home:
            if name == "traffic":
                measured("bench.road", "write", home, str(days * 288), "207", "5m", "csv")
            found = measured("bench.append", name, home, environment={"STFM_HOME": home})
        share = found["more"] / found["whole"]
        line(
            f"{name}: a day that lands, beside the whole of {days} days",
            f"{found['more']:.2f} s of {found['whole']:.2f} s ({share:.0%}), {found['wrote'] / 1e3:.0f} kB of "
            f"{found['bytes'] / 1e6:.1f} MB ({found['wrote'] / found['bytes']:.2%}, a day is {1 / days:.2%}); "
            f"its checks {found['check']:.2f} s",
            "3 days' worth of bytes",
            found["wrote"] <= 3 * found["bytes"] / days,
        )


if __name__ == "__main__":
    child(sys.argv[1], Path(sys.argv[2]))
