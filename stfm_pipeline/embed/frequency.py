"""How entities swing: power spectrum and dominant periods of the training part."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from stfm_pipeline.tables import Signal

ENTITIES_AT_ONCE = 256


def dominant_periods(signal: Signal, train: slice, k: int) -> pl.DataFrame:
    """The `k` strongest periods per entity and channel: `rank`, `period` in steps, `power` as a share of the variance.

    Periodogram of the training part with unobserved cells at the series' mean; series that never vary have no rows.
    """
    values, observed = signal.values[train], signal.observed[train]
    t, n, c = values.shape
    k = min(k, t // 2)
    best, top = np.zeros((k, n, c), np.int64), np.zeros((k, n, c))
    for i in range(0, n, ENTITIES_AT_ONCE):
        part = slice(i, i + ENTITIES_AT_ONCE)
        best[:, part], top[:, part] = _strongest(values[:, part], observed[:, part], k)
    period = t / (best + 1)
    shape = (k, n, c)
    frame = pl.DataFrame(
        {
            "entity": np.broadcast_to(np.array(signal.entities)[None, :, None], shape).ravel(),
            "channel": np.broadcast_to(np.array(signal.channels)[None, None, :], shape).ravel(),
            "rank": np.broadcast_to(np.arange(1, k + 1, dtype=np.int32)[:, None, None], shape).ravel(),
            "period": period.ravel(),
            "power": top.ravel(),
        }
    )
    return frame.filter(pl.col("power") > 0).sort("entity", "channel", "rank")


def _strongest(values: Any, observed: Any, k: int) -> tuple[Any, Any]:
    count = np.maximum(observed.sum(axis=0), 1)
    mean = np.where(observed, values, 0).sum(axis=0, dtype=np.float64) / count
    power = np.abs(np.fft.rfft(np.where(observed, values - mean, 0), axis=0)[1:]) ** 2
    total = power.sum(axis=0)
    share = power / np.where(total > 0, total, 1)
    if 0 < k < len(share):
        # Only the k largest need to be in order; of equal shares the longer period comes first.
        near = np.sort(np.argpartition(-share, k - 1, axis=0)[:k], axis=0)
    else:
        near = np.broadcast_to(np.arange(len(share)).reshape(-1, 1, 1), share.shape)
    height = np.take_along_axis(share, near, axis=0)
    order = np.argsort(-height, axis=0, kind="stable")
    return np.take_along_axis(near, order, axis=0), np.take_along_axis(height, order, axis=0)
