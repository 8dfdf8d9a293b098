"""Patches: partitions of places, of steps, and of both, into pieces of one size that a system reads as tokens.

Four kinds. `plane` cuts a grid into rectangles of h x w cells, `steps` a look-back into pieces of l steps, `volume`
both into boxes of l x h x w, and `universal` any places: small leaves by recursive bisection, those that lack an entity
padded with the most similar one, neighbouring leaves merged (PatchSTG, Fang et al., KDD 2025); on a grid whose sides
halve evenly its patches are rectangles. A remainder is padded with what is there already: every cell has a place of its
own in exactly one patch, and further ones where a patch would be short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import DatasetSpec, Patches
from stfm_pipeline.embed import spatial
from stfm_pipeline.harmonize import scaler
from stfm_pipeline.tables import Check, Signal

Index = NDArray[np.int64]
LEAVES_AT_ONCE = 256


@dataclass(frozen=True)
class Partition:
    """`cell` (p, s) at each place of each patch; `own` (p, s) is false where it stands in for one that is not there."""

    cell: Index
    own: NDArray[np.bool_]

    @property
    def home(self) -> Index:
        """(n,) the one place of each cell that is its own, in patches one after another: the way back from tokens."""
        flat = np.flatnonzero(self.own)
        return flat[np.argsort(self.cell.ravel()[flat], kind="stable")]

    def holds(self, n: int) -> bool:
        """Whether each of `n` cells has exactly one place of its own."""
        return bool(np.array_equal(np.sort(self.cell[self.own]), np.arange(n)))

    @property
    def facts(self) -> dict[str, Any]:
        return {"patches": len(self.cell), "places": self.cell.shape[1], "padded": int((~self.own).sum())}


def steps(length: int, patch: int) -> Partition:
    """Steps 0 to `length` in pieces of `patch`; the first piece is padded with step 0, so that the latest is whole."""
    place = np.arange(-(length % -patch and patch - length % patch), length).reshape(-1, patch)
    return Partition(np.maximum(place, 0), place >= 0)


def plane(grid: tuple[int, int], height: int, width: int) -> Partition:
    """Cells of a grid, row after row, in rectangles; short ones at the lower and right edge repeat their last cells."""
    rows, columns = (_pieces(side, piece) for side, piece in zip(grid, (height, width), strict=True))
    row, col = np.minimum(rows, grid[0] - 1), np.minimum(columns, grid[1] - 1)
    cell = row[:, None, :, None] * grid[1] + col[None, :, None, :]
    own = (rows < grid[0])[:, None, :, None] & (columns < grid[1])[None, :, None, :]
    shape = (len(rows) * len(columns), height * width)
    return Partition(cell.reshape(shape), own.reshape(shape))


def _pieces(side: int, piece: int) -> Index:
    count = -(-side // piece)
    return np.arange(count * piece).reshape(count, piece)


def volume(times: Partition, places: Partition, n: int) -> Partition:
    """Boxes of steps and places: cell i of step t is number t * n + i; temporal patches one after another."""
    cell = times.cell[:, None, :, None] * n + places.cell[None, :, None, :]
    own = times.own[:, None, :, None] & places.own[None, :, None, :]
    shape = (len(times.cell) * len(places.cell), -1)
    return Partition(cell.reshape(shape), own.reshape(shape))


def universal(xy: NDArray[np.float64], profiles: NDArray[np.float64], leaf: int, merge: int) -> Partition:
    """Places (n, 2) in leaves of at most `leaf`, `merge` (a power of two) neighbouring leaves a patch.

    `profiles` (n, k) say who is similar.
    """
    code = spatial.balanced_patches(xy, leaf)
    # Bisection makes a power of two, of which the last ones may be empty.
    count = 1 << int(code.max(initial=0)).bit_length()
    merge = min(merge, count)
    size = int(np.bincount(code, minlength=count).max())
    order = np.argsort(code, kind="stable")
    start = np.searchsorted(code[order], np.arange(count + 1))
    place = start[:-1, None] + np.arange(size)
    own = place < start[1:, None]
    cell = order[np.minimum(place, len(order) - 1)]
    short = np.flatnonzero(~own.all(axis=1))
    # Sizes differ by one at most, so one more is enough for each.
    cell[short, -1] = _most_similar(profiles, cell[short, :-1])
    return Partition(cell.reshape(count // merge, -1), own.reshape(count // merge, -1))


def _most_similar(profiles: NDArray[np.float64], leaves: Index) -> Index:
    """For each leaf (k, s) the entity outside whose profile is nearest to its mean by cosine; of equals the first."""
    length = np.linalg.norm(profiles, axis=1, keepdims=True)
    unit = profiles / np.where(length > 0, length, 1)
    best = np.empty(len(leaves), np.int64)
    for i in range(0, len(leaves), LEAVES_AT_ONCE):
        some = leaves[i : i + LEAVES_AT_ONCE]
        mean = profiles[some].mean(axis=1) if some.shape[1] else np.zeros((len(some), profiles.shape[1]))
        alike = np.round(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12) @ unit.T, 9)
        np.put_along_axis(alike, some, -np.inf, axis=1)
        best[i : i + LEAVES_AT_ONCE] = alike.argmax(axis=1)
    return best


def daily_profiles(signal: Signal, train: slice, scales: pl.DataFrame, per_day: int) -> NDArray[np.float64]:
    """(n, k) mean day of each entity over the training part, standardised, all channels; 0 where never observed."""
    n, c = signal.values.shape[1:]
    mean, std = scaler.arrays(scales, n, c)
    total, count = np.zeros((per_day, n, c)), np.zeros((per_day, n, c))
    first = int(signal.times[0].astype(np.int64) // max(signal.step_us, 1))
    for step in range(train.start, train.stop):
        seen = signal.observed[step]
        phase = (first + step) % per_day
        total[phase] += np.where(seen, (signal.values[step] - mean) / std, 0)
        count[phase] += seen
    return np.moveaxis(total / np.maximum(count, 1), 1, 0).reshape(n, -1)


def ground_plan(entities: pl.DataFrame, edges: pl.DataFrame) -> NDArray[np.float64]:
    """(n, 2) where entities lie: columns and rows of a grid, else coordinates, else what stands in for them."""
    if "row" in entities.columns:
        return entities.select("col", "row").to_numpy().astype(np.float64)
    lon, lat = (entities[c].fill_null(np.nan).to_numpy().astype(np.float64) for c in ("lon", "lat"))
    xy = spatial.normalized_coordinates(lon, lat)
    if np.isfinite(xy).all():
        return xy
    adjacency = spatial.adjacency_of(edges, entities["entity"].to_list())
    return spatial.stand_in_coordinates(adjacency, spatial.laplacian_eigenvectors(adjacency, 2))


def cut(
    spec: DatasetSpec, entities: pl.DataFrame, edges: pl.DataFrame, profiles: NDArray[np.float64]
) -> tuple[pl.DataFrame, dict[str, Any], Check]:
    """The table `patches` (entity, kind, patch, place, own), counts of every kind, and whether each is a partition."""
    rule: Patches = spec.embed.patches
    names, n = entities["entity"].to_list(), len(entities)
    kinds = {"universal": universal(ground_plan(entities, edges), profiles, rule.leaf, rule.merge)}
    if "row" in entities.columns:
        grid = (int(entities["row"].max()) + 1, int(entities["col"].max()) + 1)  # type: ignore[arg-type]
        kinds["plane"] = plane(grid, rule.rows, rule.columns)
    look_back = spec.task.look_back
    times = steps(look_back, rule.steps)
    boxes = volume(times, kinds.get("plane", kinds["universal"]), n)
    sizes = {**dict.fromkeys(kinds, n), "steps": look_back, "volume": look_back * n}
    broken = [k for k, p in {**kinds, "steps": times, "volume": boxes}.items() if not p.holds(sizes[k])]
    facts = {k: p.facts for k, p in {**kinds, "steps": times, "volume": boxes}.items()}
    tables = [_table(kind, partition, names) for kind, partition in kinds.items()]
    check = Check(
        "patches_are_partitions",
        not broken,
        "every cell has one place of its own in one patch of each kind",
        {"broken": broken},
    )
    return pl.concat(tables), facts, check


def _table(kind: str, partition: Partition, names: list[str]) -> pl.DataFrame:
    patch, place = np.indices(partition.cell.shape, dtype=np.int32)
    return pl.DataFrame(
        {
            "entity": pl.Series(names, dtype=pl.String).gather(partition.cell.ravel().astype(np.uint32)),
            "kind": kind,
            "patch": patch.ravel(),
            "place": place.ravel(),
            "own": partition.own.ravel(),
        }
    )
