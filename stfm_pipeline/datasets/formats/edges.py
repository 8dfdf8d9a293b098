"""Edges: adjacency matrices, lists of distances or edges. Self loops are left out: models that want them add them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from stfm_pipeline.datasets.formats.base import Form, Scene, open_frame, pick, refuse_pickle
from stfm_pipeline.datasets.formats.numbers import numbers
from stfm_pipeline.datasets.formats.series import load_array
from stfm_pipeline.errors import ContractError

CHUNK_CELLS = 20_000_000
# Rows, columns and what stands there.
Cells = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


class _Weighted(Form):
    """Weights are taken as they are, or made from distances d by exp(-(d / sigma)^2) and cut below `threshold`.

    Without `sigma`, the standard deviation of the listed distances is taken (Li et al., DCRNN, ICLR 2018).
    """

    sigma: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    threshold: float = Field(default=0.1, ge=0, lt=1)

    def near(self, what: str, names: list[str], cells: Cells, listed: NDArray[np.float64]) -> Cells:
        """Pairs that are near, with weights. `cells` are distances between two, `listed` all that the file states."""
        rows, columns, distances = cells
        wrong = np.flatnonzero(~(np.isfinite(distances) & (distances >= 0)))
        if len(wrong):
            raise ContractError(
                f"{what} holds distances that are none",
                expected="finite numbers, 0 or more",
                offenders=[f"{names[rows[i]]} to {names[columns[i]]}: {distances[i]:g}" for i in wrong],
                fix="mend them; a pair without an edge is left out of a list, and blank or inf in a matrix",
            )
        if not len(listed):
            return cells
        width = self.sigma or float(listed.std())
        # Nothing is near where distances do not differ, because then nothing says what near would be.
        weights = np.exp(-np.square(distances / (width or np.nan)))
        near = weights >= self.threshold
        if not near.any():
            raise ContractError(
                f"{what} holds distances, and none of them makes an edge",
                expected=f"exp(-(d / sigma)^2) of {self.threshold:g} or more between two entities",
                found=f"distances from {listed.min():g} to {listed.max():g}, sigma {width:g}",
                fix="state `sigma`: the distance at which a weight has fallen to 0.37",
            )
        return rows[near], columns[near], weights[near]


class Matrix(_Weighted):
    """A square matrix as csv without header, npy or npz (`key`, and names in `ids`); row = source, column = target.

    Without names it goes by the columns of a wide table or an array, else by the rows of the entities table.
    `holds: distances` makes weights from distances: 0 is that of two entities at one place, blank or inf is no edge.
    """

    format: Literal["matrix"]
    file: str
    holds: Literal["weights", "distances"] = "weights"
    key: str = "adjacency"
    separator: str | None = None

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame:
        path = files[self.file]
        refuse_pickle(path)
        what = f"{table}: {path.name}"
        matrix, names = self._open(table, path)
        names = names or _by_position(what, scene)
        if matrix.ndim != 2 or matrix.shape != (len(names), len(names)):
            raise ContractError(
                f"{what} does not fit the entities",
                expected=f"{len(names)} rows and columns, one per entity",
                found=" x ".join(map(str, matrix.shape)),
                fix="bring the matrix of these entities, or a list of edges with names",
            )
        cells = _cells(matrix, zeros=self.holds == "distances")
        if self.holds == "distances":
            _refuse_zeros_for_nothing(what, cells[2])
            cells = self.near(what, names, cells, cells[2])
        return _frame(names, cells)

    def _open(self, table: str, path: Path) -> tuple[NDArray[Any], list[str]]:
        """The matrix, and the names that an npz may bring with it."""
        if path.suffix not in (".npz", ".npy"):
            frame = open_frame(path, self.separator, header=False)
            return numbers(table, path, frame, frame.columns).to_numpy(), []
        matrix = load_array(path, self.key)
        with path.open("rb") as handle:
            if "ids" not in getattr(np.load(handle, allow_pickle=False), "files", ()):
                return matrix, []
        names = [str(i) for i in load_array(path, "ids", text=True).tolist()]
        if twice := [n for n, count in Counter(names).items() if count > 1]:
            raise ContractError(
                f"{table}: `ids` of {path.name} name entities twice", offenders=twice, fix="give each row its own name"
            )
        return matrix, names


def _by_position(what: str, scene: Scene) -> list[str]:
    """Entities in an order that does not depend on which rows there are."""
    names = scene.listed if scene.rows else scene.entities
    if scene.rows and not names:
        raise ContractError(
            f"{what} does not say whose rows and columns it holds",
            expected="names, because rows of observations give no order that a missing row would not change",
            fix="list the entities in its order in an `entities` table, or bring an npz with `ids`, or edges by name",
        )
    return names


def _cells(matrix: NDArray[Any], zeros: bool) -> Cells:
    """Finite off-diagonal cells, a few rows at a time: the matrix may be mapped from a large file."""
    found = []
    height = max(1, CHUNK_CELLS // max(1, matrix.shape[1]))
    for top in range(0, max(1, len(matrix)), height):
        block = np.asarray(matrix[top : top + height], np.float64)
        row, column = np.nonzero(np.isfinite(block) & (zeros | (block != 0)))
        off = row + top != column
        found.append((row[off] + top, column[off], block[row[off], column[off]]))
    rows, columns, values = (np.concatenate(part) for part in zip(*found, strict=True))
    return rows, columns, values


def _refuse_zeros_for_nothing(what: str, distances: NDArray[np.float64]) -> None:
    """A few entities may share a place; that most do means that 0 was written for pairs without an edge."""
    none = int((distances == 0).sum())
    if 2 * none > len(distances):
        raise ContractError(
            f"{what} says of most pairs that they are 0 apart",
            expected="0 between entities at one place; nothing, nan or inf where there is no edge",
            found=f"0 in {none} of {len(distances)} cells off the diagonal",
            fix="blank the pairs without an edge, or leave out `holds: distances` if these are weights",
        )


def _frame(names: list[str], cells: Cells) -> pl.DataFrame:
    rows, columns, weights = cells
    called = np.asarray(names, object)
    return pl.DataFrame(
        {
            "source": pl.Series(called[rows].tolist(), dtype=pl.String),
            "target": pl.Series(called[columns].tolist(), dtype=pl.String),
            "weight": weights,
        }
    )


def once(what: str, edges: pl.DataFrame) -> pl.DataFrame:
    """Each edge (source, target, weight) once. Rows of one edge that differ are an error: no sum of them was meant."""
    edges = edges.unique(maintain_order=True)
    twice = edges.filter(edges.select("source", "target").is_duplicated())
    if len(twice):
        raise ContractError(
            f"{what} lists edges twice, with different numbers",
            expected="a row per edge, from source to target",
            offenders=[f"{source} to {target}: {weight}" for source, target, weight in twice.iter_rows()],
            fix="keep the row that is meant",
        )
    return edges


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
        what = f"{table}: {path.name}"
        ends = [self.source, self.target]
        frame = pick(table, path, open_frame(path, self.separator, text=ends), [*ends, self.distance])
        frame = numbers(table, path, frame, [self.distance])
        known = frame.filter(pl.all_horizontal(pl.col(ends).is_in(scene.entities))).drop_nulls([*ends, self.distance])
        if len(frame) and not len(known):
            raise ContractError(
                f"{what} names none of the entities",
                expected=", ".join(scene.entities[:3]) + " ...",
                found=", ".join(frame[self.source].drop_nulls().head(3)) + " ...",
                fix="name the entities alike in both files (for arrays: `ids`)",
            )
        pairs = known.select(source=self.source, target=self.target, weight=self.distance)
        pairs = once(what, pairs.filter(pl.col("source") != pl.col("target")))
        code = {e: i for i, e in enumerate(scene.entities)}
        rows, columns = (pairs[c].replace_strict(code, return_dtype=pl.Int64).to_numpy() for c in ("source", "target"))
        cells = (rows, columns, pairs["weight"].to_numpy())
        return _frame(scene.entities, self.near(what, scene.entities, cells, known[self.distance].to_numpy()))


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
        weights = [self.weight] if self.weight else []
        frame = pick(table, path, open_frame(path, self.separator, text=ends), [*ends, *weights])
        frame = numbers(table, path, frame, weights)
        weight = pl.col(self.weight) if self.weight else pl.lit(1.0)
        listed = frame.select(source=self.source, target=self.target, weight=weight)
        return once(f"{table}: {path.name}", listed.filter(pl.col("source") != pl.col("target")))
