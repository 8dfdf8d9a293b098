"""One declared join: as of a time for what is measured, on its step for what is planned, once for what stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from stfm_pipeline.datasets.spec import Join
from stfm_pipeline.errors import ContractError
from stfm_pipeline.side_info.known import (
    KNOWN_AT,
    Known,
    Mask,
    Times,
    Values,
    as_of,
    checked,
    never_changing,
    planned,
)
from stfm_pipeline.side_info.partners import Lead, Spread, spread

NOTHING = slice(0, 0)


@dataclass(frozen=True)
class Scene:
    """What a join works on: the clock and its step in microseconds, the horizon of windows in steps, the entities
    (`entity`, `lon`, `lat`) and the edges between them."""

    times: Times
    step: int
    horizon: int
    entities: pl.DataFrame
    adjacency: Any

    @property
    def names(self) -> list[str]:
        return self.entities["entity"].to_list()


@dataclass(frozen=True)
class Joined:
    """Side values (t, n, k) with their mask, what they came from, and `lead` where planned values come late."""

    values: Values
    observed: Mask
    lead: Lead | None
    known: Known
    spread: Spread
    partners: pl.DataFrame


def join_side_table(
    table: pl.DataFrame, rule: Join, scene: Scene, stations: pl.DataFrame, counted: slice = NOTHING
) -> Joined:
    """Side values of every entity. For `past`, row t holds only what was known at the end of step t.

    `stations` are all that the side table ever names (see `stations_of`). How a value came about is counted over the
    steps `counted`.
    """
    table = checked(table, rule)
    own = rule.via == "entity"
    names = scene.names if own else stations["entity"].to_list()
    if rule.availability == "past":
        known = as_of(table, rule, scene.times, names, scene.step, counted)
    elif rule.availability == "ahead":
        _tells_absent(table, rule)
        known = planned(table, rule, scene.times, names, scene.step, scene.horizon)
    else:
        known = never_changing(table, rule, names)
    found = spread(known, rule, stations, scene.entities, scene.adjacency, counted)
    values, observed = found.values, found.observed
    if rule.absent is not None:
        # Afterwards every cell holds a value, also where no row fits.
        values, observed = values.copy(), observed.copy()
        values[~observed] = rule.absent
        observed[:] = True
    return Joined(values, observed, found.lead, known, found, scene.entities if own else stations)


def _tells_absent(table: pl.DataFrame, rule: Join) -> None:
    if rule.absent is not None and KNOWN_AT in table.columns:
        raise ContractError(
            f"side table '{rule.table}': a row left out and a row not yet known look the same",
            expected=f"`absent`, or a column `{KNOWN_AT}`, and not both",
            fix="list the rows that hold nothing, with the time from which that was known, and leave `absent` out",
        )


def require_values(table: pl.DataFrame, rule: Join, observed: Mask, scene: Scene) -> None:
    """Raise where a joined column has no value at all, with both sides of what should have met."""
    empty = [c for k, c in enumerate(rule.columns) if not observed[..., k].any()]
    if empty:
        expected, found = f"rows of {', '.join(scene.names[:3])} ...", f"{len(table)} rows of "
        found += f"{', '.join(table['entity'].drop_nulls().unique().sort().head(3).cast(pl.String))} ..."
        if rule.timed:
            expected += f" between {scene.times[0]} and {scene.times[-1]} UTC"
            found += f" between {table['time'].min()!s} and {table['time'].max()!s}"
        also = {"edges": ", and the edges", "place": ", and the places and `within_km`", "entity": ""}[rule.via]
        timed = ", the years and zone of the times, `lag` and `tolerance`" if rule.timed else ""
        raise ContractError(
            f"side table '{rule.table}': joined columns have no observed value",
            expected=expected,
            found=found,
            offenders=empty,
            fix=f"check the names of the entities{timed}{also}",
        )
