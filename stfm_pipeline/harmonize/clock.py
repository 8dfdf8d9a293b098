"""A regular clock of step starts."""

from __future__ import annotations

from datetime import datetime
from typing import cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import Harmonize
from stfm_pipeline.errors import ContractError
from stfm_pipeline.tables import step_us

MANY_STEPS, VERY_MANY, MOSTLY = 1000, 10_000_000, 0.9


def clock_of(times: pl.Series, rule: Harmonize) -> NDArray[np.datetime64]:
    """Step starts (t,) in UTC microseconds from the rule's start or the first time to its end or the last time.

    Raises `ContractError` on a clock without steps, and on one that a few stray times make ten times as long.
    """
    step = step_us(rule.step)
    first, last = (cast("datetime | None", edge) for edge in (times.min(), times.max()))
    if first is None or last is None:
        raise ContractError("no observations", expected="at least one row", found="an empty table")
    start, end = pl.Series([rule.start or first, rule.end or last]).cast(pl.Int64).to_list()
    if start % step:
        raise ContractError(
            f"the clock starts inside a step of {rule.step}", found=str(rule.start), fix="start it where a step starts"
        )
    if rule.end is None:
        end += step
    if start >= end:
        raise ContractError(
            "no observation lies on the clock",
            expected=f"times from {rule.start or first} to {rule.end or last}",
            found=f"{first} to {last}",
            fix="correct `start` or `end` of `harmonize`, or the times",
        )
    _refuse_strays(times, start, end, step)
    return cast("NDArray[np.datetime64]", np.arange(start, end, step, dtype=np.int64).astype("datetime64[us]"))


def _refuse_strays(times: pl.Series, start: int, end: int, step: int) -> None:
    """A year mistyped makes a clock of little else than a gap."""
    inside = times.cast(pl.Int64)
    inside = inside.filter((inside >= start) & (inside < end))
    if not inside.is_sorted():
        inside = inside.unique().sort()
    # What a short clock lacks at its ends may have been meant: rows that land after an outage.
    long = end - start > VERY_MANY * step
    moments = pl.concat([pl.Series([start]), inside, pl.Series([end])]) if long else inside
    gap = cast("int | None", moments.diff().max()) or 0
    if end - start > MANY_STEPS * step and gap > MOSTLY * (end - start):
        before = int(cast("int", moments.diff().arg_max()))
        edges = moments[[before - 1, before]].cast(pl.Datetime("us")).to_list()
        raise ContractError(
            f"{gap / (end - start):.1%} of the clock is one gap",
            found=f"{before - long} times up to {edges[0]}, {len(inside) - before + long} from {edges[1]}",
            fix="mend the stray times, or leave them out with `start` or `end` of `harmonize`",
        )
