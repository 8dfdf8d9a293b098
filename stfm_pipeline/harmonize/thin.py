"""Which series there is something to learn from: land is never observed, and some sensors hardly are."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.large import passes
from stfm_pipeline.tables import Signal

Mask = NDArray[np.bool_]


def table(signal: Signal, train: slice, share: float) -> pl.DataFrame:
    """Per entity and channel the share of the training part that is `observed`, and whether the series is `used`.

    It is where it has a value in training at all, and not less than `share` of them.
    """
    seen = signal.observed[train].mean(axis=0)
    n, c = seen.shape
    return pl.DataFrame(
        {
            "entity": np.repeat(np.array(signal.entities), c),
            "channel": np.tile(np.array(signal.channels), n),
            "observed": seen.ravel(),
            "used": ((seen > 0) & (seen >= share)).ravel(),
        }
    )


def mask(values: NDArray[np.float32], observed: Mask, used: pl.DataFrame) -> NDArray[np.int64]:
    """Mask series (t, n, c) that are not used in place; how many values of each channel that were."""
    out = ~used["used"].to_numpy().reshape(observed.shape[1:])
    counts = np.zeros(observed.shape[2], np.int64)
    for part in passes(len(values), out.size, values, observed) if out.any() else ():
        there = observed[part] & out
        if there.any():
            counts += there.sum(axis=(0, 1))
            values[part][there] = 0
            observed[part][there] = False
    return counts


def few(used: pl.DataFrame) -> dict[str, list[str]]:
    """Entities by channel that are observed too seldom to be used."""
    thin = used.filter(~pl.col("used"), pl.col("observed") > 0)
    names = used["channel"].unique(maintain_order=True)
    return {c: thin.filter(channel=c)["entity"].to_list() for c in names}
