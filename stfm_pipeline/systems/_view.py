"""Train and val of a dataset in memory, as much of them as a quick measurement needs, and climatologies of them.

Gate and test are never read. Shapes: `t` time, `p` pool of series that are looked at, `s` series of it that are
forecast, `z` civil zone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.embed.temporal import calendar, steps_per_day
from stfm_pipeline.harmonize import scaler
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.tables import step_us, times_of

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Index = NDArray[np.int64]

SERIES, POOL, CELLS = 64, 512, 8_000_000
NEIGHBOURS = 8
MIN_COUNT = 3


@dataclass(frozen=True)
class View:
    """Train and val in memory, standardised, 0 where unobserved. `target` (s,) are positions in the pool (p,).

    `phases` says per season where in it each step lies in each civil zone (t, z), `zone` (p,) whose zone is which.
    """

    values: NDArray[np.float32]
    observed: Mask
    phases: dict[int, Index]
    zone: Index
    train: slice
    val: slice
    target: Index
    weight: Floats | None
    sample: str


def load(spec: DatasetSpec, lake: Lake, stage: Stage) -> View:
    """The rows of train and val, of few enough series and steps to stay small; `sample` says what was left out."""
    entities = lake.read(stage, "entities")
    names = entities["entity"].to_list()
    n, c = len(names), len(spec.channels)
    parts = {p: slice(*bounds) for p, bounds in stage.facts["parts"].items()}
    stop, boundary = parts["val"].stop, parts["val"].start
    target = evenly(n, SERIES)
    edges = _edges(lake.read(stage, "edges"), names)
    pool = _pool(n, target, edges)
    start = max(parts["train"].start, stop - CELLS // (len(pool) * c))
    start = min(start, max(parts["train"].start, boundary - 2 * (spec.task.look_back + spec.task.horizon)))
    start -= start % (spec.task.clip or 1)
    values = np.zeros((stop - start, len(pool), c), np.float32)
    observed = np.zeros(values.shape, np.bool_)
    times = np.zeros(len(values), "datetime64[us]")
    cells = (pool[:, None] * c + np.arange(c)).ravel()
    mean, std = (a[pool] for a in scaler.arrays(lake.read(stage, "scaler"), n, c))
    for at, block in lake.rows(stage, "signal", ["time", "values", "observed"], start, stop):
        rows = at - start
        times[rows] = times_of(block["time"])
        seen, raw = (
            block[k].explode(empty_as_null=False).to_numpy().reshape(len(at), -1)[:, cells]
            for k in ("observed", "values")
        )
        observed[rows] = seen.reshape(-1, len(pool), c)
        values[rows] = np.where(observed[rows], (raw.reshape(-1, len(pool), c) - mean) / std, 0)
    weight = None if edges is None else np.asarray(edges[target][:, pool].todense(), np.float64)
    position = np.searchsorted(pool, target)
    train = slice(0, parts["train"].stop - start)
    said = [f"the last {train.stop:,} steps of train" if start > parts["train"].start else f"{train.stop:,} steps"]
    said += [f"{len(target)} of {n:,} series evenly apart"] if len(target) < n else [f"{n} series"]
    zones = sorted(set(entities["zone"].to_list()))
    return View(
        values,
        observed,
        _phases(spec, times, zones),
        np.array([zones.index(z) for z in entities["zone"].to_list()])[pool],
        train,
        slice(boundary - start, stop - start),
        position,
        weight,
        ", ".join(said),
    )


def evenly(n: int, most: int) -> Index:
    """At most `most` of `n` positions, first and last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def _edges(table: pl.DataFrame, names: list[str]) -> Any:
    """Weights between different entities (n, n), sparse, the stronger of both directions; None where there are none."""
    from scipy.sparse import coo_array

    table = table.filter(pl.col("source") != pl.col("target"))
    if not len(table):
        return None
    code = {e: i for i, e in enumerate(names)}
    ends = [table[k].replace_strict(code, return_dtype=pl.Int64).to_numpy() for k in ("source", "target")]
    one_way = coo_array((table["weight"].to_numpy(), tuple(ends)), shape=(len(names), len(names))).tocsr()
    return one_way.maximum(one_way.T).tocsr()


