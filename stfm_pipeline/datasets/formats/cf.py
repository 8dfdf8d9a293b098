"""Files under the CF conventions (cfconventions.org), opened through xarray: what their axes are, when and where."""

from __future__ import annotations

import json

# xarray loads eccodes, which brings a SQLite of its own, too old for MLflow; the first one loaded serves the process.
import sqlite3  # noqa: F401
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stfm_pipeline.datasets.formats import cf_gaps, projection
from stfm_pipeline.datasets.formats.hdf import refuse_elsewhere
from stfm_pipeline.errors import ContractError, SourceError

if TYPE_CHECKING:
    from xarray import DataArray, Dataset

NAMES = {"y": ("latitude", "projection_y_coordinate", "grid_latitude"), "time": ("time",)}
NAMES["x"] = ("longitude", "projection_x_coordinate", "grid_longitude")
DEGREES = {"lon": ("east", "e"), "lat": ("north", "n")}


@contextmanager
def open_cf(path: Path) -> Iterator[list[Dataset]]:
    """The datasets of a NetCDF, Zarr or GRIB file (GRIB may hold several), lazily; times are left as numbers.

    Packed values are unpacked and fill values NaN when they are read. No engine that unpickles is used.
    """
    import xarray as xr

    head = b"" if path.is_dir() else _head(path)
    if path.is_dir() or head.startswith(b"PK"):
        with _zarr(path) as (store, old):
            with warnings.catch_warnings():
                # That a store keeps its description in many files: it is read once.
                warnings.simplefilter("ignore", RuntimeWarning)
                found = xr.open_zarr(store, chunks=None, decode_cf=False)
            with found:
                yield [cf_gaps.decoded(found, zarr_2=old)]
    elif head.startswith(b"\x89HDF"):
        import h5py

        with h5py.File(path, "r") as file:
            refuse_elsewhere(path, file)
        with xr.open_dataset(path, engine="h5netcdf", decode_cf=False) as found:
            yield [cf_gaps.decoded(found, netcdf=True)]
    elif head[:4] in (b"CDF\x01", b"CDF\x02"):
        with xr.open_dataset(path, engine="scipy", decode_cf=False) as found:
            yield [cf_gaps.decoded(found, netcdf=True)]
    elif head.startswith(b"GRIB"):
        yield _grib(path)
    else:
        raise SourceError(
            f"{path.name} is no gridded file that can be read",
            expected="NetCDF-3 or -4, a Zarr store (folder or zip) or GRIB",
            found="NetCDF with 64-bit data (CDF-5)" if head.startswith(b"CDF") else repr(head),
            fix="convert it, e.g. with `nccopy -k nc4`",
        )


def _head(path: Path) -> bytes:
    with path.open("rb") as handle:
        return handle.read(4)


@contextmanager
def _zarr(path: Path) -> Iterator[Any]:
    """A store that can be read without running what it holds, and whether it is in version 2 of the format.

    Zarr knows a codec that unpickles.
    """
    from zarr.storage import LocalStore, ZipStore

    listed = ".zarray", ".zmetadata", "zarr.json"
    if path.is_dir():
        texts = {str(p): p.read_text() for name in listed for p in path.rglob(name)}
    else:
        with zipfile.ZipFile(path) as pack:
            texts = {n: pack.read(n).decode() for n in pack.namelist() if n.rpartition("/")[2] in listed}
    if any(_unpickles(json.loads(text)) for text in texts.values()):
        raise SourceError(f"{path.name} holds pickled objects, and reading them runs code", fix="write numbers alone")
    store = LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path, mode="r")
    try:
        yield store, any(name.endswith(".zarray") for name in texts)
    finally:
        # A zip that was never opened has nothing to close, and says so in its own way.
        with suppress(AttributeError):
            store.close()


def _unpickles(found: Any) -> bool:
    if isinstance(found, dict):
        codec = [str(found.get(k, "")) for k in ("id", "name")]
        return any(c.rpartition(".")[2] == "pickle" for c in codec) or any(_unpickles(v) for v in found.values())
    return isinstance(found, list) and any(_unpickles(v) for v in found)


