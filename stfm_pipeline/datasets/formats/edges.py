"""Edges: adjacency matrices, lists of distances or edges. Self loops are left out: models that want them add them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from stfm_pipeline.datasets.formats.base import Form, Scene, open_frame, pick, refuse_pickle
from stfm_pipeline.datasets.formats.series import load_array
from stfm_pipeline.errors import ContractError

CHUNK_CELLS = 20_000_000


class _Weighted(Form):
    """Weights are taken as they are, or made from distances d by exp(-(d / sigma)^2) and cut below `threshold`.

    Without `sigma`, the standard deviation of the listed distances is taken (Li et al., DCRNN, ICLR 2018).
    """

    sigma: float | None = Field(default=None, gt=0)
    threshold: float = Field(default=0.1, ge=0, lt=1)


class Matrix(_Weighted):
    """A square matrix as csv without header, npy or npz (`key`, and names in `ids`); row = source, column = target.

    Without names, its order is that of the observations. `holds: distances` makes weights from distances.
    """

    format: Literal["matrix"]
    file: str
    holds: Literal["weights", "distances"] = "weights"
    key: str = "adjacency"
    separator: str | None = None

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame:
        path = files[self.file]
        refuse_pickle(path)
        names = scene.entities
        matrix: NDArray[Any]
        if path.suffix in (".npz", ".npy"):
            matrix = load_array(path, self.key)
            if path.suffix == ".npz" and "ids" in np.load(path, allow_pickle=False).files:
                names = [str(i) for i in load_array(path, "ids").tolist()]
        else:
            matrix = open_frame(path, self.separator, header=False).to_numpy()
        if matrix.ndim != 2 or matrix.shape != (len(names), len(names)):
            raise ContractError(
                f"{table}: {path.name} does not fit the entities",
                expected=f"{len(names)} rows and columns, one per entity",
                found=" x ".join(map(str, matrix.shape)),
                fix="bring the matrix of these entities, or a list of edges with names",
            )
        rows, columns, weights = _cells(matrix)
        if self.holds == "distances":
            rows, columns, weights = _kernel(rows, columns, weights, self.sigma, self.threshold)
        return _frame(np.asarray(names, object), rows, columns, weights)


def _cells(matrix: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Off-diagonal cells that are not 0, a few rows at a time: the matrix may be mapped from a large file."""
    found = []
    height = max(1, CHUNK_CELLS // max(1, matrix.shape[1]))
    for top in range(0, len(matrix), height):
        block = np.asarray(matrix[top : top + height], np.float64)
        row, column = np.nonzero(np.isfinite(block) & (block != 0))
        off = row + top != column
        found.append((row[off] + top, column[off], block[row[off], column[off]]))
    rows, columns, weights = (np.concatenate(part) for part in zip(*found, strict=True))
    return rows, columns, weights


def _kernel(
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    distances: NDArray[np.float64],
    sigma: float | None,
    threshold: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    width = sigma or float(distances.std()) or 1.0
    weights = np.exp(-np.square(distances / width))
    near = weights >= threshold
    return rows[near], columns[near], weights[near]


def _frame(
    names: NDArray[Any], rows: NDArray[np.int64], columns: NDArray[np.int64], weights: NDArray[np.float64]
) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "source": pl.Series(names[rows].tolist(), dtype=pl.String),
            "target": pl.Series(names[columns].tolist(), dtype=pl.String),
            "weight": weights,
        }
    )


class Distances(_Weighted):
    """A list of distances (from, to, cost) between sensors; pairs that name no known sensor are passed over."""

    format: Literal["distances"]
    file: str
    source: str = "from"
    target: str = "to"
    distance: str = "cost"
    separator: str | None = None

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame:
        path = files[self.file]
        ends = [self.source, self.target]
        frame = pick(table, path, open_frame(path, self.separator, text=ends), [*ends, self.distance])
        known = frame.filter(pl.all_horizontal(pl.col(ends).is_in(scene.entities))).drop_nulls([*ends, self.distance])
        if len(frame) and not len(known):
            raise ContractError(
                f"{table}: {path.name} names none of the entities",
                expected=", ".join(scene.entities[:3]) + " ...",
                found=", ".join(frame[self.source].head(3)) + " ...",
                fix="name the entities alike in both files (for arrays: `ids`)",
            )
        code = {e: i for i, e in enumerate(scene.entities)}
        rows, columns = (known[c].replace_strict(code, return_dtype=pl.Int64).to_numpy() for c in ends)
        cells = _kernel(rows, columns, known[self.distance].cast(pl.Float64).to_numpy(), self.sigma, self.threshold)
        frame = _frame(np.asarray(scene.entities, object), *cells)
        return frame.filter(pl.col("source") != pl.col("target")).unique(["source", "target"], maintain_order=True)


class EdgeList(Form):
    """A list of weighted edges; without a column of weights every edge weighs 1."""

    format: Literal["edges"]
    file: str
    source: str = "source"
    target: str = "target"
    weight: str | None = None
    separator: str | None = None

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame:
        path = files[self.file]
        ends = [self.source, self.target]
        frame = pick(
            table,
            path,
            open_frame(path, self.separator, text=ends),
            [*ends, *([self.weight] if self.weight else [])],
        )
        weight = pl.col(self.weight).cast(pl.Float64) if self.weight else pl.lit(1.0)
        listed = frame.select(source=self.source, target=self.target, weight=weight)
        return listed.filter(pl.col("source") != pl.col("target"))
