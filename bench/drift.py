"""Drift: alarms where there is none, and how soon known changes in held-back data are found."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.child import finish, line, measured

if TYPE_CHECKING:
    from stfm_pipeline.drift.blocks import Record

DATASETS = {"nyc-airports": (12, 4), "haute-borne": (20, 4), "beijing-air": (40, 8)}
CHUNK = 4
SIZES: dict[str, tuple[float, ...]] = {
    "level": (0.5, 1.0, 2.0),
    "scale": (1.5, 2.0, 3.0),
    "missing": (0.1, 0.3, 0.6),
    "phase": (1.0, 3.0, 6.0),
}
MEANING = {"level": "deviations", "scale": "times the swing", "missing": "of cells lost", "phase": "h later"}


def resampled(record: Record, rng: np.random.Generator, judged: int) -> Record:
    """Blocks of the reference in runs of four drawn anew: as many to compare with, then `judged` more."""
    from stfm_pipeline.tables import Signal

    total = record.known + judged
    starts = rng.integers(0, record.known - CHUNK + 1, -(-total // CHUNK))
    blocks = (starts[:, None] + np.arange(CHUNK)).ravel()[:total]
    rows = (blocks[:, None] * record.block + np.arange(record.block)).ravel()
    s = record.signal
    times = s.times[0] + np.arange(len(rows)) * np.timedelta64(s.step_us, "us")
    signal = Signal(times, s.entities, s.channels, s.values[rows], s.observed[rows])
    return replace(record, signal=signal, phase=record.phase[rows], reference=record.known * record.block)


def changed(record: Record, kind: str, size: float, group: int, channel: int, step: int, rng: Any) -> Record:
    """The record with a change of one channel of a group from `step` on."""
    from stfm_pipeline.drift.blocks import usual_of
    from stfm_pipeline.tables import Signal

    s = record.signal
    values, observed = s.values.copy(), s.observed.copy()
    who = np.flatnonzero(record.member[group])
    cells = np.ix_(np.arange(step, len(values)), who, [channel])
    usual = usual_of(record)
    if kind == "level":
        values[cells] += size * usual.deviation[who, channel][None, :, None]
    elif kind == "scale":
        phase = record.phase[step:][:, record.zone[who]]
        centre = usual.profile[phase, who, channel][..., None]
        values[cells] = centre + size * (values[cells] - centre)
    elif kind == "missing":
        observed[cells] &= rng.random(observed[cells].shape) >= size
    else:
        lag = round(size * 3_600_000_000 / s.step_us)
        late = np.ix_(np.arange(step - lag, len(values) - lag), who, [channel])
        values[cells], observed[cells] = s.values[late], s.observed[late]
    return replace(record, signal=Signal(s.times, s.entities, s.channels, values * observed, observed))


def first_alarms(record: Record) -> dict[str, Any]:
    """Per kind whether each block is an alarm (b, g, c)."""
    from stfm_pipeline.drift.run import measure

    return {v.track.kind: v.alarm for v in measure(record)[0]}


def quiet_years(record: Record, years: int) -> dict[str, Any]:
    """Alarms that begin, per simulated year and kind; several at one look count once overall."""
    from stfm_pipeline.drift.run import YEAR_US

    judged = round(YEAR_US / (record.block * record.signal.step_us))
    begun: Counter[str] = Counter()
    for seed in range(years):
        alarm = first_alarms(resampled(record, np.random.default_rng(seed), judged))
        for kind, found in {**alarm, "any": np.concatenate([*alarm.values()], axis=2)}.items():
            ever = found.any(axis=(1, 2))
            begun[kind] += int((ever[1:] & ~ever[:-1]).sum())
    return {"years": years, **{k: n / years for k, n in begun.items()}}


def delays(record: Record, kind: str, size: float, trials: int) -> dict[str, Any]:
    """Days from the change to the alarm of its own kind, channel and group, and by how many days `since` is off."""
    from stfm_pipeline.drift.run import measure
    from stfm_pipeline.pages.axis import DAY_US

    first = -(-record.reference // record.block)
    last = max(first + 1, record.blocks - 9)
    found, off = [], []
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        channel, group = int(rng.integers(len(record.signal.channels))), int(rng.integers(len(record.groups)))
        step = int(rng.integers(first * record.block, last * record.block))
        mine = changed(record, kind, size, group, channel, step, rng)
        verdict = next(v for v in measure(mine)[0] if v.track.kind == kind)
        looks = np.flatnonzero(verdict.alarm[:, group, channel])
        looks = looks[looks >= step // record.block]
        if len(looks):
            day = record.signal.step_us / DAY_US
            found.append(((looks[0] + 1) * record.block - step) * day)
            off.append((verdict.since(int(looks[-1]), group, channel) * record.block - step) * day)
    return {
        "found": len(found),
        "of": trials,
        "days": float(np.median(found)) if found else None,
        "most": max(found, default=None),
        "off": float(np.median(np.abs(off))) if off else None,
    }


def child(name: str, years: int, trials: int) -> None:
    import logging

    import polars as pl

    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.drift.run import INPUTS, findings, measure, record_of
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.pages.dataset.loaded import load
    from stfm_pipeline.road import materialize
    from stfm_pipeline.settings import Settings

    logging.getLogger("stfm").setLevel(logging.ERROR)
    settings = Settings()
    lake = Lake(settings.lake_uri)
    stages = {}
    for stage in ("raw", *INPUTS):
        made = materialize(name, stage, lake, settings).stage
        assert made is not None
        stages[stage] = made
    spec = get_dataset(name).spec
    loaded = load(spec, lake, {s: stages[s] for s in INPUTS})
    assert loaded is not None
    record = record_of(loaded, lake.read(stages["embedded"], "spatial")["patch"].cast(pl.String).to_list())
    measure(record.until(min(record.blocks, record.known + 2)))
    began = time.perf_counter()
    verdicts, _ = measure(record)
    seconds = time.perf_counter() - began
    real = findings(record, verdicts, spec).select("kind", "channel", "group", "change", "p").rows()
    ever = {v.track.kind: int(v.alarm.any(axis=0).sum()) for v in verdicts}
    found = {f"{k} {size:g}": delays(record, k, size, trials) for k, sizes in SIZES.items() for size in sizes}
    finish(once=seconds, real=real, ever=ever, quiet=quiet_years(record, years), found=found)


def main(quick: bool) -> None:
    from stfm_pipeline.drift.judge import RATE

    for name, (years, trials) in DATASETS.items():
        got = measured("bench.drift", name, *(("2", "1") if quick else (str(years), str(trials))))
        alarms, once = got["quiet"].pop("any"), got["once"]
        by_kind = ", ".join(f"{k} {v:g}" for k, v in got["quiet"].items())
        line(f"{name}: alarms a year on undrifted data", f"{alarms:g} ({by_kind})", f"{RATE} a year", alarms <= RATE)
        line(f"{name}: all channels, groups and blocks measured and judged", f"{once:.1f} s", "-", True)
        line(f"{name}: series with an alarm at some look, as the data are", f"{got['ever']}", "-", True)
        for what, d in got["found"].items():
            kind, size = what.split()
            late = (
                f", median {d['days']:.1f} days, at most {d['most']:.1f}, date off by {d['off']:.1f}"
                if d["found"]
                else ""
            )
            line(f"{name}: {kind}, {size} {MEANING[kind]}", f"{d['found']} of {d['of']} found{late}", "-", True)


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
