"""Where windows may stand: the one rule that training, evaluation, measurement and the contract of a split share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Origins = NDArray[np.int64]


def origins(part: slice, look_back: int, horizon: int, clip: int | None = None) -> Origins:
    """First target steps (w,) of a part's windows: targets lie inside the part, look-back may reach before it.

    Where the clock is clips one after another, a window lies within one.
    """
    found = np.arange(max(part.start, look_back), max(part.start, look_back, part.stop - horizon + 1))
    if clip is not None:
        found = found[(found - look_back) % clip + look_back + horizon <= clip]
    return found


def strays(found: Origins, part: slice, look_back: int, horizon: int, clip: int | None = None) -> Origins:
    """Those of the origins whose targets leave the part, or whose window leaves the clock's beginning or its clip."""
    first, last = found - look_back, found + horizon - 1
    outside = (first < 0) | (found < part.start) | (last >= part.stop)
    if clip is not None:
        outside |= first // clip != last // clip
    left: Origins = found[outside]
    return left
