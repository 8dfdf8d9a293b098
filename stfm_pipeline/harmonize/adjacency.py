"""Edges between entities: given, by distance, by place in the grid, or by what the training part shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.rules import Adjacency, Correlation, Gaussian, Given, Lattice, Nearest
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.correlation import strongest
from stfm_pipeline.tables import Check, Signal, grid_of

EARTH_KM = 6371.0088
PAIRED = 5000
SPARE = 8
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Pairs = tuple[Ints, Ints, Floats]
SCHEMA = {"source": pl.String, "target": pl.String, "weight": pl.Float64}


def edges(
    rule: Adjacency | None, entities: pl.DataFrame, signal: Signal, train: slice, given: pl.DataFrame | None
) -> pl.DataFrame:
    """Weighted edges (source, target, weight), sorted; none of them to itself, none of an entity training never saw.

    Given ones, which `given` holds as far as training knows them, stay as they are. Raises `ContractError` where what
    a rule needs is not there.
    """
    if rule is None or isinstance(rule, Given):
        if rule is not None and given is None:
            raise ContractError("no edges are given", fix="bring a table `edges`, or take another `adjacency`")
        return pl.DataFrame(schema=SCHEMA) if given is None else given
    there = np.flatnonzero(met(signal, train))
    if len(there) < 2:
        return pl.DataFrame(schema=SCHEMA)
    if isinstance(rule, Lattice):
        pairs = lattice(grid_of(entities), there, rule)
    elif isinstance(rule, Correlation):
        k = signal.channels.index(rule.channel) if rule.channel else 0
        values, observed = signal.values[train][:, there, k], signal.observed[train][:, there, k]
        pairs = _among(there, strongest(values, observed, rule))
    else:
        places = np.deg2rad(entities.select("lat", "lon").to_numpy().astype(np.float64))[there]
        if (lost := there[~np.isfinite(places).all(axis=1)]).size:
            raise ContractError(
                f"{len(lost)} entities without coordinates have no distance to others",
                offenders=entities["entity"].gather(lost).to_list(),
                fix="add `lon` and `lat` to the entities, or take another `adjacency`",
            )
        pairs = _among(there, gaussian(places, rule) if isinstance(rule, Gaussian) else nearest(places, rule))
    names = entities["entity"]
    source, target, weight = pairs
    frame = pl.DataFrame({"source": names.gather(source), "target": names.gather(target), "weight": weight})
    return frame.cast(SCHEMA).sort("source", "target")  # type: ignore[arg-type]


def met(signal: Signal, train: slice) -> NDArray[np.bool_]:
    """Which entities (n,) have an observed value in the training part."""
    return np.asarray(signal.observed[train].any(axis=(0, 2)))


def _among(there: Ints, pairs: Pairs) -> Pairs:
    return there[pairs[0]], there[pairs[1]], pairs[2]


def gaussian(places: Floats, rule: Gaussian) -> Pairs:
    """Edges within the distance at which a Gaussian falls to the threshold; `places` (n, 2) are radians."""
    tree, n = _tree(places), len(places)
    sigma = rule.sigma_km / EARTH_KM if rule.sigma_km else _spread(places)
    within = np.sqrt(-np.log(rule.threshold)) * sigma
    index, far = tree.query_radius(places, r=within, return_distance=True, sort_results=True)
    target = np.repeat(np.arange(n), [len(i) for i in index])
    source, d = (np.concatenate([*a, np.zeros(0)]) for a in (index, far))
    weight = np.exp(-((d / sigma) ** 2)) if sigma > 0 else np.ones(len(d))
    kept = (source != target) & (weight >= rule.threshold)
    return source[kept].astype(np.int64), target[kept], weight[kept]


def _spread(places: Floats) -> float:
    """Standard deviation of the distances between any two places, in radians."""
    if len(places) > PAIRED:
        raise ContractError(
            f"of {len(places)} entities there are too many distances to take their deviation",
            expected=f"at most {PAIRED} entities, or `sigma_km`",
            fix="state `adjacency.sigma_km`",
        )
    total, square, count = 0.0, 0.0, 0
    for i in range(len(places) - 1):
        lat, lon = places[i + 1 :].T
        half = np.sin((lat - places[i, 0]) / 2) ** 2
        half += np.cos(lat) * np.cos(places[i, 0]) * np.sin((lon - places[i, 1]) / 2) ** 2
        d = 2 * np.arcsin(np.sqrt(np.minimum(half, 1)))
        total, square, count = total + d.sum(), square + (d**2).sum(), count + len(d)
    return float(np.sqrt(max(square / count - (total / count) ** 2, 0))) if count else 0.0


def nearest(places: Floats, rule: Nearest) -> Pairs:
    """Edges from each place's nearest ones; of equally near ones the first."""
    n = len(places)
    # Equally near ones, as on a grid, come in the tree's order: some more are asked for and put in ours.
    far, index = _tree(places).query(places, k=min(n, rule.k + 1 + SPARE))
    own = index == np.arange(n)[:, None]
    order = np.lexsort((index, np.where(own, np.inf, np.round(far, 10))), axis=1)[:, : min(rule.k, n - 1)]
    source = np.take_along_axis(index, order, axis=1).astype(np.int64).ravel()
    target = np.repeat(np.arange(n), order.shape[1])
    return _both_ways(source, target, n, rule.directed)


