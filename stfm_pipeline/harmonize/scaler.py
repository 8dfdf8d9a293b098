"""z-score scalers fitted on the training part, kept as a small table beside the data they never touch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.tables import ROWS_AT_ONCE, Signal


def fit(signal: Signal, train: slice, per: Literal["channel", "entity"] = "channel") -> pl.DataFrame:
    """Mean and standard deviation in data units over observed training cells, one row per entity and channel.

    Per channel, all entities share a row's values; per entity, a series without training values falls back on its
    channel. A constant series gets a deviation of 1.
    """
    count, mean, square = _moments(signal.values[train], signal.observed[train])
    whole = _together(count, mean, square)
    if per == "entity":
        thin = count < 2
        std = np.sqrt(square / np.maximum(count, 1))
        mean, std = np.where(thin, whole[0], mean), np.where(thin, whole[1], std)
    else:
        mean, std, count = whole
    std = np.where(std > 1e-8, std, 1.0)
    n, c = len(signal.entities), len(signal.channels)
    flat = [np.broadcast_to(a, (n, c)).ravel() for a in (mean, std, count)]
    return pl.DataFrame(
        {
            "entity": np.repeat(np.array(signal.entities), c),
            "channel": np.tile(np.array(signal.channels), n),
            "mean": flat[0],
            "std": flat[1],
            "count": flat[2].astype(np.int64),
        }
    )


Floats = NDArray[np.float64]


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
    for i in range(0, len(values), ROWS_AT_ONCE):
        yield values[i : i + ROWS_AT_ONCE], observed[i : i + ROWS_AT_ONCE]


def _together(count: Floats, mean: Floats, square: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean, deviation and count per channel over all its series (Chan et al., 1979)."""
    n = count.sum(axis=0)
    safe = np.maximum(n, 1)
    centre = (count * mean).sum(axis=0) / safe
    spread = (square + count * (mean - centre) ** 2).sum(axis=0) / safe
    return centre, np.sqrt(spread), n


def arrays(table: pl.DataFrame, n: int, c: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation as (n, c) arrays."""
    mean = table["mean"].to_numpy().reshape(n, c).astype(np.float32)
    std = table["std"].to_numpy().reshape(n, c).astype(np.float32)
    return mean, std
