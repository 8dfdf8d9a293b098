"""What is known of places, part by part: coordinates in several forms, the graph around, cells, pretrained vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import Embed, Place
from stfm_pipeline.embed import spatial
from stfm_pipeline.settings import Settings

Array = NDArray[np.float64]
Columns = dict[str, pl.Series]
How = dict[str, Any]
ENCODED = ("geoclip", "geoclip_random")


@dataclass(frozen=True)
class Ground:
    """Places (n,) in degrees, NaN where unknown; `xy` (n, 2) local and normalised; `eig` (n, k) of the graph."""

    lon: Array
    lat: Array
    xy: Array
    eig: Array

    @property
    def located(self) -> NDArray[np.bool_]:
        return np.isfinite(self.lon)


def place_table(
    entities: pl.DataFrame, edges: pl.DataFrame, rule: Embed, settings: Settings
) -> tuple[pl.DataFrame, dict[str, How]]:
    """One row per entity with the parts that `rule` names, and how each part was made.

    `located` says whether an entity has coordinates on Earth; what is made of them is null where it has none. `patch`
    follows local coordinates where all entities have them, else eigenvectors. Cells of a grid that lies nowhere on
    Earth have local coordinates in the grid, the first row on top.
    """
    names = entities["entity"].to_list()
    lon, lat = (entities[c].fill_null(np.nan).to_numpy().astype(np.float64).copy() for c in ("lon", "lat"))
    lon[np.isnan(lat)] = lat[np.isnan(lon)] = np.nan
    across, up = lon, lat
    if "row" in entities.columns and not np.isfinite(lon).all():
        across, row = (entities[c].to_numpy().astype(np.float64) for c in ("col", "row"))
        up = row.mean() - row
    xy = spatial.normalized_coordinates(across, up)
    mapped = bool(np.isfinite(xy).all())
    eig = np.zeros((len(names), 0))
    if "eigenvectors" in rule.spatial or not mapped:
        adjacency = spatial.adjacency_of(edges, names)
        eig = spatial.laplacian_eigenvectors(adjacency, rule.eigenvectors)
    patch = spatial.balanced_patches(xy if mapped else spatial.stand_in_coordinates(adjacency, eig), rule.patch_size)
    ground = Ground(lon, lat, xy, eig)
    columns: Columns = {
        "entity": pl.Series(names, dtype=pl.String),
        "located": pl.Series(ground.located),
        "patch": pl.Series(patch),
    }
    made: dict[str, How] = {
        "patch": {"method": "recursive bisection", "of": "coordinates" if mapped else "eigenvectors"}
        | {"size": rule.patch_size}
    }
    for part in rule.spatial:
        found, made[part] = PARTS[part](ground, rule, settings)
        columns |= found
    return pl.DataFrame(columns), made


def _numbers(values: NDArray[Any], *names: str) -> Columns:
    return {n: pl.Series(v.astype(np.float32)).fill_nan(None) for n, v in zip(names, values.T, strict=True)}


def _vectors(values: NDArray[Any], name: str, known: NDArray[np.bool_]) -> Columns:
    column = pl.Series(values.astype(np.float32)).cast(pl.List(pl.Float32))
    return {name: column.zip_with(pl.Series(known), pl.Series([None], dtype=column.dtype))}


def _coordinates(ground: Ground, rule: Embed, settings: Settings) -> tuple[Columns, How]:
    return _numbers(ground.xy, "x", "y"), {"method": "local degrees, longitudes shrunk, scaled to [-1, 1]"}


def _eigenvectors(ground: Ground, rule: Embed, settings: Settings) -> tuple[Columns, How]:
    names = [f"eig_{i + 1}" for i in range(rule.eigenvectors)]
    return _numbers(ground.eig, *names), {"method": "symmetric normalised Laplacian", "sign": "largest entry positive"}


def _sphere(ground: Ground, rule: Embed, settings: Settings) -> tuple[Columns, How]:
    lon, lat = np.deg2rad(ground.lon), np.deg2rad(ground.lat)
    points = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    return _numbers(points, "sphere_x", "sphere_y", "sphere_z"), {"method": "unit sphere"}


def _fourier(ground: Ground, rule: Embed, settings: Settings) -> tuple[Columns, How]:
    """Sine, then cosine, of x and y at each frequency (Mildenhall et al., NeRF, ECCV 2020)."""
    turns = 2 ** np.arange(rule.octaves)
    angle = (np.pi * ground.xy[:, :, None] * turns).reshape(len(ground.xy), -1)
    waves = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    return _vectors(waves, "fourier", np.isfinite(waves).all(axis=1)), {
        "method": "Fourier features",
        "half_turns_per_unit": turns.tolist(),
    }


def _h3(ground: Ground, rule: Embed, settings: Settings) -> tuple[Columns, How]:
    """The cell as text, and its number among the cells that occur, in their order."""
    import h3

    cells = [
        h3.latlng_to_cell(lat, lon, rule.resolution) if known else None
        for lat, lon, known in zip(ground.lat.tolist(), ground.lon.tolist(), ground.located.tolist(), strict=True)
    ]
    column = pl.Series(cells, dtype=pl.String)
    code = (column.rank("dense") - 1).cast(pl.Int32)
    how = {"method": "H3", "resolution": rule.resolution, "cells": column.drop_nulls().n_unique()}
    return {"h3": column, "h3_code": code}, how


def _geoclip(pretrained: bool) -> Callable[[Ground, Embed, Settings], tuple[Columns, How]]:
    def part(ground: Ground, rule: Embed, settings: Settings) -> tuple[Columns, How]:
        from stfm_pipeline.embed import geoclip

        name = "geoclip" if pretrained else "geoclip_random"
        weights = geoclip.weights(pretrained, settings)
        how = {"method": "GeoCLIP location encoder", "encoder": name, "weights": geoclip.digest(weights)}
        return _vectors(geoclip.encode(ground.lat, ground.lon, weights), name, ground.located), how

    return part


PARTS: dict[Place, Callable[[Ground, Embed, Settings], tuple[Columns, How]]] = {
    "coordinates": _coordinates,
    "fourier": _fourier,
    "sphere": _sphere,
    "eigenvectors": _eigenvectors,
    "h3": _h3,
    "geoclip": _geoclip(pretrained=True),
    "geoclip-random": _geoclip(pretrained=False),
}


def features(table: pl.DataFrame) -> NDArray[np.float32]:
    """(n, e) whether there is a place, and all numbers and vectors of it side by side, 0 where there is none.

    What an encoder says of all places alike tells none from another: its entries are z-scores over places.
    """
    blocks = [table["located"].to_numpy()[:, None].astype(np.float32)]
    for column in table.select(pl.selectors.float() | pl.selectors.list()).iter_columns():
        known, there = column.is_not_null().to_numpy(), column.drop_nulls()
        nested = column.dtype.is_nested()
        width = int(there.list.len()[0]) if nested and len(there) else 1
        found = (there.list.to_array(width) if nested else there).to_numpy().reshape(-1, width)
        if column.name in ENCODED and len(found):
            spread = found.std(axis=0)
            found = (found - found.mean(axis=0)) / np.where(spread > 1e-6, spread, 1)
        block = np.zeros((len(table), width), np.float32)
        block[known] = found
        blocks.append(block)
    return np.concatenate(blocks, axis=1)
