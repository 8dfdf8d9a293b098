"""How entities swing: power spectrum and dominant periods of the training part."""

from __future__ import annotations

import numpy as np
import polars as pl

from stfm_pipeline.tables import Signal


def dominant_periods(signal: Signal, train: slice, k: int) -> pl.DataFrame:
    """The `k` strongest periods per entity and channel: `rank`, `period` in steps, `power` as a share of the variance.

    Periodogram of the training part with unobserved cells at the series' mean; series that never vary have no rows.
    """
    values = signal.values[train].astype(np.float64)
    observed = signal.observed[train]
    t = len(values)
    count = np.maximum(observed.sum(axis=0), 1)
    mean = np.where(observed, values, 0).sum(axis=0) / count
    centred = np.where(observed, values - mean, 0)
    power = np.abs(np.fft.rfft(centred, axis=0)[1:]) ** 2
    total = power.sum(axis=0)
    share = power / np.where(total > 0, total, 1)
    k = min(k, len(power))
    best = np.argsort(-share, axis=0, kind="stable")[:k]
    top = np.take_along_axis(share, best, axis=0)
    period = t / (best + 1)
    n, c = len(signal.entities), len(signal.channels)
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
