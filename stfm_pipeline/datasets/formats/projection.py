"""Longitudes and latitudes of a projected grid whose file brings none."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stfm_pipeline.errors import ContractError

Floats = NDArray[np.float64]


def places(mapping: dict[str, Any], x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Degrees of points (x, y) in metres, by a CF grid mapping: the polar stereographic one of a sphere.

    Raises `ContractError` on any other. Snyder, Map Projections (USGS 1395), 1987, equations 20-14 to 20-18.
    """
    name = str(mapping.get("grid_mapping_name", "none"))
    radius = _number(mapping, "earth_radius")
    if name != "polar_stereographic" or radius is None:
        raise ContractError(
            f"the grid is projected as '{name}', and the file does not say where its cells are",
            expected="longitude and latitude as variables over the grid, or a polar stereographic grid on a sphere",
            found=", ".join(sorted(mapping)) or "no attributes",
            fix="write both into the file, e.g. with `cdo -setgrid` or pyproj, and name them as `lon` and `lat`",
        )
    pole = np.sign(_number(mapping, "latitude_of_projection_origin") or 90.0)
    middle = _number(mapping, "straight_vertical_longitude_from_pole") or 0.0
    scale, parallel = (_number(mapping, k) for k in ("scale_factor_at_projection_origin", "standard_parallel"))
    if scale is None:
        scale = 1.0 if parallel is None else (1 + np.sin(np.deg2rad(abs(parallel)))) / 2
    east = x - (_number(mapping, "false_easting") or 0.0)
    north = y - (_number(mapping, "false_northing") or 0.0)
    lat = pole * (90 - np.rad2deg(2 * np.arctan(np.hypot(east, north) / (2 * radius * scale))))
    return middle + np.rad2deg(np.arctan2(east, -pole * north)), lat


def _number(mapping: dict[str, Any], key: str) -> float | None:
    return float(np.ravel(mapping[key])[0]) if key in mapping else None
