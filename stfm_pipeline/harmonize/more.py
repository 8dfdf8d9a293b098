"""More of a harmonized signal: what new rows change, at the cost of the steps they touch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.rules import Decompose
from stfm_pipeline.datasets.spec import DatasetSpec, Harmonize, Part
from stfm_pipeline.harmonize import coarsen, decompose, filters, split, thin
from stfm_pipeline.harmonize.gather import Gathered, gather
from stfm_pipeline.harmonize.mask import is_masked
from stfm_pipeline.harmonize.run import EPOCH, fill_absent, rule_now
from stfm_pipeline.stage import NEVER, Extension, Tail
from stfm_pipeline.tables import Check, Signal, grid_of, step_us


def step_start(moment: datetime, step: str) -> datetime:
    """The start of the step that holds a moment."""
    into = (moment - EPOCH) // timedelta(microseconds=1) % step_us(step)
    return moment - timedelta(microseconds=into)


def first_new(facts: dict[str, Any], since: datetime, step: str) -> datetime:
    """The first step of which anything may differ: the one that holds `since`, or the one after the clock's last."""
    end = edges_of(facts)[1]
    return min(end, step_start(since, step)) if since < NEVER else end


def read_from(facts: dict[str, Any], since: datetime, rule: Harmonize) -> datetime:
    """From when on raw observations are needed: the first new step and as much before it as filters look back."""
    return max(edges_of(facts)[0], first_new(facts, since, rule.step) - _reach(rule))


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
    return touches(table, "train", since)


def touches(table: pl.DataFrame, part: Part, since: datetime) -> bool:
    """Whether anything up to the end of a part of the split may differ."""
    return bool(since <= table.filter(pl.col("part") == part)["end"][0])


@dataclass(frozen=True)
class Published:
    """A harmonized stage as it goes on: its facts and small tables, and rows of its signal.

    `entities` are those that raw observations name. `table` gives one of its tables, or None where it has no such one.
    """

    facts: dict[str, Any]
    entities: pl.DataFrame
    table: Callable[[str], pl.DataFrame | None]
    signal: Callable[[int, int], pl.DataFrame]


def extend(
    spec: DatasetSpec, stage: Published, before: pl.DataFrame, after: pl.DataFrame, since: datetime
) -> Extension | None:
    """What a harmonized stage becomes; None where it has to be computed whole.

    `before` and `after` are the raw observations from `read_from` on, as they were and as they are.
    """
    facts, frozen = stage.facts, stage.table("split")
    if frozen is None or spec.harmonize.outliers or touches_training(frozen, since):
        return None
    start, end = edges_of(facts)
    first = first_new(facts, since, spec.harmonize.step)
    fresh = [rows.filter(pl.col("time") >= first) for rows in (after, before)]
    last = fresh[0]["time"].max()
    rule = rule_now(spec, last if last is not None else end - timedelta(microseconds=step_us(spec.harmonize.step)))
    if rule.end is None:
        rule = rule.model_copy(update={"end": _after(last, rule.step) if last is not None else end})
    if rule.end is None or rule.end < end or (rule.end <= first and any(map(len, fresh))):
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
    spans = [(after, rule.end)] if first == end else [(after, rule.end), (before, end)]
    ready = [_ready(spec, stage, rows, rule, (start, first, until)) for rows, until in spans]
    new |= _counted(spec, facts, ready, steps)
    signal = ready[0].signal
    checks = [
        Check("regular_clock", bool((signal.times == times[kept:]).all()), "every new step has the stated length", {}),
        Check("masked_values_are_finite", is_masked(signal.values, signal.observed), "unobserved cells hold 0", {}),
    ]
    tables["signal"] = Tail(kept, signal.to_frame())
    if spec.harmonize.decompose:
        tables["components"] = Tail(kept, _components(spec.harmonize.decompose, stage, signal, kept))
    return Extension(tables, new, checks, first)


def _components(rule: Decompose, stage: Published, signal: Signal, kept: int) -> pl.DataFrame:
    """The parts of new steps, which come after `kept` ones."""
    history = max(0, kept - decompose.reach(rule))
    past = Signal.from_frame(stage.signal(history, kept), signal.entities, signal.channels)
    whole = Signal(
        np.concatenate([past.times, signal.times]),
        signal.entities,
        signal.channels,
        np.concatenate([past.values, signal.values]),
        np.concatenate([past.observed, signal.observed]),
    )
    profile = decompose.profile_of(stage.table("profile"), len(signal.entities), len(signal.channels))
    return decompose.components(whole, profile, rule).to_frame()[kept - history :]


