"""Pearson's correlation between series with gaps, a block of series at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stfm_pipeline.datasets.rules import Correlation
from stfm_pipeline.errors import ContractError

MOST = 10_000
BLOCK = 512
FEWEST, SHARE = 8, 10
Values = NDArray[np.float64]
Mask = NDArray[np.bool_]


def strongest(
    values: NDArray[np.float32], observed: Mask, rule: Correlation
) -> tuple[NDArray[np.int64], NDArray[np.int64], Values]:
    """Source, target and weight of the pairs of series (t, n) that a rule keeps; only positive correlations count.

    A pair counts the steps at which both are observed, and needs a tenth of all. Weights have six decimals, which do
    not depend on the number of threads. All pairs are looked at, so there may not be too many series.
    """
    n = values.shape[1]
    if n > MOST:
        raise ContractError(
            f"correlating {n} entities means {n * n:,} pairs",
            expected=f"at most {MOST:,} entities",
            fix="take `nearest` or `grid`, or `coarsen` the grid",
        )
    seen = observed.astype(np.float64)
    count = np.maximum(seen.sum(axis=0), 1)
    centred = np.where(observed, values - (np.where(observed, values, 0).sum(axis=0, dtype=np.float64) / count), 0)
    scale = np.sqrt((centred**2).sum(axis=0) / count)
    standard = centred / np.where(scale > 0, scale, 1)
    t = len(values) - rule.lag
    found = []
    for start in range(0, n, BLOCK):
        block = slice(start, min(start + BLOCK, n))
        late = (standard[rule.lag :, block], seen[rule.lag :, block])
        r = _pearson(late, (standard[:t], seen[:t]), max(FEWEST, t // SHARE)).round(6)
        r[np.arange(block.stop - start), np.arange(start, block.stop)] = 0
        target, source = np.nonzero(_kept(r, rule))
        found.append((source, target + start, r[target, source]))
    source, target, weight = (np.concatenate(part) for part in zip(*found, strict=True))
    return (source, target, weight) if rule.directed else _mirrored(source, target, weight, n)


def _pearson(x: tuple[Values, Values], y: tuple[Values, Values], fewest: int) -> Values:
    """Correlations (m, n) of series x (t, m) with y (t, n) over shared steps; 0 where these are too few or constant."""
    (a, seen_a), (b, seen_b) = x, y
    count = seen_a.T @ seen_b
    safe = np.maximum(count, 1)
    mean_a, mean_b = (a.T @ seen_b) / safe, (seen_a.T @ b) / safe
    spread_a = (a.T**2 @ seen_b) / safe - mean_a**2
    spread_b = (seen_a.T @ b**2) / safe - mean_b**2
    spread = np.sqrt(np.maximum(spread_a, 0) * np.maximum(spread_b, 0))
    known = (count >= fewest) & (spread > 1e-9)
    return np.where(known, ((a.T @ b) / safe - mean_a * mean_b) / np.where(known, spread, 1), 0)


def _kept(r: Values, rule: Correlation) -> Mask:
    if rule.threshold is not None:
        return np.asarray(r >= rule.threshold)
    k = min(rule.k or 1, r.shape[1])
    # Of equal ones the first.
    order = np.argsort(-r, axis=1, kind="stable")[:, :k]
    kept = np.zeros(r.shape, np.bool_)
    np.put_along_axis(kept, order, True, axis=1)
    return kept & (r > 0)


def _mirrored(
    source: NDArray[np.int64], target: NDArray[np.int64], weight: Values, n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Values]:
    """Each pair both ways, once; where rounding of the two ways differs, the larger weight."""
    low, high = np.minimum(source, target), np.maximum(source, target)
    code, place = np.unique(low * n + high, return_inverse=True)
    best = np.zeros(len(code))
    np.maximum.at(best, place, weight)
    return np.concatenate([code // n, code % n]), np.concatenate([code % n, code // n]), np.concatenate([best, best])
