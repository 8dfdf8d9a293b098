"""What counts as observed: missing codes, physical ranges and outliers become the mask, and each is counted."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import Channel, Outliers

Values = NDArray[np.float32]
Mask = NDArray[np.bool_]

MAD_TO_SIGMA = 1.4826


def apply_channel_rules(values: Values, observed: Mask, channels: tuple[Channel, ...]) -> dict[str, dict[str, int]]:
    """Mask codes and out-of-range values in place, per channel of (t, n, c); returns the counts."""
    report: dict[str, dict[str, int]] = {}
    for k, channel in enumerate(channels):
        v, o = values[..., k], observed[..., k]
        before = int(o.sum())
        for code in channel.missing:
            o &= v != np.asarray(code, v.dtype)
        coded = before - int(o.sum())
        if channel.minimum is not None:
            o &= v >= channel.minimum
        if channel.maximum is not None:
            o &= v <= channel.maximum
        outside = before - coded - int(o.sum())
        report[channel.name] = {"values": before, "missing_code": coded, "out_of_range": outside}
    values[~observed] = 0
    return report


def mask_outliers(values: Values, observed: Mask, rule: Outliers, train: slice) -> NDArray[np.int64]:
    """Mask in place what lies beyond `threshold` scaled MADs of a series' training median; counts per channel (c,).

    A series whose training MAD is 0 (more than half its values equal) is left alone: the rule cannot judge it.
    """
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