def _pool(n: int, target: Index, edges: Any) -> Index:
    """Every entity where they are few; else the targets with their strongest neighbours, or others evenly apart."""
    if n <= POOL:
        return np.arange(n)
    if edges is None:
        return np.union1d(target, evenly(n, POOL))
    near = [
        edges.indices[a:b][np.argsort(-edges.data[a:b], kind="stable")[:NEIGHBOURS]]
        for a, b in zip(edges.indptr[target], edges.indptr[target + 1], strict=True)
    ]
    return np.unique(np.concatenate([target, *near])).astype(np.int64)


def _phases(spec: DatasetSpec, times: NDArray[Any], zones: list[str]) -> dict[int, Index]:
    """Where in each season a step lies (t, z): by civil time for days and weeks, else by counting."""
    step = step_us(spec.harmonize.step)
    day = steps_per_day(step)
    civil = (
        calendar(times, zones, step, [None] * len(zones))
        .select("tod", "dow")
        .to_numpy()
        .reshape(len(times), len(zones), 2)
    )
    out: dict[int, Index] = {}
    for season in sorted({s for s in spec.seasons if s > 1}):
        if season in (day, 7 * day):
            phase = civil[..., 0] + (civil[..., 1] * day if season == 7 * day else 0)
        else:
            phase = np.broadcast_to(np.arange(len(times))[:, None] % season, civil.shape[:2])
        out[season] = phase.astype(np.int64)
    return out


def climatologies(view: View, k: int) -> list[NDArray[np.float32]]:
    """Training means (t, p): of the series, then of each season's phase, shortest first, each falling back on the last.

    A training cell's own value is left out of its mean, or the climatology would know the answers it is fitted on.
    """
    levels: list[NDArray[np.float32]] = []
    for size, phase in _levels(view):
        level = np.zeros_like(view.values[..., k])
        # A few series at a time: sums are wide.
        for i in range(0, len(view.zone), SERIES):
            part = slice(i, i + SERIES)
            x, own = view.values[:, part, k], view.observed[:, part, k].astype(np.float32)
            own[view.train.stop :] = 0
            cell = (phase[:, view.zone[part]] * x.shape[1] + np.arange(x.shape[1])).ravel()
            total, count = (
                np.bincount(cell, a.ravel(), size * x.shape[1])[cell].reshape(x.shape) for a in (own * x, own)
            )
            mean = (total - own * x) / np.maximum(count - own, 1)
            level[:, part] = _or_below(mean, count - own, [below[:, part] for below in levels])
        levels.append(level)
    return levels


def medians(view: View, k: int) -> list[NDArray[np.float32]]:
    """The same with medians, of the series that are forecast alone (t, s), every training cell included."""
    x, seen = view.values[:, view.target, k], view.observed[: view.train.stop, view.target, k]
    levels: list[NDArray[np.float32]] = []
    for size, phase in _levels(view):
        middle, count = np.zeros_like(x), np.zeros(x.shape, np.int64)
        for j, z in enumerate(view.zone[view.target]):
            known = np.flatnonzero(seen[:, j])
            at = phase[known, z]
            ordered = np.append(x[known, j][np.lexsort((x[known, j], at))], np.float32(0))
            each = np.bincount(at, minlength=size)
            first = np.cumsum(each) - each
            table = (ordered[first + np.maximum(each - 1, 0) // 2] + ordered[first + each // 2]) / 2
            middle[:, j], count[:, j] = table[phase[:, z]], each[phase[:, z]]
        levels.append(_or_below(middle, count, levels))
    return levels


def _levels(view: View) -> list[tuple[int, Index]]:
    """Length and phase (t, z) of every level of a climatology: none, then each season."""
    none = np.zeros((len(view.values), int(view.zone.max()) + 1), np.int64)
    return [(1, none), *view.phases.items()]


def _or_below(level: Any, count: Any, below: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    fallback: Any = below[-1] if below else np.float32(0)
    return np.asarray(np.where(count >= (MIN_COUNT if below else 1), level, fallback), np.float32)