def _both_ways(source: Ints, target: Ints, n: int, directed: bool) -> Pairs:
    if not directed:
        source, target = np.concatenate([source, target]), np.concatenate([target, source])
    code = np.unique(source * n + target)
    return code // n, code % n, np.ones(len(code))


def lattice(grid: tuple[int, int], there: Ints, rule: Lattice) -> Pairs:
    """Edges between neighbouring cells, both of which are `there`."""
    height, width = grid
    row, col = np.divmod(there, width)
    known = np.zeros((height + 2, width + 2), np.bool_)
    known[row + 1, col + 1] = True
    sides = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    corners = [(1, 1), (1, -1), (-1, -1), (-1, 1)] if rule.neighbours == 8 else []
    pairs = [
        (there[k], there[k] + dy * width + dx)
        for dy, dx in (*sides, *corners)
        for k in [known[row + 1 + dy, col + 1 + dx]]
    ]
    source, target = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
    return source, target, np.ones(len(source))


def _tree(places: Floats) -> Any:
    from sklearn.neighbors import BallTree

    return BallTree(places, metric="haversine")


def check(rule: Adjacency | None, table: pl.DataFrame, names: list[str], there: NDArray[np.bool_]) -> Check:
    """Whether edges are what their rule promises; of edges without a rule, only that their weights are numbers."""
    broken: dict[str, Any] = {}
    sound = pl.col("weight").is_finite() & (pl.col("weight") >= 0 if rule is None else pl.col("weight") > 0)
    if len(bad := table.filter(~sound)):
        broken["weights not finite and above 0"] = _first(bad)
    if rule is not None and not rule.directed:
        back = table.select(source="target", target="source", back="weight")
        other = table.join(back, on=["source", "target"], how="left")
        if len(bad := other.filter(pl.col("back").is_null() | ((pl.col("back") - pl.col("weight")).abs() > 1e-9))):
            broken["not symmetric, and not declared directed"] = _first(bad)
    if rule is not None and rule.isolated != "allowed":
        linked = {*table["source"], *table["target"], *rule.isolated}
        alone = [e for e, seen in zip(names, there, strict=True) if seen and e not in linked]
        if alone:
            broken["without an edge, and not declared isolated"] = f"{len(alone)}: {', '.join(alone[:5])}"
    promise = "edges are symmetric or declared directed, weights are above 0, and nobody is alone who was not named"
    return Check("adjacency_as_declared", not broken, promise, broken)


def _first(bad: pl.DataFrame) -> str:
    shown = ", ".join(f"{s} to {t} ({w:g})" for s, t, w in bad.select("source", "target", "weight").head(5).rows())
    return f"{len(bad)}: {shown}"
