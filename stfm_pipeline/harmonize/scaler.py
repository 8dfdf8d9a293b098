"""z-score scalers fitted on the training part, kept as a small table beside the data they never touch."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.tables import Signal


def fit(signal: Signal, train: slice, per: Literal["channel", "entity"] = "channel") -> pl.DataFrame:
    """Mean and standard deviation in data units over observed training cells, one row per entity and channel.

    Per channel, all entities share a row's values; per entity, a series without training values falls back on its
    channel. A constant series gets a deviation of 1.
    """
    values = signal.values[train].astype(np.float64)
    observed = signal.observed[train]
    whole = _moments(values, observed, (0, 1))
    mean, std, count = whole
    if per == "entity":
        mean, std, count = _moments(values, observed, (0,))
        thin = count < 2
        mean, std = np.where(thin, whole[0], mean), np.where(thin, whole[1], std)
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


def _moments(
    values: NDArray[np.float64], observed: NDArray[np.bool_], axes: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    count = observed.sum(axis=axes).astype(np.float64)
    safe = np.maximum(count, 1)
    mean = np.where(observed, values, 0).sum(axis=axes) / safe
    square = np.where(observed, (values - mean) ** 2, 0).sum(axis=axes) / safe
    std = np.sqrt(square)
    return mean, np.where(std > 1e-8, std, 1.0), count


def arrays(table: pl.DataFrame, n: int, c: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation as (n, c) arrays."""
    mean = table["mean"].to_numpy().reshape(n, c).astype(np.float32)
    std = table["std"].to_numpy().reshape(n, c).astype(np.float32)
    return mean, std
