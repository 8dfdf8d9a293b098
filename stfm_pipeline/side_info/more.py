"""More of the enriched stage: side information of the steps that new rows touch."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import DatasetSpec, Join
from stfm_pipeline.embed.spatial import adjacency_of
from stfm_pipeline.side_info.join import join_side_table
from stfm_pipeline.side_info.run import past_half_holds
from stfm_pipeline.stage import Extension, Tail
from stfm_pipeline.tables import Check, Signal, step_us

# Rows of a side table from a time on, and all stations that it names.
Rows = Callable[[str, datetime], tuple[pl.DataFrame, list[str]] | None]


def extend(
    spec: DatasetSpec,
    facts: dict[str, Any],
    times: NDArray[np.datetime64],
    first: int,
    names: list[str],
    edges: pl.DataFrame,
    rows: Rows,
    replaced: dict[str, pl.DataFrame],
) -> Extension | None:
    """What an enriched stage with `facts` becomes; None where it has to be computed whole.

    `times` are the steps from row `first` on, and `replaced` the rows of `past` and `ahead` that were there.
    """
    adjacency = adjacency_of(edges, names)
    step = step_us(spec.harmonize.step)
    begin = times[0].astype("datetime64[us]").item().replace(tzinfo=UTC)
    tables: dict[str, pl.DataFrame | Tail] = {}
    shares: dict[str, float] = dict(facts["observed_share"])
    leaks: dict[str, str] = {}
    for side in ("past", "ahead"):
        joins = [j for j in spec.joins if j.availability == side]
        blocks = []
        for join in joins:
            found = rows(join.table, begin - _reach(join, step))
            if found is None:
                return None
            table, stations = found
            values, observed = join_side_table(table, join, times, names, adjacency, step, stations)
            if side == "past" and not past_half_holds(
                join, table, times, names, adjacency, step, stations, values, observed
            ):
                leaks[join.table] = "rows after a step change what the step shows"
            blocks.append((values, observed))
        if not joins:
            continue
        columns = [c for j in joins for c in j.columns]
        signal = Signal(
            times,
            tuple(names),
            tuple(columns),
            np.concatenate([v for v, _ in blocks], axis=2),
            np.concatenate([o for _, o in blocks], axis=2),
        )
        tables[side] = Tail(first, signal.to_frame())
        old = Signal.from_frame(replaced[side], names, columns)
        for k, column in enumerate(columns):
            seen = round(shares[column] * (first + len(old.times)) * len(names))
            seen += int(signal.observed[..., k].sum()) - int(old.observed[..., k].sum())
            shares[column] = seen / ((first + len(times)) * len(names))
    promise = "measured side tables give the same past half when only the rows known by then are joined"
    checks = [Check("side_information_never_from_the_future", not leaks, promise, leaks)]
    return Extension(tables, facts | {"observed_share": shares}, checks, begin)


def _reach(join: Join, step: int) -> timedelta:
    """How far back a row may lie that a step still shows."""
    if join.availability == "ahead":
        return timedelta()
    back = step_us(join.tolerance or "0h", zero=True) + step_us(join.lag, zero=True) + step
    return timedelta(microseconds=back)
