"""Scalers fitted on the training part, kept as a small table beside the data they never touch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.large import release, rows_at_once
from stfm_pipeline.tables import ROWS_AT_ONCE, Signal

QUARTILES = (0.25, 0.5, 0.75)
IQR_TO_SIGMA = 1 / 1.349


def fit(
    signal: Signal,
    train: slice,
    per: Literal["channel", "entity"] = "channel",
    scale: Literal["zscore", "minmax", "robust"] = "zscore",
) -> pl.DataFrame:
    """What is taken away from observed cells and what they are then divided by, a row per entity and channel.

    In data units, over observed training cells: mean and standard deviation, or with `minmax` the smallest value and
    the range, or with `robust` the median and the interquartile range as a deviation. Per channel, all entities share
    a row's values; per entity, a series without two training values falls back on its channel. Nothing is divided by
    0: a constant series gets a scale of 1.
    """
    values, observed = signal.values[train], signal.observed[train]
    found = {"zscore": _zscore, "minmax": _minmax, "robust": _robust}[scale](values, observed)
    total, offset, width = (whole for _, whole in found)
    if per == "entity":
        total, own, spread = (series for series, _ in found)
        offset, width = np.where(total < 2, offset, own), np.where(total < 2, width, spread)
    width = np.where(width > 1e-8, width, 1.0)
    n, c = len(signal.entities), len(signal.channels)
    flat = [np.broadcast_to(a, (n, c)).ravel() for a in (offset, width, total)]
    return pl.DataFrame(
        {
            "entity": np.repeat(np.array(signal.entities), c),
            "channel": np.tile(np.array(signal.channels), n),
            "offset": flat[0],
            "scale": flat[1],
            "count": flat[2].astype(np.int64),
        }
    )


Floats = NDArray[np.float64]
# Of each series (n, c), and of each channel (c,).
Both = tuple[Floats, Floats]


def _zscore(values: NDArray[np.float32], observed: NDArray[np.bool_]) -> tuple[Both, Both, Both]:
    count, mean, square = _moments(values, observed)
    centre, deviation, total = _together(count, mean, square)
    return (count, total), (mean, centre), (np.sqrt(square / np.maximum(count, 1)), deviation)


def _minmax(values: NDArray[np.float32], observed: NDArray[np.bool_]) -> tuple[Both, Both, Both]:
    shape = values.shape[1:]
    count, low, high = np.zeros(shape), np.full(shape, np.inf), np.full(shape, -np.inf)
    for block, known in _blocks(values, observed):
        count += known.sum(axis=0)
        low = np.minimum(low, np.where(known, block, np.inf).min(axis=0))
        high = np.maximum(high, np.where(known, block, -np.inf).max(axis=0))
    whole, top = low.min(axis=0), high.max(axis=0)
    low, high = np.where(count > 0, low, 0), np.where(count > 0, high, 0)
    whole, top = (np.where(count.sum(axis=0) > 0, edge, 0) for edge in (whole, top))
    return (count, count.sum(axis=0)), (low, whole), (high - low, top - whole)


def _robust(values: NDArray[np.float32], observed: NDArray[np.bool_]) -> tuple[Both, Both, Both]:
    n, c = values.shape[1:]
    quartiles, whole = np.zeros((3, n, c)), np.zeros((3, c))
    for k in range(c):
        for i in range(n):
            if len(series := values[:, i, k][observed[:, i, k]]):
                quartiles[:, i, k] = np.quantile(series.astype(np.float64), QUARTILES)
        if len(series := values[..., k][observed[..., k]]):
            whole[:, k] = np.quantile(series.astype(np.float64), QUARTILES)
    count = observed.sum(axis=0).astype(np.float64)
    spread, together = ((q[2] - q[0]) * IQR_TO_SIGMA for q in (quartiles, whole))
    return (count, count.sum(axis=0)), (quartiles[1], whole[1]), (spread, together)


def _moments(values: NDArray[np.float32], observed: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Count, mean and sum of squared deviations per series (n, c), in double precision, a few steps at a time."""
    shape = values.shape[1:]
    count, total, square = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for block, known in _blocks(values, observed):
        count += known.sum(axis=0)
        total += np.where(known, block, 0).sum(axis=0, dtype=np.float64)
    mean = total / np.maximum(count, 1)
    for block, known in _blocks(values, observed):
        square += (np.where(known, block - mean, 0) ** 2).sum(axis=0)
    return count, mean, square


def _blocks(values: Any, observed: Any) -> Iterator[tuple[Any, Any]]:
    size = min(ROWS_AT_ONCE, rows_at_once(values[0].size if len(values) else 0))
    for i in range(0, len(values), size):
        yield values[i : i + size], observed[i : i + size]
        release(values, observed)


def _together(count: Floats, mean: Floats, square: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean, deviation and count per channel over all its series (Chan et al., 1979)."""
    n = count.sum(axis=0)
    safe = np.maximum(n, 1)
    centre = (count * mean).sum(axis=0) / safe
    spread = (square + count * (mean - centre) ** 2).sum(axis=0) / safe
    return centre, np.sqrt(spread), n


def arrays(table: pl.DataFrame, n: int, c: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Offset and scale as (n, c) arrays."""
    offset, scale = (table[k].to_numpy().reshape(n, c).astype(np.float32) for k in ("offset", "scale"))
    return offset, scale
