"""Distances over the earth: nearest places and counts within radii, by a tree of points on the unit sphere."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]
RADIUS_KM = 6371.0088


def on_sphere(lon: Any, lat: Any) -> Array:
    """(n, 3) unit vectors of degrees."""
    x, y = np.deg2rad(np.asarray(lon, np.float64)), np.deg2rad(np.asarray(lat, np.float64))
    return np.stack([np.cos(y) * np.cos(x), np.cos(y) * np.sin(x), np.sin(y)], axis=1)


def chord(km: float) -> float:
    """The straight line between two points of the unit sphere that are so far apart along it."""
    return float(2 * np.sin(min(km / RADIUS_KM, np.pi) / 2))


def km_of(chords: Array) -> Array:
    """Kilometres along the sphere; infinite stays infinite."""
    near = np.isfinite(chords)
    return np.where(near, 2 * RADIUS_KM * np.arcsin(np.clip(np.where(near, chords, 0) / 2, 0, 1)), np.inf)


def nearest(places: Array, points: Array, count: int, within_km: float = np.inf) -> tuple[Index, Array]:
    """Per place the indices (n, count) of the nearest points and their km; where there are fewer, -1 and infinity."""
    from scipy.spatial import cKDTree

    index, km = np.full((len(places), count), -1, np.int64), np.full((len(places), count), np.inf)
    asked = min(count, len(points))
    if not asked or not len(places):
        return index, km
    # A hair more than the limit, which is then kept to in kilometres.
    limit = np.inf if within_km == np.inf else chord(within_km) * (1 + 1e-9) + 1e-15
    found, which = cKDTree(points).query(places, k=list(range(1, asked + 1)), distance_upper_bound=limit)
    away = km_of(found)
    near = away <= within_km * (1 + 1e-12)
    index[:, :asked], km[:, :asked] = np.where(near, which, -1), np.where(near, away, np.inf)
    return index, km


def count_within(places: Array, points: Array, within_km: float) -> Index:
    """Per place the number of points at most so far away."""
    from scipy.spatial import cKDTree

    if not len(points) or not len(places):
        return np.zeros(len(places), np.int64)
    limit = chord(within_km) * (1 + 1e-12)
    return np.asarray(cKDTree(points).query_ball_point(places, limit, return_length=True), np.int64)
