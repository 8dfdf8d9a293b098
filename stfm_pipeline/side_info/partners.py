"""Whose side values an entity gets: its own, those along its edges, or those of the nearest places that have one."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from stfm_pipeline.datasets.spec import Join
from stfm_pipeline.errors import ContractError
from stfm_pipeline.side_info.known import ALWAYS, Known, Mask, Values
from stfm_pipeline.side_info.places import Array, Index, chord, nearest, on_sphere
from stfm_pipeline.tables import stretches

Lead = NDArray[np.int16]
# Nearer than a metre is at one place.
LEAST_KM = 1e-3
# Sums of values by weight stay finite.
HEAVIEST = 1e30


@dataclass
class Used:
    """How often (n, s) entities got something from stations in the steps counted, and the sum of its weights."""

    steps: Any
    weight: Any


@dataclass(frozen=True)
class Spread:
    """Side values (t, n, k) of entities with their mask and, where planned values come late, their lead.

    `used` has an entry per column; `linked` (n,) marks entities that have a partner at all, `serving` (s,) stations
    that have, and `links` (m, s) gives the partners of some of the entities.
    """

    values: Values
    observed: Mask
    lead: Lead | None
    linked: Mask
    serving: Mask
    links: Any
    used: list[Used] = field(default_factory=list)


def spread(
    known: Known, rule: Join, stations: pl.DataFrame, entities: pl.DataFrame, adjacency: Any, counted: slice
) -> Spread:
    """Values of stations as values of entities (a row per entity: `entity`, `lon`, `lat`)."""
    if rule.via == "entity":
        return _own(known, stations, entities, counted)
    if rule.via == "edges":
        return _along_edges(known, stations, entities["entity"].to_list(), adjacency, counted)
    return _by_place(known, rule, stations, entities, counted)


def _own(known: Known, stations: pl.DataFrame, entities: pl.DataFrame, counted: slice) -> Spread:
    n = len(entities)
    linked = entities["entity"].is_in(stations["entity"].implode()).to_numpy()
    own = csr_array((linked.astype(np.float64), (np.arange(n), np.arange(n))), shape=(n, n))
    times = known.observed[counted].sum(axis=0).astype(np.float64)
    used = [Used(csr_array(own.multiply(t[:, None])), csr_array(own.multiply(t[:, None]))) for t in times.T]
    return Spread(known.values, known.observed, known.lead, linked, linked, lambda rows: own[rows], used)


def _along_edges(known: Known, stations: pl.DataFrame, entities: list[str], adjacency: Any, counted: slice) -> Spread:
    """Each entity's mean over the places it is linked to, weighted by edges either way; a place keeps its own value."""
    weights = _edge_weights(stations["entity"].to_list(), entities, adjacency)
    total = _sums(weights, known.observed)
    summed = _sums(weights, np.where(known.observed, known.values, 0))
    observed = total > 0
    values = np.where(observed, summed / np.where(observed, total, 1), 0).astype(np.float32)
    lead = None if known.lead is None else _least(weights, known)
    linked = np.diff(weights.indptr) > 0
    share = weights.multiply(1 / np.maximum(np.asarray(weights.sum(axis=1)).ravel(), 1e-300)[:, None])
    times = known.observed[counted].sum(axis=0).astype(np.float64)
    pairs = csr_array(weights > 0).astype(np.float64)
    used = [Used(csr_array(pairs.multiply(t[None])), csr_array(share.multiply(t[None]))) for t in times.T]
    serving = np.asarray(pairs.sum(axis=0)).ravel() > 0
    return Spread(values, observed, lead, linked, serving, lambda rows: pairs[rows], used)


def _edge_weights(stations: list[str], entities: list[str], adjacency: Any) -> Any:
    if adjacency.shape[0] and abs(adjacency).max() > HEAVIEST:
        raise ContractError(
            "edges are too heavy for a mean along them",
            expected=f"weights up to {HEAVIEST:g}",
            found=f"{abs(adjacency).max():g}",
            fix="state weights in another unit",
        )
    index = {e: i for i, e in enumerate(entities)}
    at = [(j, index[s]) for j, s in enumerate(stations) if s in index]
    columns, nodes = (np.array(c, np.int64) for c in (zip(*at, strict=True) if at else ((), ())))
    both = csr_array(adjacency + adjacency.T).tocsc()[:, nodes].tocoo()
    strange = ~np.isin(both.row, nodes)
    row = np.concatenate([both.row[strange], nodes])
    column = np.concatenate([columns[both.col[strange]], columns])
    weight = np.concatenate([both.data[strange], np.ones(len(nodes))]).astype(np.float64)
    found = csr_array(coo_array((weight, (row, column)), shape=(len(entities), len(stations))))
    found.eliminate_zeros()
    found.sort_indices()
    return found


def _sums(weights: Any, values: NDArray[Any]) -> NDArray[np.float64]:
    """Sums over places (t, n, k), of each step in one order, however many steps there are."""
    t, p, k = values.shape
    flat = np.ascontiguousarray(values.transpose(1, 0, 2), np.float64).reshape(p, t * k)
    return np.asarray((weights @ flat).reshape(weights.shape[0], t, k).transpose(1, 0, 2))


