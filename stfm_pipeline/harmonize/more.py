"""More of a harmonized signal: what new rows change, at the cost of the steps they touch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import DatasetSpec, Harmonize
from stfm_pipeline.harmonize import split
from stfm_pipeline.harmonize.gather import Gathered, gather
from stfm_pipeline.harmonize.mask import is_masked
from stfm_pipeline.harmonize.run import EPOCH, fill_absent, rule_now
from stfm_pipeline.stage import NEVER, Extension, Tail
from stfm_pipeline.tables import Check, Signal, step_us


def step_start(moment: datetime, step: str) -> datetime:
    """The start of the step that holds a moment."""
    into = (moment - EPOCH) // timedelta(microseconds=1) % step_us(step)
    return moment - timedelta(microseconds=into)


def first_new(facts: dict[str, Any], since: datetime, step: str) -> datetime:
    """The first step of which anything may differ: the one that holds `since`, or the one after the clock's last."""
    end = edges_of(facts)[1]
    return min(end, step_start(since, step)) if since < NEVER else end


def clock(first: datetime, end: datetime, step: str) -> NDArray[np.datetime64]:
    """Step starts from `first` up to `end`, which is not one."""
    count = max(0, (end - first) // timedelta(microseconds=step_us(step)))
    begin = np.datetime64(first.replace(tzinfo=None), "us")
    return np.asarray(begin + np.arange(count) * np.timedelta64(step_us(step), "us"))


def edges_of(facts: dict[str, Any]) -> tuple[datetime, datetime]:
    """Where the published clock starts and ends."""
    start, end = (datetime.fromisoformat(facts[k]).replace(tzinfo=UTC) for k in ("start", "end"))
    return start, end


def touches_training(table: pl.DataFrame, since: datetime) -> bool:
    """Whether anything that is fitted on the training part may differ; edges of its very end still belong to it."""
    return bool(since <= table.filter(pl.col("part") == "train")["end"][0])


def extend(
    spec: DatasetSpec,
    facts: dict[str, Any],
    names: list[str],
    frozen: pl.DataFrame,
    before: pl.DataFrame,
    after: pl.DataFrame,
    since: datetime,
) -> Extension | None:
    """What a harmonized stage with `facts` becomes; None where it has to be computed whole.

    `before` and `after` are the raw observations from `first_new` on, as they were and as they are.
    """
    if spec.harmonize.outliers or touches_training(frozen, since):
        return None
    start, end = edges_of(facts)
    first = first_new(facts, since, spec.harmonize.step)
    last = after["time"].max()
    rule = rule_now(spec, last if last is not None else end - timedelta(microseconds=step_us(spec.harmonize.step)))
    if rule.end is None:
        rule = rule.model_copy(update={"end": _after(last, rule.step) if last is not None else end})
    if rule.end is None or rule.end < end or (rule.end <= first and len(before) + len(after)):
        return None
    times = clock(start, rule.end, rule.step)
    steps, kept = len(times), len(clock(start, first, rule.step))
    table = split.carry(frozen, times, spec.task)
    if table is None:
        return None
    parts = split.parts_of(table, times)
    new = facts | {"steps": steps, "end": str(np.datetime64(rule.end.replace(tzinfo=None), "us"))}
    new |= {"parts": {p: [s.start, s.stop] for p, s in parts.items()}}
    tables: dict[str, pl.DataFrame | Tail] = {} if table.equals(frozen) else {"split": table}
    if kept == steps:
        return Extension(tables, new, [], NEVER)
    found = _gathered(spec, names, after, rule, first, rule.end)
    replaced = _gathered(spec, names, before, rule, first, end) if first < end else None
    new |= _counted(spec, facts, names, found, replaced, steps)
    signal = Signal(found.times, tuple(names), spec.channel_names, found.values, found.observed)
    checks = [
        Check("regular_clock", bool((found.times == times[kept:]).all()), "every new step has the stated length", {}),
        Check("masked_values_are_finite", is_masked(found.values, found.observed), "unobserved cells hold 0", {}),
    ]
    return Extension({**tables, "signal": Tail(kept, signal.to_frame())}, new, checks, first)


def _after(last: Any, step: str) -> datetime:
    return step_start(last, step) + timedelta(microseconds=step_us(step))


def _gathered(
    spec: DatasetSpec, names: list[str], rows: pl.DataFrame, rule: Harmonize, first: datetime, end: datetime
) -> Gathered:
    if rows.is_empty():
        times = clock(first, end, rule.step)
        cells = (len(times), len(names), len(spec.channels))
        found = Gathered(
            times, np.zeros(cells, np.float32), np.zeros(cells, np.bool_), np.zeros(cells[:2], np.bool_), {}, {}
        )
    else:
        found = gather(rows, names, spec.channels, rule.model_copy(update={"start": first, "end": end}))
    fill_absent(found, spec.channels)
    return found


def _counted(
    spec: DatasetSpec, facts: dict[str, Any], names: list[str], new: Gathered, old: Gathered | None, steps: int
) -> dict[str, Any]:
    """The stage's counts with those of replaced steps taken out and those of new ones put in."""
    shares: dict[str, dict[str, float]] = {"observed_share": {}, "zero_share": {}}
    for k, channel in enumerate(spec.channel_names):
        seen = round(facts["observed_share"][channel] * facts["steps"] * len(names))
        zeros = round(facts["zero_share"][channel] * seen)
        for found, sign in ((new, 1), (old, -1)):
            if found is not None:
                known = found.observed[..., k]
                seen += sign * int(known.sum())
                zeros += sign * int(((found.values[..., k] == 0) & known).sum())
        shares["observed_share"][channel] = seen / (steps * len(names))
        shares["zero_share"][channel] = zeros / seen
    report = {k: v + new.report.get(k, 0) - (old.report.get(k, 0) if old else 0) for k, v in facts["report"].items()}
    masked = {
        c: {k: v + _of(new, c, k) - _of(old, c, k) for k, v in counts.items()} for c, counts in facts["masked"].items()
    }
    return {**shares, "report": report, "masked": masked}


def _of(found: Gathered | None, channel: str, key: str) -> int:
    return found.masked.get(channel, {}).get(key, 0) if found is not None else 0
