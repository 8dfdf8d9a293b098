"""More of the enriched stage: side information of the steps that new rows touch."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import DatasetSpec, Join
from stfm_pipeline.large import whole
from stfm_pipeline.side_info.check import leak, never_from_the_future
from stfm_pipeline.side_info.join import Joined, join_side_table
from stfm_pipeline.side_info.known import checked, stations_of
from stfm_pipeline.side_info.run import block_of, frames_of, lead_of, scene_of
from stfm_pipeline.stage import Extension, Tail
from stfm_pipeline.tables import Signal, step_us

# Rows of a side table from a time on, and what its columns ever hold.
Rows = Callable[[str, datetime], pl.DataFrame | None]
Distinct = Callable[[str, list[str]], pl.DataFrame]


def extend(
    spec: DatasetSpec,
    facts: dict[str, Any],
    times: NDArray[Any],
    first: int,
    entities: pl.DataFrame,
    edges: pl.DataFrame,
    rows: Rows,
    distinct: Distinct,
    replaced: dict[str, pl.DataFrame],
) -> Extension | None:
    """What an enriched stage with `facts` becomes; None where it has to be computed whole.

    `times` are the steps from row `first` on, and `replaced` the rows of `past` and `ahead` that were there.
    """
    step = step_us(spec.harmonize.step)
    scene = scene_of(spec, times, step, entities, edges)
    begin = times[0].astype("datetime64[us]").item().replace(tzinfo=UTC)
    tables: dict[str, pl.DataFrame | Tail] = {}
    shares: dict[str, float] = dict(facts["observed_share"])
    leaks: dict[str, str] = {}
    for side in ("past", "ahead"):
        joins = [j for j in spec.joins if j.availability == side]
        found: list[Joined] = []
        for rule in joins:
            table = rows(rule.table, begin - _reach(rule, step))
            if table is None:
                return None
            table, stations = checked(table, rule), stations_of(rule, distinct)
            found.append(join_side_table(table, rule, scene, stations))
            if problem := leak(rule, table, scene, stations, found[-1]):
                leaks[rule.table] = problem
        if not joins:
            continue
        block = block_of(joins, found, scene)
        made = frames_of(side, block, lead_of(joins, found))
        tables |= {name: Tail(first, whole(frame)) for name, frame in made.items()}
        old = Signal.from_frame(replaced[side], scene.names, block.channels)
        for k, column in enumerate(block.channels):
            seen = round(shares[column] * (first + len(old.times)) * len(entities))
            seen += int(block.observed[..., k].sum()) - int(old.observed[..., k].sum())
            shares[column] = seen / ((first + len(times)) * len(entities))
    return Extension(tables, facts | {"observed_share": shares}, [never_from_the_future(leaks)], begin)


def _reach(rule: Join, step: int) -> timedelta:
    """How far back a row may lie that a step still shows."""
    if rule.availability == "ahead":
        return timedelta()
    back = step_us(rule.tolerance or "0h", zero=True) + step_us(rule.lag, zero=True) + step
    return timedelta(microseconds=back)