def _least(weights: Any, known: Known) -> Lead:
    """A mean is known when the last of its parts is."""
    t, _, k = known.observed.shape
    out = np.full((t, weights.shape[0], k), ALWAYS, np.int16)
    there = np.flatnonzero(np.diff(weights.indptr))
    if known.lead is None or not len(there):
        return out
    for part in stretches(t, weights.nnz * k):
        lead = np.where(known.observed[part], known.lead[part], ALWAYS)[:, weights.indices]
        out[part, there] = np.minimum.reduceat(lead, weights.indptr[there], axis=1)
    return out


def _by_place(known: Known, rule: Join, stations: pl.DataFrame, entities: pl.DataFrame, counted: slice) -> Spread:
    """Of the stations near enough that have a value, the nearest ones' mean by inverse distance (Shepard, 1968).

    Which stations those are is the same for all steps in which the same ones have a value, so it is looked up once
    for each such set: what a station measures later changes nothing earlier.
    """
    (rows, here), (columns, there) = located(entities), located(stations)
    within = float(rule.within_km or 0)
    t, s, k = known.values.shape
    shape, n = (t, len(entities), k), len(entities)
    values, observed = np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
    lead = None if known.lead is None else np.full(shape, ALWAYS, np.int16)
    used = [Used(csr_array((n, s)), csr_array((n, s))) for _ in range(k)]
    sets, which = np.unique(
        known.observed[:, columns].transpose(0, 2, 1).reshape(t * k, len(columns)), axis=0, return_inverse=True
    )
    order = np.argsort(which.ravel(), kind="stable")
    bounds = np.searchsorted(which.ravel()[order], np.arange(len(sets) + 1))
    for i, having in enumerate(sets):
        if not having.any():
            continue
        own = columns[having]
        index, km = nearest(here, there[having], rule.nearest, within)
        weight = np.where(index >= 0, 1 / np.maximum(km, LEAST_KM), 0)
        total = weight.sum(axis=1)
        reached = total > 0
        cells, share = rows[reached], weight[reached] / total[reached, None]
        chosen = own[index[reached]]
        step, column = np.divmod(order[bounds[i] : bounds[i + 1]], k)
        for part in stretches(len(step), max(len(cells), 1)):
            at = (step[part, None], cells[None], column[part, None])
            source = known.values[step[part], :, column[part]]
            values[at] = _mean(source, chosen, share)
            observed[at] = True
            if lead is not None and known.lead is not None:
                lead[at] = _mean_lead(known.lead[step[part], :, column[part]], chosen, share)
        inside = (step >= counted.start) & (step < counted.stop)
        times = np.bincount(column[inside], minlength=k)
        _add(used, times, cells, chosen, share, (n, s))
    linked, serving = np.zeros(n, np.bool_), np.zeros(s, np.bool_)
    linked[rows] = np.isfinite(nearest(here, there, 1, within)[1][:, 0])
    serving[columns] = np.isfinite(nearest(there, here, 1, within)[1][:, 0])
    links = partial(_links, rows, here, columns, there, within, s)
    return Spread(values, observed, lead, linked, serving, links, used)


def located(table: pl.DataFrame) -> tuple[Index, Array]:
    """Rows that have coordinates, and these on the sphere."""
    lon, lat = (table[c].cast(pl.Float64).fill_null(np.nan).to_numpy() for c in ("lon", "lat"))
    rows = np.flatnonzero(np.isfinite(lon) & np.isfinite(lat))
    return rows, on_sphere(lon[rows], lat[rows])


def _mean(values: Values, chosen: Index, share: Array) -> NDArray[Any]:
    """(m, cells) means of the chosen stations' values; a single one is taken as it is."""
    if chosen.shape[1] == 1:
        return values[:, chosen[:, 0]]
    out = np.zeros((len(values), len(chosen)))
    for j in range(chosen.shape[1]):
        out += values[:, chosen[:, j]] * share[:, j]
    return out


def _mean_lead(lead: Lead, chosen: Index, share: Array) -> Lead:
    out = np.full((len(lead), len(chosen)), ALWAYS, np.int16)
    for j in range(chosen.shape[1]):
        out = np.where(share[:, j] > 0, np.minimum(out, lead[:, chosen[:, j]]), out)
    return out


def _add(used: list[Used], times: Index, cells: Index, chosen: Index, share: Array, shape: tuple[int, int]) -> None:
    part = share > 0
    at = (np.repeat(cells, chosen.shape[1])[part.ravel()], chosen[part])
    once = csr_array((np.ones(len(at[0])), at), shape=shape)
    weighed = csr_array((share[part], at), shape=shape)
    for column, count in enumerate(times):
        if count:
            used[column].steps = used[column].steps + once * count
            used[column].weight = used[column].weight + weighed * count


def _links(rows: Index, here: Array, columns: Index, there: Array, within: float, s: int, some: Index) -> Any:
    """(m, s) stations near enough to some of the entities."""
    from scipy.spatial import cKDTree

    near = csr_array((len(some), s))
    place = np.searchsorted(rows, some)
    if not len(there) or not len(some):
        return near
    found = cKDTree(here[place]).sparse_distance_matrix(
        cKDTree(there), chord(within) * (1 + 1e-12) + 1e-15, output_type="coo_matrix"
    )
    return csr_array((np.ones(found.nnz), (found.row, columns[found.col])), shape=(len(some), s))
