"""What is usual at a time of day or in a month: training means of standardised values, per series."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.rules import Phase
from stfm_pipeline.harmonize import scaler
from stfm_pipeline.tables import DAY_US, Signal, stretches

FEW = 5
MONTHS = 12
Floats = NDArray[np.float64]


def fit(
    signal: Signal, train: slice, scales: pl.DataFrame, zones: pl.Series, phases: tuple[Phase, ...]
) -> pl.DataFrame:
    """A row per phase, entity and channel: `mean` of the observed training values, standardised, and their `count`.

    A phase is a time of day (`tod`, a step of the civil day), a `month` from 0, or both; what does not count is 0.
    `zones` are the entities' civil ones. With fewer than FEW values the mean is shrunk to that of the series, all the
    way where there are none.
    """
    n, c = len(signal.entities), len(signal.channels)
    shape = shape_of(phases, signal.step_us)
    offset, width = scaler.arrays(scales, n, c)
    mean, count = np.zeros((*shape, n, c)), np.zeros((*shape, n, c), np.int64)
    flat = (shape[0] * shape[1], n, c)
    for zone in zones.unique().sort():
        code = codes(signal.times[train], zone, phases, signal.step_us)
        nodes = np.flatnonzero((zones == zone).to_numpy())
        for part in stretches(len(nodes), len(code) * c):
            at = nodes[part]
            seen = signal.observed[train][:, at]
            standard = np.where(seen, (signal.values[train][:, at].astype(np.float64) - offset[at]) / width[at], 0)
            total, there = (_by_code(a, code, flat[0]) for a in (standard, seen))
            mean.reshape(flat)[:, at] = _shrunk(total, there)
            count.reshape(flat)[:, at] = there
    return _table(mean, count, signal)


def shape_of(phases: tuple[Phase, ...], step: int) -> tuple[int, int]:
    """How many times of day and months there are, 1 of what is no phase."""
    return (DAY_US // step if "tod" in phases else 1, MONTHS if "month" in phases else 1)


def codes(times: NDArray[np.datetime64], zone: str, phases: tuple[Phase, ...], step: int) -> NDArray[np.int64]:
    """The phase (t,) of each step start: time of day, then month."""
    moments = pl.Series("t", times).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    civil = moments.dt.convert_time_zone(zone).dt.replace_time_zone(None)
    code = np.zeros(len(times), np.int64)
    if "tod" in phases:
        code += ((civil - civil.dt.truncate("1d")).dt.total_microseconds() // step).to_numpy()
    if "month" in phases:
        code = code * MONTHS + civil.dt.month().to_numpy() - 1
    return code


def _by_code(values: Any, code: NDArray[np.int64], size: int) -> Any:
    """Sums of values (t, n, c) by code (size, n, c)."""
    order = np.argsort(code, kind="stable")
    found, first = np.unique(code[order], return_index=True)
    out = np.zeros((size, *values.shape[1:]))
    if len(first):
        out[found] = np.add.reduceat(values[order], first, axis=0, dtype=np.float64)
    return out


def _shrunk(total: Floats, count: Floats) -> Floats:
    whole = total.sum(axis=0) / np.maximum(count.sum(axis=0), 1)
    share = np.minimum(count / FEW, 1)
    return np.asarray(share * (total / np.maximum(count, 1)) + (1 - share) * whole)


def _table(mean: Floats, count: NDArray[np.int64], signal: Signal) -> pl.DataFrame:
    days, months, n, c = mean.shape
    index = np.arange(days * months)
    return pl.DataFrame(
        {
            "tod": np.repeat(index // months, n * c).astype(np.int32),
            "month": np.repeat(index % months, n * c).astype(np.int32),
            "entity": np.tile(np.repeat(np.array(signal.entities), c), len(index)),
            "channel": np.tile(np.array(signal.channels), len(index) * n),
            "mean": mean.ravel(),
            "count": count.ravel(),
        }
    )


def array(table: pl.DataFrame, n: int, c: int) -> NDArray[np.float32]:
    """The means by time of day, month, entity and channel."""
    sizes = [int(table[k].max()) + 1 for k in ("tod", "month")]  # type: ignore[arg-type]
    return table["mean"].to_numpy().reshape(*sizes, n, c).astype(np.float32)
