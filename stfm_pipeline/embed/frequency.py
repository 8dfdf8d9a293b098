"""How entities swing: dominant periods and power spectral density of the training part."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.large import passes
from stfm_pipeline.tables import DAY_US, Signal

# A segment of Welch's holds this many of the longest season, so that the season has frequencies of its own.
SEASONS_OF_A_SEGMENT = 4
SHORTEST_SEGMENT = 256


def dominant_periods(signal: Signal, train: slice, k: int, clip: int | None = None) -> pl.DataFrame:
    """The `k` strongest periods per entity and channel: `rank`, `period` in steps, `power` as a share of the variance.

    Periodogram of the training part with unobserved cells at the series' mean, or the mean one of its clips of `clip`
    steps; series that never vary have no rows.
    """
    values, observed = signal.values[train], signal.observed[train]
    t, n, c = values.shape
    length = clip or t
    k = min(k, length // 2)
    best, top = np.zeros((k, n, c), np.int64), np.zeros((k, n, c))
    for part in passes(n, t * c, values, observed):
        best[:, part], top[:, part] = _strongest(values[:, part], observed[:, part], k, length)
    period = length / (best + 1)
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


def _strongest(values: Any, observed: Any, k: int, length: int) -> tuple[Any, Any]:
    count = np.maximum(observed.sum(axis=0), 1)
    mean = np.where(observed, values, 0).sum(axis=0, dtype=np.float64) / count
    around = np.where(observed, values - mean, 0).reshape(-1, length, *values.shape[1:])
    power = (np.abs(np.fft.rfft(around, axis=1)[:, 1:]) ** 2).mean(axis=0)
    total = power.sum(axis=0)
    # What a Fourier transform leaves of clips that are constant, each by itself, is rounding.
    varies = total > 1e-20 * length**2 * (around**2).mean(axis=(0, 1))
    share = np.where(varies, power / np.where(varies, total, 1), 0)
    if 0 < k < len(share):
        # Only the k largest need to be in order; of equal shares the longer period comes first.
        near = np.sort(np.argpartition(-share, k - 1, axis=0)[:k], axis=0)
    else:
        near = np.broadcast_to(np.arange(len(share)).reshape(-1, 1, 1), share.shape)
    height = np.take_along_axis(share, near, axis=0)
    order = np.argsort(-height, axis=0, kind="stable")
    return np.take_along_axis(near, order, axis=0), np.take_along_axis(height, order, axis=0)


def density(signal: Signal, train: slice, bands: int, season: int, clip: int | None = None) -> pl.DataFrame:
    """Power spectral density per entity, channel and band: `low` to `high` in cycles per day, `power` as log10.

    Welch's method (1967) over the training part: Hann windows that overlap by half and hold four of the longest season
    (in steps), power in squared units times days, its mean taken in each band. Bands grow with frequency by one factor
    up to half the sampling rate and hold at least one frequency each, so that a short series has fewer. Unobserved
    cells lie at the series' mean, and the density is divided by the observed share: a gap is no calm. Series that never
    vary have no power. Each clip of `clip` steps is a window. Rows follow the order of entities, channels and bands.
    """
    values, observed = signal.values[train], signal.observed[train]
    t, n, c = values.shape
    length = clip or min(t, max(SEASONS_OF_A_SEGMENT * season, SHORTEST_SEGMENT))
    overlap = 0 if clip else length // 2
    rate = DAY_US / signal.step_us
    edges = np.unique(np.round(np.geomspace(1, length // 2 + 1, bands + 1)).astype(int))
    power = np.empty((n, c, len(edges) - 1))
    for part in passes(n, t * c, values, observed):
        power[part] = np.moveaxis(_welch(values[:, part], observed[:, part], length, overlap, rate, edges), 0, -1)
    shape = power.shape
    channel = pl.Series(signal.channels, dtype=pl.String)
    return pl.DataFrame(
        {
            "entity": pl.Series(signal.entities, dtype=pl.String).gather(np.repeat(np.arange(n), c * shape[2])),
            "channel": channel.gather(np.tile(np.repeat(np.arange(c), shape[2]), n)),
            "band": np.tile(np.arange(1, shape[2] + 1, dtype=np.int32), n * c),
            "low": np.tile(edges[:-1] * rate / length, n * c),
            "high": np.tile((edges[1:] - 1) * rate / length, n * c),
            "power": power.ravel(),
        }
    ).with_columns(pl.col("power").fill_nan(None))


def _welch(values: Any, observed: Any, length: int, overlap: int, rate: float, edges: Any) -> Any:
    """Log density (band, n, c), NaN of series that never vary."""
    from scipy.signal import welch

    share = observed.mean(axis=0)
    mean = np.where(observed, values, 0).mean(axis=0, dtype=np.float64) / np.maximum(share, 1e-9)
    around = np.where(observed, values - mean, 0)
    # What single precision leaves of a constant is not variation.
    varies = (around**2).mean(axis=0) > 1e-12 * mean**2
    found = welch(around, rate, nperseg=length, noverlap=overlap, axis=0)[1] / np.maximum(share, 1e-9)
    varies &= found.sum(axis=0) * rate / length > 1e-12 * (around**2).mean(axis=0)
    means = np.add.reduceat(found[: edges[-1]], edges[:-1], axis=0) / np.diff(edges)[:, None, None]
    with np.errstate(divide="ignore"):
        level = np.log10(means)
    return np.where(varies & np.isfinite(level), level, np.nan)


def standardised(density: pl.DataFrame, n: int) -> NDArray[np.float32]:
    """(n, k) log power, a column per channel and band, as z-scores over entities; 0 where there is none."""
    power = density["power"].fill_null(np.nan).to_numpy().reshape(n, -1)
    known = np.isfinite(power)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, power, 0).sum(axis=0) / count
    spread = np.sqrt(np.where(known, (power - mean) ** 2, 0).sum(axis=0) / count)
    return np.where(known, (power - mean) / np.where(spread > 1e-6, spread, 1), 0).astype(np.float32)