def _after(last: Any, step: str) -> datetime:
    return step_start(last, step) + timedelta(microseconds=step_us(step))


@dataclass(frozen=True)
class _Ready:
    """New or replaced steps of the signal as they are published, and the counts of what was done to them."""

    signal: Signal
    report: dict[str, int]
    masked: dict[str, dict[str, int]]
    filtered: filters.Counts


def _ready(
    spec: DatasetSpec,
    stage: Published,
    rows: pl.DataFrame,
    rule: Harmonize,
    edges: tuple[datetime, datetime, datetime],
) -> _Ready:
    """The steps from the second of `edges` up to the third, where the clock starts at the first."""
    start, first, end = edges
    entities, used = stage.entities, stage.table("mask")
    names = entities["entity"].to_list()
    earlier = max(start, first - _reach(rule))
    found = _gathered(spec, names, rows.filter(pl.col("time") >= first), rule, first, end)
    values, observed = found.values, found.observed
    history = 0
    if earlier < first:
        past = _gathered(spec, names, rows.filter(pl.col("time") < first), rule, earlier, first)
        values, observed = np.concatenate([past.values, values]), np.concatenate([past.observed, observed])
        history = len(past.times)
    filtered = filters.mask(values, observed, rule.filters, spec.channel_names, since=history)
    values, observed = values[history:], observed[history:]
    if rule.coarsen:
        values, observed = coarsen.blocks(values, observed, grid_of(entities), rule.coarsen)
        names = coarsen.cells(entities, rule.coarsen)["entity"].to_list()
    masked = {c: dict(found.masked.get(c, {})) for c in spec.channel_names}
    if used is not None:
        for name, lost in zip(spec.channel_names, thin.mask(values, observed, used), strict=True):
            masked[name]["few_observed"] = int(lost)
    signal = Signal(found.times, tuple(names), spec.channel_names, values, observed)
    return _Ready(signal, found.report, masked, filtered)


def _reach(rule: Harmonize) -> timedelta:
    return timedelta(microseconds=filters.reach(rule.filters) * step_us(rule.step))


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


def _counted(spec: DatasetSpec, facts: dict[str, Any], ready: list[_Ready], steps: int) -> dict[str, Any]:
    """The stage's counts with those of new steps, the first of `ready`, put in and those of replaced ones taken out."""
    width = len(ready[0].signal.entities)
    signed = list(zip(ready, (1, -1), strict=False))
    shares: dict[str, dict[str, float]] = {"observed_share": {}, "zero_share": {}}
    for k, channel in enumerate(spec.channel_names):
        seen = round(facts["observed_share"][channel] * facts["steps"] * width)
        zeros = round(facts["zero_share"][channel] * seen)
        for found, sign in signed:
            known = found.signal.observed[..., k]
            seen += sign * int(known.sum())
            zeros += sign * int(((found.signal.values[..., k] == 0) & known).sum())
        shares["observed_share"][channel] = seen / (steps * width)
        shares["zero_share"][channel] = zeros / seen
    new: dict[str, Any] = {k: _sum(v, [f.report for f in ready], k) for k, v in facts["report"].items()}
    new = {**shares, "report": new}
    new["masked"] = {
        c: {k: _sum(v, [f.masked[c] for f in ready], k) for k, v in counts.items()}
        for c, counts in facts["masked"].items()
    }
    if "filtered" in facts:
        new["filtered"] = [
            {"kind": entry["kind"]}
            | {
                when: {c: _sum(v, [f.filtered[i][when] for f in ready], c) for c, v in entry[when].items()}
                for when in ("before", "after")
            }
            for i, entry in enumerate(facts["filtered"])
        ]
    return new


def _sum(known: int, counts: list[dict[str, int]], key: str) -> int:
    """What was counted with the first of `counts` put in and the second, if any, taken out."""
    return known + sum(sign * c.get(key, 0) for c, sign in zip(counts, (1, -1), strict=False))
