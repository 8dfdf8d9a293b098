"""One declared join: as of a time for what is measured, on the step for what is planned, by entity or along edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import Join
from stfm_pipeline.errors import ContractError
from stfm_pipeline.tables import scatter, step_us, times_of

Values = NDArray[np.float32]
Mask = NDArray[np.bool_]
Times = NDArray[np.datetime64]


def join_side_table(
    table: pl.DataFrame,
    rule: Join,
    times: Times,
    entities: list[str],
    adjacency: Any,
    step: int,
    stations: list[str] | None = None,
) -> tuple[Values, Mask]:
    """Side values (t, n, k) and mask. For `past`, row t holds only what was known at the end of step t.

    `step` is the clock's in microseconds. `stations` are all that the side table ever names, where these are some of
    its rows: then nothing is said about columns without a value.
    """
    missing = [c for c in ("entity", "time", *rule.columns) if c not in table.columns]
    if missing:
        raise ContractError(
            f"side table '{rule.table}' lacks columns", found=", ".join(table.columns), offenders=missing
        )
    if getattr(table.schema["time"], "time_zone", None) is None:
        raise ContractError(
            f"side table '{rule.table}': times carry no time zone",
            found=str(table.schema["time"]),
            fix="state the zone: `to_utc(pl.col('time'), zone=...)`",
        )
    kinds = {c: table.schema[c] for c in rule.columns}
    if text := [c for c, kind in kinds.items() if not kind.is_numeric() and kind not in (pl.Null, pl.Boolean)]:
        raise ContractError(
            f"side table '{rule.table}': joined columns hold something else than numbers",
            offenders=[f"{c}: {table[c].drop_nulls().head(1).to_list()}" for c in text],
            fix="mend them, or leave them out of the join",
        )
    table = table.with_columns(pl.col("time").dt.convert_time_zone("UTC"))
    whole = stations is None
    places = entities if rule.via == "entity" else stations or table["entity"].unique().sort().to_list()
    if rule.availability == "past":
        values, observed = as_of(table, rule, times, places, step)
    else:
        values, observed = scatter(table, times, places, rule.columns)
        if rule.absent is not None:
            # Afterwards every cell holds a value, also where no row fits.
            if whole:
                require_values(table, rule, observed, times, entities)
            values[~observed] = rule.absent
            observed[:] = True
    return along_edges(values, observed, places, entities, adjacency) if rule.via == "edges" else (values, observed)


def require_values(table: pl.DataFrame, rule: Join, observed: Mask, times: Times, entities: list[str]) -> None:
    """Raise where a joined column has no value at all, with both sides of what should have met."""
    empty = [c for k, c in enumerate(rule.columns) if not observed[..., k].any()]
    if empty:
        names = table["entity"].drop_nulls().unique().sort().head(3)
        first, last = str(table["time"].min()), str(table["time"].max())
        raise ContractError(
            f"side table '{rule.table}': joined columns have no observed value",
            expected=f"rows of {', '.join(entities[:3])} ... between {times[0]} and {times[-1]} UTC",
            found=f"{len(table)} rows of {', '.join(names)} ... between {first} and {last}",
            offenders=empty,
            fix="check the names of the entities, the years and zone of the times, `lag` and `tolerance`"
            + (", and the edges" if rule.via == "edges" else ""),
        )


def as_of(table: pl.DataFrame, rule: Join, times: Times, places: list[str], step: int) -> tuple[Values, Mask]:
    """The latest row known when a step ends, at most `tolerance` old; each column looks back on its own."""
    lag = step_us(rule.lag, zero=True)
    tolerance = step_us(rule.tolerance or "0h", zero=True)
    t, n = len(times), len(places)
    values = np.zeros((t, n, len(rule.columns)), np.float32)
    observed = np.zeros(values.shape, np.bool_)
    ends = times.astype(np.int64) + step
    for i, place in enumerate(places):
        rows = table.filter(pl.col("entity") == place).sort("time", maintain_order=True)
        for k, column in enumerate(rule.columns):
            series = rows.select("time", pl.col(column).cast(pl.Float32)).filter(pl.col(column).is_finite())
            known = times_of(series["time"]).astype(np.int64) + step + lag
            if not len(known):
                continue
            latest = np.searchsorted(known, ends, side="right") - 1
            fresh = (latest >= 0) & (ends - known[np.maximum(latest, 0)] <= tolerance)
            values[fresh, i, k] = series[column].to_numpy()[latest[fresh]]
            observed[fresh, i, k] = True
    return values, observed


def along_edges(
    values: Values, observed: Mask, places: list[str], entities: list[str], adjacency: Any
) -> tuple[Values, Mask]:
    """Each entity's mean over the places it is linked to, weighted by edges either way; a place keeps its own value."""
    index = {e: i for i, e in enumerate(entities)}
    weights = np.zeros((len(entities), len(places)), np.float32)
    both = (adjacency + adjacency.T).tocsc()
    for j, place in enumerate(places):
        if place in index:
            weights[:, j] = both[:, [index[place]]].toarray().ravel()
    for j, place in enumerate(places):
        if place in index:
            weights[index[place]] = 0
            weights[index[place], j] = 1
    total, summed = (_sums(weights, a) for a in (observed, np.where(observed, values, 0)))
    known = total > 0
    return np.where(known, summed / np.where(known, total, 1), 0).astype(np.float32), known


def _sums(weights: Values, values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums over places (t, n, k), of each step in one order, however many steps there are."""
    from scipy.sparse import csr_array

    t, p, k = values.shape
    flat = np.ascontiguousarray(values.transpose(1, 0, 2), np.float64).reshape(p, t * k)
    found = csr_array(weights.astype(np.float64)) @ flat
    return np.asarray(found.reshape(len(weights), t, k).transpose(1, 0, 2))
