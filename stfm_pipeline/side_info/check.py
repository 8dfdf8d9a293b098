"""Whether a join shows anything before it was known: it is done again without what came later."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from stfm_pipeline.datasets.spec import Join
from stfm_pipeline.side_info import join as joins
from stfm_pipeline.side_info.known import KNOWN_AT
from stfm_pipeline.tables import Check, step_us

NAME = "side_information_never_from_the_future"


def never_from_the_future(leaks: dict[str, str]) -> Check:
    """The check of a stage, from what `leak` found by table."""
    promise = "side tables give the same past, and the same view ahead, when only the rows known by then are joined"
    return Check(NAME, not leaks, promise, leaks)


def leak(
    rule: Join, table: pl.DataFrame, scene: joins.Scene, stations: pl.DataFrame, found: joins.Joined
) -> str | None:
    """What an origin in the middle of the clock sees of rows that were not known then, or None."""
    half = len(scene.times) // 2
    if not rule.timed or not half or (rule.availability == "ahead" and KNOWN_AT not in table.columns):
        return None
    origin = int(scene.times[half].astype(np.int64))
    # Later values are blanked and not cut off: which stations there are is known throughout.
    later = _known(table, rule, scene.step) > origin
    blanked = table.with_columns(pl.when(~later).then(c).alias(c) for c in rule.columns)
    stop = half if rule.availability == "past" else min(half + scene.horizon, len(scene.times))
    again = joins.join_side_table(blanked, rule, replace(scene, times=scene.times[:stop]), stations)
    seen, seen_again = _seen(found, half, stop), _seen(again, half, stop)
    values, values_again = found.values[:stop], again.values
    same = np.array_equal(seen, seen_again) and np.array_equal(values[seen], values_again[seen])
    return None if same else "rows change what is seen before they were known"


def _seen(found: joins.Joined, origin: int, stop: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Cells up to `stop` that a window with this origin sees."""
    observed = found.observed[:stop]
    if found.lead is None:
        return observed
    steps_ahead = np.arange(stop)[:, None, None] - origin
    return np.asarray(observed & (steps_ahead <= found.lead[:stop]))


def _known(table: pl.DataFrame, rule: Join, step: int) -> pl.Expr:
    """When a row was known, said once more and by itself: a check that shares its clock with the join checks little."""
    known = pl.col("time").dt.convert_time_zone("UTC").dt.epoch("us") + step + step_us(rule.lag, zero=True)
    if rule.availability == "ahead":
        known = pl.lit(0)
    if KNOWN_AT in table.columns:
        told = pl.col(KNOWN_AT).dt.convert_time_zone("UTC").dt.epoch("us")
        known = pl.when(told.is_null()).then(known).otherwise(told)
    return known
