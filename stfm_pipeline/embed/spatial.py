"""Where entities are: normalised coordinates, Laplacian eigenvectors, balanced patches."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

Array = NDArray[np.float64]
DEGENERATE = 1e-6


def normalized_coordinates(lon: Array, lat: Array) -> Array:
    """(n, 2) local coordinates in [-1, 1], longitudes shrunk by the cosine of the middle latitude; NaN stays NaN."""
    if not np.isfinite(lon).any():
        return np.full((len(lon), 2), np.nan)
    mid = float(np.nanmean(lat))
    xy = np.stack([(lon - np.nanmean(lon)) * np.cos(np.deg2rad(mid)), lat - mid], axis=1)
    span = np.nanmax(np.abs(xy))
    return np.asarray(xy / (span if span > 0 else 1.0), np.float64)


def laplacian_eigenvectors(adjacency: Array, k: int) -> Array:
    """(n, k) eigenvectors of the symmetric normalised Laplacian with the smallest non-trivial eigenvalues.

    The sign is fixed by making the entry of largest magnitude positive. Missing ones (n <= k) are zero columns, and so
    are those of a repeated eigenvalue: their basis is arbitrary and would differ between machines.
    """
    n = len(adjacency)
    out = np.zeros((n, k))
    weights = np.maximum(adjacency, adjacency.T)
    if k == 0 or not weights.any():
        return out
    values, vectors = np.linalg.eigh(_laplacian(weights))
    gaps = np.concatenate([[np.inf], np.diff(values), [np.inf]])
    alone = np.minimum(gaps[:-1], gaps[1:]) > DEGENERATE
    chosen = (vectors * alone)[:, 1 : k + 1]
    peak = np.abs(chosen).argmax(axis=0)
    sign = np.sign(chosen[peak, np.arange(chosen.shape[1])])
    out[:, : chosen.shape[1]] = chosen * np.where(sign == 0, 1, sign)
    return out


def _laplacian(weights: Array) -> Array:
    degree = weights.sum(axis=1)
    root = np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0)
    return np.asarray(np.eye(len(weights)) - root[:, None] * weights * root[None, :])


def stand_in_coordinates(adjacency: Array, eigenvectors: Array) -> Array:
    """(n, 2) coordinates from edges alone: the two slowest eigenvectors, the slower the wider (commute-time map)."""
    slow = np.zeros((len(adjacency), 2))
    found = eigenvectors[:, :2]
    values = np.einsum("nk,nm,mk->k", found, _laplacian(np.maximum(adjacency, adjacency.T)), found)
    slow[:, : found.shape[1]] = found / np.sqrt(np.maximum(values, 1e-12))
    return slow


def balanced_patches(xy: Array, size: int) -> NDArray[np.int32]:
    """Patch of each entity by recursive bisection along the wider axis into equal halves (KD-tree, as in PatchSTG).

    Patches hold at most `size` entities and differ by at most one; on a regular grid they are rectangles.
    """
    n = len(xy)
    patch = np.zeros(n, np.int32)
    depth = max(0, int(np.ceil(np.log2(max(n, 1) / size))))
    groups = [np.arange(n)]
    for _ in range(depth):
        halves = []
        for group in groups:
            spread = np.ptp(xy[group], axis=0) if len(group) else np.zeros(2)
            axis = int(spread[1] > spread[0])
            order = group[np.lexsort((xy[group, 1 - axis], xy[group, axis]))]
            half = (len(order) + 1) // 2
            halves += [order[:half], order[half:]]
        groups = halves
    for code, group in enumerate(groups):
        patch[group] = code
    return patch


def adjacency_of(edges: pl.DataFrame, entities: list[str]) -> Array:
    """(n, n) weights, row = source, column = target."""
    code = {e: i for i, e in enumerate(entities)}
    matrix = np.zeros((len(entities), len(entities)))
    if len(edges):
        rows, columns = (edges[c].replace_strict(code, return_dtype=pl.Int64).to_numpy() for c in ("source", "target"))
        matrix[rows, columns] = edges["weight"].to_numpy()
    return matrix


def embed(entities: pl.DataFrame, edges: pl.DataFrame, eigenvectors: int, patch_size: int) -> pl.DataFrame:
    """One row per entity: `x`, `y`, `patch`, `eig_1..k`. Entities without coordinates are patched by eigenvectors."""
    names = entities["entity"].to_list()
    lon, lat = (entities[c].fill_null(np.nan).to_numpy().astype(np.float64) for c in ("lon", "lat"))
    xy = normalized_coordinates(lon, lat)
    adjacency = adjacency_of(edges, names)
    eig = laplacian_eigenvectors(adjacency, eigenvectors)
    located = np.isfinite(xy).all()
    patch = balanced_patches(xy if located else stand_in_coordinates(adjacency, eig), patch_size)
    columns = {f"eig_{i + 1}": eig[:, i].astype(np.float32) for i in range(eigenvectors)}
    return pl.DataFrame(
        {"entity": names, "x": xy[:, 0].astype(np.float32), "y": xy[:, 1].astype(np.float32), "patch": patch, **columns}
    ).with_columns(pl.col("x", "y").fill_nan(None))
