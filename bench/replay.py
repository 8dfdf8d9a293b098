"""The year from June on, week by week: files land, tables go on, models are retrained, promoted or refused.

`python -m bench.replay HOME [--system stid] [--from 2013-06-03] [--weeks 30] [--start warm]`: a row per week, also in
HOME/replay.jsonl, from which it goes on. Each week is scored before any model has seen it: by the champion of that
time, by the first model, never retrained, and by the week before (seasonal-naive).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import numpy as np

if TYPE_CHECKING:
    from stfm_pipeline.forecaster import Forecaster
    from stfm_pipeline.windows import Panel

NAME = "nyc-airports"
ZONE = ZoneInfo("America/New_York")
WEEK = timedelta(days=7)


def stfm(*arguments: str) -> dict[str, Any]:
    """What a command says with --json."""
    command = [sys.executable, "-m", "stfm_pipeline", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def errors(model: Forecaster | None, panel: Panel, start: datetime, stop: datetime) -> list[float]:
    """MAE per channel of forecasts made at each midnight of the period; without a model, the week before answers."""
    from stfm_pipeline.predict import frame_of

    p = panel.problem
    moments = panel.times.astype("datetime64[us]")
    first = int(np.searchsorted(moments, np.datetime64(start.astimezone(UTC).replace(tzinfo=None), "us")))
    last = int(np.searchsorted(moments, np.datetime64(stop.astimezone(UTC).replace(tzinfo=None), "us")))
    size, count = np.zeros(p.c), np.zeros(p.c)
    values = panel.arrays.values * p.tensors["std"] + p.tensors["mean"]
    for origin in range(first, last - p.horizon + 1, 24):
        truth = values[origin : origin + p.horizon].numpy()
        seen = panel.arrays.observed[origin : origin + p.horizon].numpy()
        if model is None:
            made = values[origin - 168 : origin - 168 + p.horizon].numpy()
            seen = seen & panel.arrays.observed[origin - 168 : origin - 168 + p.horizon].numpy()
        else:
            out = model.predict(frame_of(panel, origin))
            made = np.stack([out[c].to_numpy().reshape(p.n, p.horizon).T for c in p.channels], axis=2)
        size += np.where(seen, np.abs(made - truth), 0).sum(axis=(0, 1))
        count += seen.sum(axis=(0, 1))
    return [float(v) for v in size / count]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("home", type=Path)
    asked.add_argument("--system", default="stid")
    asked.add_argument("--from", dest="first", type=datetime.fromisoformat, default=datetime(2013, 6, 3))
    asked.add_argument("--weeks", type=int, default=30)
    asked.add_argument("--start", default="warm")
    given = asked.parse_args()
    os.environ["STFM_HOME"] = str(given.home.resolve())
    first = given.first.replace(tzinfo=ZONE)
    log = given.home / "replay.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if not rows:
        print("the first model", flush=True)
        stfm("run", NAME, "--system", given.system, "--until-date", f"{given.first:%Y-%m-%d}")
        if stfm("models", "show", NAME)["aliases"] != ["champion"]:
            # A gate of two weeks decides nothing; somebody has to begin.
            print("promoted by hand: the gate could not decide", flush=True)
            subprocess.run([sys.executable, "-m", "stfm_pipeline", "models", "promote", NAME, "1"], check=True)
    for number in range(len(rows), given.weeks):
        begin = first + number * WEEK
        row = week(given.home, number, begin, begin + WEEK, given.system, given.start)
        with log.open("a") as out:
            out.write(json.dumps(row) + "\n")
        rows.append(row)
        say(row)
    summary(rows)


def week(home: Path, number: int, begin: datetime, end: datetime, system: str, start: str) -> dict[str, Any]:
    from bench.archive import flights_and_weather
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.landing import put, take_in
    from stfm_pipeline.registry import load_model
    from stfm_pipeline.road import materialize
    from stfm_pipeline.settings import Settings
    from stfm_pipeline.steps import STEPS
    from stfm_pipeline.windows import load_panel

    settings = Settings()
    lake = Lake(settings.lake_uri)
    began = time.perf_counter()
    files = flights_and_weather([begin.astimezone(UTC), end.astimezone(UTC)], home / "week")[0]
    put(NAME, files, settings)
    taken = take_in(lake, settings)
    for stage in STEPS:
        outcome = materialize(NAME, stage, lake, settings)
        assert outcome.stage is not None, outcome.checks
    landed = time.perf_counter() - began
    panel = load_panel(lake, NAME, settings.cache)
    deployed = stfm("models", "show", NAME)
    scores = {
        "champion": errors(load_model(f"models:/{NAME}/{deployed['version']}", settings), panel, begin, end),
        "first": errors(load_model(f"models:/{NAME}/1", settings), panel, begin, end),
        "week before": errors(None, panel, begin, end),
    }
    began = time.perf_counter()
    stfm("retrain", NAME, "--system", system, "--start", start)
    rows = stfm("models", "list", NAME)
    newest = max(rows, key=lambda r: int(r["version"]))  # type: ignore[call-overload]
    return {
        "week": number,
        "begin": f"{begin:%Y-%m-%d}",
        "files": [[t.name, t.accepted] for t in taken],
        "landed_seconds": round(landed, 1),
        "steps": len(panel.times),
        "deployed": deployed["version"],
        "scores": scores,
        "retrain_seconds": round(time.perf_counter() - began, 1),
        "version": newest["version"],
        "system": newest["system"],
        "decision": newest["decision"],
    }


def say(row: dict[str, Any]) -> None:
    shown = "; ".join(f"{n} {s[0]:.4f} / {s[1]:.2f}" for n, s in row["scores"].items())
    verdict = "promoted" if row["decision"]["promote"] else "refused"
    print(
        f"{row['begin']}: {sum(ok for _, ok in row['files'])} files in {row['landed_seconds']} s; served by version "
        f"{row['deployed']}: {shown}; version {row['version']} ({row['retrain_seconds']:.0f} s) {verdict}: "
        f"{row['decision']['reason']}",
        flush=True,
    )


def summary(rows: list[dict[str, Any]]) -> None:
    promoted = sum(r["decision"]["promote"] for r in rows)
    print(f"\n{len(rows)} weeks, {promoted} promotions, {len(rows) - promoted} refusals")
    for part in (rows, rows[-8:]):
        means = {n: np.mean([r["scores"][n] for r in part], axis=0) for n in rows[0]["scores"]}
        print(f"mean of {len(part)} weeks: " + "; ".join(f"{n} {m[0]:.4f} / {m[1]:.2f}" for n, m in means.items()))


if __name__ == "__main__":
    main()
