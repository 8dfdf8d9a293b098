"""What counts as observed: missing codes, physical ranges and outliers become the mask, and each is counted."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from stfm_pipeline.datasets.rules import Outliers
from stfm_pipeline.datasets.spec import Channel
from stfm_pipeline.large import passes

Values = NDArray[np.float32]
Mask = NDArray[np.bool_]

MAD_TO_SIGMA = 1.4826


def observed_values(
    values: NDArray[np.floating], channel: Channel, counts: dict[str, int], inside: Mask
) -> tuple[Values, Mask]:
    """Values (t, ...) in the single precision of the signal, and which are observed: finite, no missing code, in range.

    Only rows `inside` (t,) count, and are observed; what was masked and why is added to `counts`.
    """
    with np.errstate(over="ignore"):
        single = values.astype(np.float32, copy=False)
    known = np.isfinite(single)
    if not inside.all():
        known[~inside] = False
    found = int(np.count_nonzero(known))
    counts["values"] += found
    for code in channel.missing:
        known &= single != np.float32(code)
    left = int(np.count_nonzero(known)) if channel.missing else found
    counts["missing_code"] += found - left
    if channel.minimum is not None:
        known &= single >= np.float32(channel.minimum)
    if channel.maximum is not None:
        known &= single <= np.float32(channel.maximum)
    counts["out_of_range"] += left - int(np.count_nonzero(known))
    return single, known


def is_masked(values: Values, observed: Mask) -> bool:
    """Whether observed cells of (t, n, c) are finite and all others hold 0."""
    parts = passes(len(values), values[0].size if len(values) else 1, values, observed)
    return all(np.isfinite(values[p]).all() and not np.where(observed[p], 0, values[p]).any() for p in parts)


def mask_outliers(values: Values, observed: Mask, rule: Outliers, train: slice) -> NDArray[np.int64]:
    """Mask in place what lies beyond `threshold` scaled MADs of a series' training median; counts per channel (c,).

    A series whose training MAD is 0 (more than half its values equal) is left alone: the rule cannot judge it.
    """
    counts = np.zeros(values.shape[2], np.int64)
    for some in passes(values.shape[1], len(values) * values.shape[2], values, observed):
        counts += _mask_outliers(values[:, some], observed[:, some], rule, train)
    return counts


def _mask_outliers(values: Values, observed: Mask, rule: Outliers, train: slice) -> NDArray[np.int64]:
    known = np.where(observed[train], values[train], np.nan)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        # A series without a training value has a NaN median, and nothing of it is masked.
        warnings.simplefilter("ignore", RuntimeWarning)
        median = np.nanmedian(known, axis=0)
        mad = np.nanmedian(np.abs(known - median), axis=0) * MAD_TO_SIGMA
        far = np.abs(values - median) > rule.threshold * mad
    far &= observed & (mad > 0)
    observed &= ~far
    values[~observed] = 0
    return np.asarray(far.sum(axis=(0, 1)), np.int64)
