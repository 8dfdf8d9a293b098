"""A regular clock of step starts."""

from __future__ import annotations

from typing import cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import Harmonize
from stfm_pipeline.errors import ContractError
from stfm_pipeline.tables import step_us


def clock_of(times: pl.Series, rule: Harmonize) -> NDArray[np.datetime64]:
    """Step starts (t,) in UTC microseconds from the rule's start or the first time to its end or the last time."""
    step = step_us(rule.step)
    first, last = times.min(), times.max()
    if first is None or last is None:
        raise ContractError("no observations", expected="at least one row", found="an empty table")
    start, end = pl.Series([rule.start or first, rule.end or last]).cast(pl.Int64).to_list()
    if start % step:
        raise ContractError(
            f"the clock starts inside a step of {rule.step}", found=str(rule.start), fix="start it where a step starts"
        )
    if rule.end is None:
        end += step
    return cast("NDArray[np.datetime64]", np.arange(start, end, step, dtype=np.int64).astype("datetime64[us]"))
