"""Filters that mask: each value is judged by itself and by earlier values of its series, never by later ones.

Every filter judges what the ones before it left; what it masks itself still speaks about what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stfm_pipeline.datasets.rules import Filter, Hampel, Spikes, Stuck
from stfm_pipeline.harmonize.mask import MAD_TO_SIGMA
from stfm_pipeline.large import passes
from stfm_pipeline.tables import ROWS_AT_ONCE, stretches

Values = NDArray[np.float32]
Mask = NDArray[np.bool_]
Counts = list[dict[str, Any]]


def reach(rules: Sequence[Filter]) -> int:
    """How many steps before a value decide on it."""
    return sum(r.reach for r in rules)


def mask(values: Values, observed: Mask, rules: Sequence[Filter], names: Sequence[str], since: int = 0) -> Counts:
    """Apply filters in place to a signal (t, n, c) with channels `names`, in the order given.

    Per filter the observed values of each of its channels before and after it, counted from step `since` on.
    """
    counts: Counts = []
    for rule in rules:
        chosen = [k for k, name in enumerate(names) if rule.channels is None or name in rule.channels]
        before = {names[k]: int(observed[since:, :, k].sum()) for k in chosen}
        for k in chosen:
            for n in passes(values.shape[1], len(values), values, observed):
                bad = _judge(values[:, n, k], observed[:, n, k], rule)
                observed[:, n, k] &= ~bad
                values[:, n, k][bad] = 0
        after = {names[k]: int(observed[since:, :, k].sum()) for k in chosen}
        counts.append({"kind": rule.kind, "before": before, "after": after})
    return counts


def _judge(values: Values, observed: Mask, rule: Filter) -> Mask:
    if isinstance(rule, Stuck):
        return stuck(values, observed, rule)
    return spikes(values, observed, rule) if isinstance(rule, Spikes) else hampel(values, observed, rule)


def stuck(values: Values, observed: Mask, rule: Stuck) -> Mask:
    """Which values (t, n) were the same for `steps` steps before."""
    same = observed.copy()
    same[:1] = False
    same[1:] &= observed[:-1] & (values[1:] == values[:-1])
    step = np.arange(len(values))[:, None]
    run = step - np.maximum.accumulate(np.where(same, 0, step), axis=0)
    bad = np.asarray(run >= rule.steps)
    for value in rule.besides:
        bad &= values != np.float32(value)
    return bad


def spikes(values: Values, observed: Mask, rule: Spikes) -> Mask:
    """Which values (t, n) are too far from all of the last ones that were observed."""
    judged, near = np.zeros(observed.shape, np.bool_), np.zeros(observed.shape, np.bool_)
    for lag in range(1, min(rule.within, len(values) - 1) + 1):
        there = observed[:-lag]
        judged[lag:] |= there
        near[lag:] |= there & (np.abs(values[lag:] - values[:-lag]) <= np.float32(rule.change * lag))
    return observed & judged & ~near


def hampel(values: Values, observed: Mask, rule: Hampel) -> Mask:
    """Which values (t, n) lie beyond scaled MADs of the median of the window that ends with them."""
    bad = np.zeros(observed.shape, np.bool_)
    blank = np.full((rule.window - 1, values.shape[1]), np.nan, np.float32)
    known = np.concatenate([blank, np.where(observed, values, np.float32(np.nan))])
    for start in range(0, len(values), ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, len(values)))
        for n in stretches(values.shape[1], ROWS_AT_ONCE * rule.window):
            windows = np.lib.stride_tricks.sliding_window_view(
                known[rows.start : rows.stop + rule.window - 1, n], rule.window, axis=0
            )
            count = np.isfinite(windows).sum(axis=-1)
            median = _median(windows, count)
            spread = _median(np.abs(windows - median[..., None]), count) * np.float32(MAD_TO_SIGMA)
            far = np.abs(values[rows, n] - median) > np.float32(rule.threshold) * spread
            bad[rows, n] = observed[rows, n] & far & (2 * count >= rule.window) & (spread > 0)
    return bad


def _median(windows: Values, count: NDArray[np.int64]) -> Values:
    """Medians over the last axis of what is not NaN; `count` says how many that are, NaN where none."""
    ordered = np.sort(windows, axis=-1)
    low, high = (
        np.take_along_axis(ordered, np.maximum(i, 0)[..., None], -1)[..., 0] for i in ((count - 1) // 2, count // 2)
    )
    return np.asarray((low + high) / np.float32(2))
