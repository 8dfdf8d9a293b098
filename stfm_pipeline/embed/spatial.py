"""Geometry of places: normalised coordinates, Laplacian eigenvectors, balanced patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

Array = NDArray[np.float64]
Sparse = Any
DEGENERATE = 1e-6
DENSE = 128
BAND = 2000
SHIFT = 1e-8


def normalized_coordinates(lon: Array, lat: Array) -> Array:
    """(n, 2) local coordinates in [-1, 1], longitudes shrunk by the cosine of the middle latitude; NaN stays NaN."""
    if not np.isfinite(lon).any():
        return np.full((len(lon), 2), np.nan)
    mid = float(np.nanmean(lat))
    xy = np.stack([(lon - np.nanmean(lon)) * np.cos(np.deg2rad(mid)), lat - mid], axis=1)
    span = np.nanmax(np.abs(xy))
    return np.asarray(xy / (span if span > 0 else 1.0), np.float64)


def laplacian_eigenvectors(adjacency: Sparse, k: int) -> Array:
    """(n, k) eigenvectors of the symmetric normalised Laplacian with the smallest non-trivial eigenvalues.

    The sign is fixed by making the (first) entry of largest magnitude positive. Missing ones (n <= k) are zero columns,
    and so are those of a repeated eigenvalue: their basis is arbitrary and would differ between machines. Up to DENSE
    nodes all are computed; beyond, the smallest alone, by Lanczos from a fixed start, on the inverse if sparse.
    """
    n = adjacency.shape[0]
    out = np.zeros((n, k))
    if k == 0 or adjacency.nnz == 0:
        return out
    values, vectors = _smallest(adjacency, k + 2)
    gaps = np.concatenate([[np.inf], np.diff(values), [np.inf]])
    alone = np.minimum(gaps[:-1], gaps[1:]) > DEGENERATE
    chosen = (vectors * alone)[:, 1 : k + 1]
    size = np.abs(chosen)
    # Of entries that differ by rounding alone, the first decides.
    peak = (size >= size.max(axis=0, initial=0) * (1 - 1e-6)).argmax(axis=0)
    sign = np.sign(chosen[peak, np.arange(chosen.shape[1])])
    out[:, : chosen.shape[1]] = chosen * np.where(sign == 0, 1, sign)
    return out


def _smallest(adjacency: Sparse, k: int) -> tuple[Array, Array]:
    """Eigenvalues of the Laplacian in rising order with vectors as columns: all of a small one, k of a large one."""
    from scipy.sparse.csgraph import connected_components

    laplacian, n = _laplacian(adjacency), adjacency.shape[0]
    if n <= max(DENSE, 4 * k):
        values, vectors = np.linalg.eigh(laplacian.toarray())
        return values, vectors
    # Each component has an eigenvalue 0 whose vector is known.
    weights = adjacency.maximum(adjacency.T)
    root = np.sqrt(np.asarray(weights.sum(axis=1)).ravel())
    label = connected_components(weights, directed=False)[1]
    there = np.unique(label[root > 0])[:k]
    vectors = np.where(label[:, None] == there, root[:, None], 0)
    vectors /= np.linalg.norm(vectors, axis=0)
    values, inverse = np.zeros(len(there)), _inverse(laplacian)
    wanted = k - len(there)
    while wanted:
        more, new = _lanczos(laplacian, inverse, vectors, wanted)
        # One start finds one vector of a repeated eigenvalue, so another looks for what is left below the k-th.
        if not len(more) or (len(values) >= k and more.min() > np.sort(values)[k - 1] - DEGENERATE / 2):
            break
        values, vectors = np.append(values, more), np.concatenate([vectors, new], axis=1)
        wanted = 1
    order = np.argsort(values)[:k]
    return values[order], vectors[:, order]


def _lanczos(laplacian: Sparse, inverse: Any, known: Array, wanted: int) -> tuple[Array, Array]:
    """The smallest eigenvalues with vectors at right angles to the `known` ones."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    n = laplacian.shape[0]

    def operate(x: Array) -> Array:
        x = x - known @ (known.T @ x)
        # Where separators are small, eigenvalues crowd at 0: there the inverse spreads them out. Where they are not,
        # its factors would fill up, but 2 - L gets there soon.
        y = 2 * x - laplacian @ x if inverse is None else inverse.solve(x)
        return np.asarray(y - known @ (known.T @ y))

    size = max(6 * wanted, 60) if inverse is None else max(3 * wanted, 20)
    try:
        values, vectors = eigsh(
            LinearOperator((n, n), operate, dtype=np.float64),
            wanted,
            which="LA",
            v0=np.cos(np.arange(n) * (1.0 + known.shape[1])),
            ncv=min(n, size),
            maxiter=2000,
            tol=1e-9,
        )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    return (2 - values if inverse is None else 1 / values - SHIFT), vectors


