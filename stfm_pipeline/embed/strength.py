"""How seasonal a series is: strength of season and trend (Wang, Smith and Hyndman, 2006; FPP3, section 4.3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.floating]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

PASSES = 3
LEAST_FREE = 1 / 3
BLOCK_CELLS = 1_000_000


def strengths(
    values: Values, observed: Mask, period: int, phase: NDArray[np.integer] | None = None
) -> tuple[Floats, Floats]:
    """Strength of season and of trend, each (n, c): max(0, 1 - Var(R) / Var(S + R)) and the same with T for S.

    Additive decomposition X = T + S + R over observed cells only: S is the mean of each phase, T a centred moving mean
    one season long of what S leaves. Each is fitted to what the other leaves, three times over, so that gaps and the
    ends of the series do not turn season into trend. Var(S + R) is unbiased: what T and S can bend of the remainder is
    counted for the remainder alone, so that noise scores about 0 and a season its share of the variance however few
    seasons there are, however sparsely observed.

    values (t, n, c). `phase` (t,) in [0, period) says where in its season a step lies, for seasons of civil time;
    without it steps are counted. NaN where a series never varies, or is observed for less than two seasons or so
    sparsely that season and trend alone could draw it.
    """
    t, n, c = values.shape
    phase = np.arange(t) % period if phase is None else np.asarray(phase)
    out = np.full((2, n * c), np.nan)
    if 1 < period <= t // 2:
        # A few series at a time, so that memory does not grow with entities.
        width = max(1, BLOCK_CELLS // t)
        for start in range(0, n * c, width):
            block = slice(start, start + width)
            series, mask = values.reshape(t, n * c)[:, block], observed.reshape(t, n * c)[:, block]
            out[:, block] = _strengths(series, mask, period, phase)
    return out[0].reshape(n, c), out[1].reshape(n, c)


def _strengths(values: Values, mask: Mask, period: int, phase: NDArray[np.integer]) -> tuple[Floats, Floats]:
    weight = mask.astype(np.float64)
    count = weight.sum(axis=0)
    x = np.where(mask, values, 0).astype(np.float64)
    x -= weight * (x.sum(axis=0) / np.maximum(count, 1))
    trend, season, seen = np.zeros_like(x), np.zeros_like(x), np.ones_like(x)
    for _ in range(PASSES):
        season = _phase_means(x - weight * trend, weight, phase, period)
        trend, seen = _moving_mean(x - weight * season, weight, period)
    rest = weight * (x - trend - season)
    # What each component can bend: one number per phase, and the trace of the moving mean as a matrix.
    phases = (_by_phase(weight, phase, period) > 0).sum(axis=0)
    bends = (weight / np.maximum(seen, 1)).sum(axis=0)
    free = count - phases - bends
    remainder = (rest**2).sum(axis=0) / np.maximum(free, 1)
    size = (x**2).sum(axis=0)
    # What is left of a constant by rounding is not variation.
    known = (count >= 2 * period) & (free > LEAST_FREE * count) & (size > 1e-12 * np.maximum(count, 1))
    out = []
    for part, other in ((season, bends), (trend, phases)):
        # The sum holds the component's own variance in full, the remainder's less what the other component bends.
        own = (_sum_of_squares(part + rest, weight, count) - (count - other) * remainder) / np.maximum(count, 1)
        own = np.where(own > 1e-10 * size / np.maximum(count, 1), own, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            out.append(np.where(known, np.where(own > 0, own / (own + remainder), 0.0), np.nan))
    return out[0], out[1]


def _sum_of_squares(x: Floats, weight: Floats, count: Floats) -> Floats:
    mean = (weight * x).sum(axis=0) / np.maximum(count, 1)
    return np.asarray((weight * (x - mean) ** 2).sum(axis=0))


def _by_phase(x: Floats, phase: NDArray[np.integer], period: int) -> Floats:
    """Sums (period, m) of the rows of each phase."""
    out = np.zeros((period, x.shape[1]))
    order = np.argsort(phase, kind="stable")
    present, first = np.unique(phase[order], return_index=True)
    out[present] = np.add.reduceat(x[order], first, axis=0)
    return out


def _phase_means(x: Floats, weight: Floats, phase: NDArray[np.integer], period: int) -> Floats:
    """The mean of each step's phase (t, m), its own mean over observed cells taken out."""
    means = _by_phase(x, phase, period) / np.maximum(_by_phase(weight, phase, period), 1)
    season = means[phase]
    return np.asarray(season - (weight * season).sum(axis=0) / np.maximum(weight.sum(axis=0), 1))


def _moving_mean(x: Floats, weight: Floats, period: int) -> tuple[Floats, Floats]:
    """Centred mean over one period of observed cells (t, m) and their number; shorter at the ends, 0 where none is."""
    half = period // 2
    sums = [np.concatenate([np.zeros((1, a.shape[1])), np.cumsum(a, axis=0)]) for a in (x, weight)]
    t = len(x)
    low, high = np.maximum(np.arange(t) - half, 0), np.minimum(np.arange(t) + half + 1, t)
    total, seen = (s[high] - s[low] for s in sums)
    return np.asarray(np.where(seen > 0.5, total / np.maximum(seen, 1), 0)), seen