def _grib(path: Path) -> list[Dataset]:
    try:
        import cfgrib
    except (ImportError, RuntimeError) as error:
        raise SourceError(
            f"{path.name} is GRIB, which needs the extra `grib`",
            found=str(error).splitlines()[0],
            fix="pip install 'stfm-pipeline[grib]', or convert it to NetCDF: `grib_to_netcdf -o out.nc in.grib`",
        ) from error
    # An index beside the file would be a pickle.
    kept = {"indexpath": "", "squeeze": False}
    found: list[Dataset] = cfgrib.open_datasets(
        str(path), backend_kwargs=kept, decode_times=False, decode_timedelta=False
    )
    for field in (d[v] for d in found for v in d.data_vars):
        first = field.attrs.get("GRIB_longitudeOfFirstGridPointInDegrees")
        if first is not None and "longitude" in field.dims and (first - float(field["longitude"][0])) % 360:
            raise ContractError(
                f"'{field.name}' of {path.name} runs over the seam of the globe, and cfgrib sorts its longitudes",
                expected=f"longitudes from {first:g} on",
                found=f"from {float(field['longitude'][0]):g} on",
                fix="convert it to NetCDF first, e.g. `cdo -f nc copy in.grib out.nc`",
            )
    return found


def role(axis: DataArray | None) -> str | None:
    """What a coordinate is by its attributes: time, x, y, or anything else as None."""
    if axis is None:
        return None
    said = {k: str(axis.attrs.get(k, "")) for k in ("standard_name", "axis", "units")}
    if said["axis"] == "T" or said["standard_name"] == "time" or " since " in said["units"]:
        return "time"
    if said["axis"] in ("X", "Y"):
        return said["axis"].lower()
    known = [r for r, names in NAMES.items() if said["standard_name"] in names]
    return known[0] if known else {"lon": "x", "lat": "y"}.get(degrees(axis) or "")


def degrees(variable: DataArray) -> str | None:
    """`lon` or `lat` where a variable's attributes say that it is one."""
    name = {"longitude": "lon", "latitude": "lat"}.get(str(variable.attrs.get("standard_name", "")))
    if name is not None:
        return name
    units = str(variable.attrs.get("units", ""))
    spelt = {
        f"degree{s}{_}{end}": k for k, ends in DEGREES.items() for end in ends for s in ("", "s") for _ in ("", "_")
    }
    return spelt.get(units) or spelt.get(units[:-1] + units[-1:].lower())


def where(
    path: Path, data: Dataset, field: DataArray, y: str, x: str, named: tuple[str | None, str | None]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Longitudes and latitudes (y, x) of a field's cells; None where the file says nothing of where they are."""
    found = {}
    for key, name in zip(("lon", "lat"), named, strict=True):
        told = (
            [name]
            if name is not None
            else [str(n) for n, v in data.variables.items() if degrees(data[n]) == key and v.ndim]
        )
        if name is not None and name not in data.variables:
            raise ContractError(
                f"{path.name} has no variable '{name}'",
                found=", ".join(map(str, data.variables)),
                fix=f"correct `{key}`",
            )
        over = [n for n in told if set(data[n].dims) <= {y, x}]
        if over:
            found[key] = data[over[0]].broadcast_like(field.isel({d: 0 for d in field.dims if d not in (y, x)}))
    if len(found) == 2:
        lon, lat = (found[k].transpose(y, x).values.astype(np.float64) for k in ("lon", "lat"))
        return lon, lat
    axes = [data[d].values.astype(np.float64) for d in (x, y) if d in data.variables]
    mapping = str(field.attrs.get("grid_mapping", field.encoding.get("grid_mapping", "")))
    if len(axes) == 2 and mapping in data.variables:
        across, up = np.meshgrid(*axes)
        return projection.places(dict(data[mapping].attrs), across, up)
    return None