def _inverse(laplacian: Sparse) -> Any:
    """L + SHIFT factorised, or None where its factors could fill up."""
    from scipy.sparse import eye_array
    from scipy.sparse.csgraph import reverse_cuthill_mckee
    from scipy.sparse.linalg import splu

    n = laplacian.shape[0]
    place = np.argsort(reverse_cuthill_mckee(laplacian, symmetric_mode=True))
    rows, columns = laplacian.nonzero()
    if np.abs(place[rows] - place[columns]).max(initial=0) > BAND:
        return None
    return splu(
        (laplacian + SHIFT * eye_array(n)).tocsc(),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0,
        options={"SymmetricMode": True},
    )


def _laplacian(adjacency: Sparse) -> Sparse:
    from scipy.sparse import diags_array, eye_array

    weights = adjacency.maximum(adjacency.T)
    degree = np.asarray(weights.sum(axis=1)).ravel()
    root = diags_array(np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0))
    return (eye_array(weights.shape[0]) - root @ weights @ root).tocsr()


def residual(adjacency: Sparse, vectors: Array) -> Array:
    """(k,) how far columns are from eigenvectors of length 1 of the Laplacian; 0 for columns that are 0, left out."""
    moved = _laplacian(adjacency) @ vectors
    off = np.linalg.norm(moved - vectors * (vectors * moved).sum(axis=0), axis=0)
    length = np.linalg.norm(vectors, axis=0)
    return np.asarray(np.where(length > 0, np.maximum(off, np.abs(length - 1)), 0))


def stand_in_coordinates(adjacency: Sparse, eigenvectors: Array) -> Array:
    """(n, 2) coordinates from edges alone: the two slowest eigenvectors, the slower the wider (commute-time map)."""
    slow = np.zeros((adjacency.shape[0], 2))
    found = eigenvectors[:, :2]
    values = (found * (_laplacian(adjacency) @ found)).sum(axis=0)
    slow[:, : found.shape[1]] = found / np.sqrt(np.maximum(values, 1e-12))
    return slow


def balanced_patches(xy: Array, size: int) -> NDArray[np.int32]:
    """Patch of each entity by recursive bisection along the wider axis into equal halves (KD-tree, as in PatchSTG).

    Patches hold at most `size` entities and differ by at most one; on a regular grid they are rectangles.
    """
    n = len(xy)
    # Sorted once along each axis; every halving keeps both orders, so a level takes time in proportion to n.
    orders = [np.lexsort((xy[:, 1 - axis], xy[:, axis])) for axis in (0, 1)]
    sizes = np.array([n])
    for _ in range(max(0, int(np.ceil(np.log2(max(n, 1) / size))))):
        start = np.cumsum(sizes) - sizes
        half = (sizes + 1) // 2
        spread = np.zeros((2, len(sizes)))
        some = sizes > 0
        for axis, order in enumerate(orders):
            along = xy[order, axis]
            spread[axis, some] = along[(start + sizes - 1)[some]] - along[start[some]]
        group = np.repeat(np.arange(len(sizes)), sizes)
        late = np.arange(n) - start[group] >= half[group]
        upright = (spread[1] > spread[0])[group]
        second = np.empty(n, np.bool_)
        for turned, order in zip((~upright, upright), orders, strict=True):
            second[order[turned]] = late[turned]
        # Small integers are sorted by their digits.
        key = (2 * group).astype(np.uint16 if 2 * len(sizes) <= 2**16 else np.int64)
        orders = [order[np.argsort(key + second[order], kind="stable")] for order in orders]
        sizes = np.stack([half, sizes - half], axis=1).ravel()
    patch = np.empty(n, np.int32)
    patch[orders[0]] = np.repeat(np.arange(len(sizes)), sizes)
    return patch


def adjacency_of(edges: pl.DataFrame, entities: list[str]) -> Sparse:
    """(n, n) sparse weights, row = source, column = target."""
    from scipy.sparse import csr_array

    code = {e: i for i, e in enumerate(entities)}
    ends = [edges[c].replace_strict(code, return_dtype=pl.Int64).to_numpy() for c in ("source", "target")]
    n = len(entities)
    return csr_array((edges["weight"].to_numpy().astype(np.float64), (ends[0], ends[1])), shape=(n, n))
