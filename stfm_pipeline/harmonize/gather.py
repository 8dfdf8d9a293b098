"""Raw observations onto a regular clock: rows floored to steps, masked, and made one per step by a stated rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import Channel, Harmonize
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.clock import clock_of
from stfm_pipeline.harmonize.mask import observed_values
from stfm_pipeline.harmonize.resample import Rounds, merged, one_of, refuses, thins
from stfm_pipeline.large import Chunks, Table, release, room, whole
from stfm_pipeline.tables import dense_rows, dense_values, is_dense, step_us, stretches, times_of, validate_dense

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Gathered:
    """`values` and `observed` (t, n, c), cells with a row `seen` (t, n), and counts of what had to be done for it."""

    times: NDArray[np.datetime64]
    values: NDArray[np.float32]
    observed: Bools
    seen: Bools
    report: dict[str, int]
    masked: dict[str, dict[str, int]]


def gather(rows: Table, names: list[str], channels: Sequence[Channel], rule: Harmonize) -> Gathered:
    """Raw observations, dense or long, as a regular signal. A value is masked before it can enter a mean."""
    if isinstance(rows, Chunks):
        if rows.times.is_sorted():
            return _chunked(rows, names, channels, rule)
        rows = whole(rows)
    return (_dense if is_dense(rows) else _long)(rows, names, channels, rule)


def _empty(floored: pl.Series, names: list[str], channels: Sequence[Channel], rule: Harmonize) -> Gathered:
    times = clock_of(floored, rule)
    shape = (len(times), len(names))
    cells = (*shape, len(channels))
    counts = {c.name: {"values": 0, "missing_code": 0, "out_of_range": 0} for c in channels}
    return Gathered(times, room(cells, np.float32), room(cells, np.bool_), room(shape, np.bool_), {}, counts)


def _chunked(rows: Chunks, names: list[str], channels: Sequence[Channel], rule: Harmonize) -> Gathered:
    """From dense rows that come in the order of time, a few steps at a time."""
    out = _empty(rows.times.dt.truncate(rule.step), names, channels, rule)
    step = np.timedelta64(step_us(rule.step), "us")
    for frame in _whole_steps(rows.frames(), rule.step):
        frame = validate_dense(frame, [c.name for c in channels], len(names), "mend the reader")
        floored = times_of(frame["time"].dt.truncate(rule.step))
        first, last = max(floored[0], out.times[0]), min(floored[-1], out.times[-1])
        outside = first > last
        ends = np.array([floored[0], floored[-1] + step] if outside else [first, last + step])
        start, end = pl.Series(ends).dt.replace_time_zone("UTC").to_list()
        part = _dense(frame, names, channels, rule.model_copy(update={"start": start, "end": end}))
        found = part.report
        if outside:
            found = found | {"rows_outside_the_clock": int(part.seen.sum())}
        else:
            at = int((first - out.times[0]) / step)
            for name in ("values", "observed", "seen"):
                getattr(out, name)[at : at + len(part.times)] = getattr(part, name)
            for channel, counts in part.masked.items():
                for key, count in counts.items():
                    out.masked[channel][key] = out.masked[channel].get(key, 0) + count
        for key, count in found.items():
            out.report[key] = out.report.get(key, 0) + count
        release(out.values, out.observed, out.seen)
    return out


def _whole_steps(frames: Iterator[pl.DataFrame], step: str) -> Iterator[pl.DataFrame]:
    """The same rows, none of whose steps is cut in two."""
    held: pl.DataFrame | None = None
    for frame in frames:
        frame = frame if held is None else pl.concat([held, frame])
        floored = frame["time"].dt.truncate(step)
        done = int((floored < floored[-1]).sum())
        if done:
            yield frame[:done]
        held = frame[done:]
    if held is not None:
        yield held


def _long(rows: pl.DataFrame, names: list[str], channels: Sequence[Channel], rule: Harmonize) -> Gathered:
    """From rows (entity, time, channels)."""
    frame = rows.select(
        "time",
        pl.col([c.name for c in channels]),
        _code=pl.col("entity").cast(pl.Enum(names)).to_physical().cast(pl.Int64),
        _step=pl.col("time").dt.truncate(rule.step),
    )
    out = _empty(frame["_step"], names, channels, rule)
    backwards = pl.col("time").diff().over("_code").dt.total_microseconds() < 0
    out.report["rows"] = len(rows)
    out.report["rows_out_of_order"] = 0 if rows["time"].is_sorted() else int(frame.select(backwards.sum()).item())
    out.report["rows_off_the_clock"] = int((frame["_step"] != frame["time"]).sum())
    step = (times_of(frame["_step"]).astype(np.int64) - out.times[0].astype(np.int64)) // step_us(rule.step)
    inside = (step >= 0) & (step < len(out.times))
    known = {}
    for channel in channels:
        values = frame[channel.name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        known[channel.name] = observed_values(values, channel, out.masked[channel.name], inside)[1]
    frame = frame.with_columns(
        *(pl.when(pl.Series(k)).then(c).alias(c) for c, k in known.items()),
        _cell=pl.Series(step * len(names)) + pl.col("_code"),
    ).drop("_code")
    double = frame["_cell"].is_duplicated()
    out.report["rows_in_a_shared_step"] = int(double.sum())
    if out.report["rows_in_a_shared_step"] and refuses(channels, rule):
        bad = frame.filter(double).unique("_cell").sort(pl.col("_cell") % len(names), "_step")
        _refuse(
            out,
            rule,
            [f"{names[c % len(names)]} at {t:%Y-%m-%d %H:%M:%S}" for c, t in bad["_cell", "_step"].rows()],
        )
    if out.report["rows_in_a_shared_step"] or thins(channels):
        whole = frame.sort("_cell", "time", maintain_order=True).group_by("_cell", maintain_order=True)
        frame = whole.agg(
            *(one_of(c, rule) for c in channels), *(pl.col(c.name).count().alias(f"_{c.name}") for c in channels)
        )
    cell = frame["_cell"].to_numpy()
    inside = (cell >= 0) & (cell < out.seen.size)
    for channel in channels:
        if channel.at_least > 1:
            count = frame[f"_{channel.name}"].to_numpy()[inside]
            out.masked[channel.name]["too_few_rows"] = int(((count > 0) & (count < channel.at_least)).sum())
    out.report["rows_outside_the_clock"] = int((~inside).sum())
    out.seen.reshape(-1)[cell[inside]] = True
    for k, channel in enumerate(channels):
        with np.errstate(over="ignore"):
            column = frame[channel.name].fill_null(np.nan).to_numpy()[inside].astype(np.float32)
        there = np.isfinite(column)
        out.values.reshape(-1, len(channels))[cell[inside][there], k] = column[there]
        out.observed.reshape(-1, len(channels))[cell[inside][there], k] = True
    return out


def _dense(rows: pl.DataFrame, names: list[str], channels: Sequence[Channel], rule: Harmonize) -> Gathered:
    """From rows (time, a list per channel): nothing is sorted or looked up by entity, and little held twice."""
    width = int(rows[channels[0].name].list.len()[0]) if len(rows) else 0
    backwards = int((rows["time"].diff().dt.total_microseconds() < 0).sum())
    ordered = rows.sort("time", maintain_order=True) if backwards else rows
    floored = ordered["time"].dt.truncate(rule.step)
    out = _empty(floored, names, channels, rule)
    out.report.update(rows=0, rows_out_of_order=backwards * width, rows_off_the_clock=0, rows_in_a_shared_step=0)
    out.report["rows_outside_the_clock"] = 0
    off = (floored != ordered["time"]).to_numpy()
    step = (times_of(floored).astype(np.int64) - out.times[0].astype(np.int64)) // step_us(rule.step)
    first = np.flatnonzero(np.diff(step, prepend=step[0] - 1))
    bad: list[str] = []
    for i, j in _groups(first, len(step), width):
        lo, hi = int(first[i]), int(first[j]) if j < len(first) else len(step)
        part = ordered[lo:hi]
        here = dense_rows(part)
        present = np.ones((hi - lo, width), np.bool_) if here is None else here
        start = first[i:j] - lo
        rounds = _rounds(start, hi - lo)
        at = step[first[i:j]]
        inside = (at >= 0) & (at < len(out.times))
        out.report["rows"] += int(present.sum())
        out.report["rows_off_the_clock"] += int(present[off[lo:hi]].sum())
        seen = present
        if len(rounds) > 1:
            held = np.zeros((len(start), width), np.int64)
            for group, row in rounds:
                held[group] += present[row]
            shared = held > 1
            out.report["rows_in_a_shared_step"] += int(held[shared].sum())
            if refuses(channels, rule) and shared.any():
                moments = floored.gather(first[i:j])
                whole = np.logical_and.reduce(shared, axis=1)
                bad += [f"every entity at {t:%Y-%m-%d %H:%M:%S}" for t in moments.filter(pl.Series(whole))]
                some = np.argwhere(shared & ~whole[:, None]).tolist()
                bad += [f"{names[n]} at {moments[g]:%Y-%m-%d %H:%M:%S}" for g, n in some]
                continue
            seen = held > 0
        out.report["rows_outside_the_clock"] += int(seen[~inside].sum())
        target: Any = slice(int(at[0]), int(at[-1]) + 1)
        if at[-1] - at[0] + 1 != len(at) or not inside.all():
            target = at[inside]
        out.seen[target, :width] = seen if inside.all() else seen[inside]
        within = np.repeat(inside, np.diff(np.append(start, hi - lo)))
        for k, channel in enumerate(channels):
            exact = dense_values(part, channel.name)
            values, known = observed_values(exact, channel, out.masked[channel.name], within)
            if len(rounds) > 1 or channel.at_least > 1:
                values, known, few = merged(exact, known, present, rounds, j - i, channel, rule)
                if channel.at_least > 1:
                    lost = out.masked[channel.name].get("too_few_rows", 0)
                    out.masked[channel.name]["too_few_rows"] = lost + int(few[inside].sum())
            if not inside.all():
                values, known = values[inside], known[inside]
            out.observed[target, :width, k] = known
            if isinstance(target, slice):
                np.copyto(out.values[target, :width, k], values, where=known)
            else:
                out.values[target, :width, k] = np.where(known, values, 0)
    if bad:
        _refuse(out, rule, bad)
    return out


def _groups(first: Ints, rows: int, width: int) -> list[tuple[int, int]]:
    """Ranges of steps whose rows together hold not too many cells."""
    edges = np.unique(np.searchsorted(first, [s.start for s in stretches(rows, width)]))
    return list(zip(edges.tolist(), [*edges[1:].tolist(), len(first)], strict=True))


def _rounds(start: Ints, rows: int) -> Rounds:
    """For steps whose rows begin at `start`: which have a first row and where, a second and where, and so on."""
    size = np.diff(np.append(start, rows))
    most = int(size.max(initial=0))
    if (size == most).all():
        # Slices, so that nothing is copied.
        return [(slice(None), slice(p, None, most)) for p in range(most)]
    return [(np.flatnonzero(size > p), start[size > p] + p) for p in range(most)]


def _refuse(out: Gathered, rule: Harmonize, offenders: list[str]) -> None:
    raise ContractError(
        f"{out.report['rows_in_a_shared_step']} rows share an entity and a step of {rule.step}",
        expected="one row per entity and step",
        offenders=offenders,
        fix="remove them, state the channels' `aggregate`, or set harmonize.duplicates to 'first', 'last' or 'mean'",
    )
