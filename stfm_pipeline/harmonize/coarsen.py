"""A grid made coarser: blocks of cells become one cell."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.rules import Coarsen
from stfm_pipeline.large import passes, room
from stfm_pipeline.tables import grid_of

Values = NDArray[np.float32]
Mask = NDArray[np.bool_]


def blocks(values: Values, observed: Mask, grid: tuple[int, int], rule: Coarsen) -> tuple[Values, Mask]:
    """Values and mask (t, n, c) of a grid's cells as those of its blocks, at most by x by cells each.

    A block holds the mean of its observed cells where these are at least a share of its cells, and one of them.
    """
    (height, width), by = grid, rule.by
    shape = (len(values), -(-height // by) * -(-width // by), values.shape[2])
    out, seen = room(shape, np.float32), room(shape, np.bool_)
    cells = _sums(np.ones((1, height, width, 1)), by)
    for part in passes(len(values), values[0].size, values, observed, out, seen):
        grids = values[part].reshape(-1, height, width, shape[2])
        there = observed[part].reshape(grids.shape)
        total, count = _sums(np.where(there, grids, 0).astype(np.float64), by), _sums(there.astype(np.float64), by)
        known = (count > 0) & (count >= rule.at_least * cells)
        seen[part] = known.reshape(-1, *shape[1:])
        out[part] = np.where(known, total / np.maximum(count, 1), 0).reshape(-1, *shape[1:])
    return out, seen


def _sums(cells: NDArray[np.float64], by: int) -> NDArray[np.float64]:
    """Sums of (t, y, x, c) over blocks."""
    rows = np.add.reduceat(cells, np.arange(0, cells.shape[1], by), axis=1)
    return np.asarray(np.add.reduceat(rows, np.arange(0, cells.shape[2], by), axis=2))


def cells(entities: pl.DataFrame, rule: Coarsen) -> pl.DataFrame:
    """The blocks as cells of their own: the middle of their cells, in the zone and country of the first of them."""
    grid_of(entities)
    place = [pl.col(c).floordiv(rule.by).cast(pl.Int32) for c in ("row", "col")]
    coarse = entities.with_columns(place).group_by("row", "col", maintain_order=True)
    # Around the date line, halves of a block lie at either end of the longitudes.
    turn = (pl.col("lon") - pl.col("lon").first() + 540) % 360 - 180
    middle = (pl.col("lon").first() + turn.mean() + 540) % 360 - 180
    civil = [c for c in ("zone", "country") if c in entities.columns]
    found = coarse.agg(middle.alias("lon"), pl.col("lat").mean(), pl.col(civil).first(), text=pl.lit(None, pl.String))
    return found.sort("row", "col").select(
        pl.format("block {}-{}", "row", "col").alias("entity"), "lon", "lat", *civil, "text", "row", "col"
    )
