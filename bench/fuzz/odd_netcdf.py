"""NetCDF that is odd: attributes, axes, places and times of fields, and the HDF5 below them."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np

from bench.fuzz import odd_hdf
from bench.fuzz.seeds import field, netcdf

TIMES = (
    "hours since 1900-01-01", "days since 0000-00-00", "months since 2000-01-01", "hours", "",
    "seconds since 9999-12-31",
    "hours since Mars", 7, "microseconds since 1970-01-01", "years since 1-1-1",
    "hours since 2024-01-01 00:00:00 +99:00",
    "hours since 2024-13-01", "common_years since 2000-01-01", "s since 1970-01-01T00:00:00.123456789Z",
)  # fmt: skip
CALENDARS = ("360_day", "noleap", "julian", "none", "", 7, "gregorian", "proleptic_gregorian")
NUMBERS = (0.0, -1.0, float("nan"), float("inf"), 1e308, 1e-308, "x", np.array([1.0, 2.0]))
WORDS = (
    "K",
    "degC",
    "",
    7,
    "degrees_north",
    "degrees_east",
    "latitude",
    "time",
    "X",
    "nowhere",
    "a b c",
    "é",
    "a" * 3000,
)


def netcdf_file(data: bytes, rng: random.Random) -> bytes:
    """A field with something odd, as NetCDF-4 or NetCDF-3, as it was."""
    hdf = data.startswith(b"\x89HDF")
    if hdf and rng.random() < 0.4:
        return odd_hdf.changed(data, rng)
    found = field()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for _ in range(rng.choice((1, 1, 2, 3))):
            try:
                found = rng.choice(CHANGES)(found, rng)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError):
                continue
        try:
            return netcdf(found, "h5netcdf" if hdf else "scipy")
        except Exception:
            # What cannot be written is not what is tried out here.
            return odd_hdf.changed(data, rng) if hdf else data[: rng.randrange(len(data))]


def _described(data: Any, rng: random.Random) -> Any:
    name = rng.choice(("time", "latitude", "longitude", "t2m"))
    key = rng.choice(
        ("units", "standard_name", "axis", "grid_mapping", "coordinates", "bounds", "positive", "long_name")
    )
    data[name].attrs[key] = rng.choice(WORDS)
    return data


def _packed(data: Any, rng: random.Random) -> Any:
    key = rng.choice(("scale_factor", "add_offset", "missing_value", "valid_range", "valid_min", "_Unsigned"))
    data[rng.choice(("t2m", "t2m", "time", "latitude"))].attrs[key] = rng.choice(NUMBERS)
    return data


def _timed(data: Any, rng: random.Random) -> Any:
    if rng.random() < 0.5:
        data["time"].attrs[rng.choice(("units", "units", "calendar"))] = rng.choice((*TIMES, *CALENDARS))
        return data
    old, attributes = data["time"].values, data["time"].attrs
    new = rng.choice((
        old[::-1], old * 0, old.astype(float) + np.nan, old * 1e300, old - 10**7, old.astype(float) + 0.25,
        np.roll(old, 3), old * 10**9,
        old.astype(np.int8), np.where(old == old[5], old[4], old), old.astype(str),
    ))  # fmt: skip
    return data.assign_coords(time=("time", new, attributes))


def _placed(data: Any, rng: random.Random) -> Any:
    name = rng.choice(("latitude", "longitude"))
    old, attributes = data[name].values, data[name].attrs
    new = rng.choice(
        (
            old * 0,
            old + 1000,
            old + np.nan,
            old[::-1],
            np.where(old == old[0], np.inf, old),
            old.astype(str),
            old * 1e300,
            old % 3,
        )
    )
    if rng.random() < 0.2:
        lat, lon = np.meshgrid(data["latitude"].values, data["longitude"].values, indexing="ij")
        return data.drop_vars(("latitude", "longitude")).assign_coords(
            lat=(("latitude", "longitude"), lat + rng.choice((0, 100, np.nan)), {"units": "degrees_north"}),
            lon=(("latitude", "longitude"), lon, {"units": "degrees_east"}),
        )
    return data.assign_coords({name: (name, new, attributes)})


def _shaped(data: Any, rng: random.Random) -> Any:
    return rng.choice((
        lambda: data.transpose(), lambda: data.rename(latitude="y"), lambda: data.drop_vars("latitude"),
        lambda: data.drop_vars("time"),
        lambda: data.expand_dims(depth=[0.0]), lambda: data.expand_dims(depth=[0.0, 5.0]),
        lambda: data.isel(time=slice(0, 0)),
        lambda: data.isel(latitude=slice(0, 0)), lambda: data.isel(time=0), lambda: data.isel(longitude=0),
        lambda: data.isel(time=[0]),
        lambda: data.rename(t2m="t3m"), lambda: data.drop_vars("t2m"), lambda: data.isel(time=[0, 0, 1, 1] * 18),
        lambda: data.rename(latitude="longitude", longitude="latitude"), lambda: data.assign(t2m=data["t2m"][..., 0]),
    ))()  # fmt: skip


def _typed(data: Any, rng: random.Random) -> Any:
    kind = rng.choice(("i1", "i2", "i4", "i8", "f4", "f8", "S3", "U5", "?", "u1", "u8", "f2"))
    name = rng.choice(("t2m", "t2m", "time", "latitude"))
    attributes = data[name].attrs
    data[name] = data[name].astype(kind)
    data[name].attrs.update(attributes)
    return data


def _valued(data: Any, rng: random.Random) -> Any:
    values = data["t2m"].values.astype(float)
    how = rng.randrange(3)
    if how == 0:
        values[:] = rng.choice((np.nan, np.inf, 1e300, 0))
    else:
        values[rng.randrange(len(values))] = rng.choice((np.nan, np.inf, -np.inf, 1e300, 9.96921e36, -32767))
    data["t2m"] = (data["t2m"].dims, values, data["t2m"].attrs)
    return data


def _projected(data: Any, rng: random.Random) -> Any:
    kind = rng.choice(
        ("polar_stereographic", "lambert_conformal_conic", "rotated_latitude_longitude", "latitude_longitude", 7, "")
    )
    attributes = {"grid_mapping_name": kind, "straight_vertical_longitude_from_pole": rng.choice((70.0, np.nan, "x")),
                  "standard_parallel": rng.choice((60.0, 0.0, 900.0)), "earth_radius": rng.choice((6371000.0, 0.0,
                  -1.0, np.inf))}  # fmt: skip
    data = data.rename(latitude="y", longitude="x").assign(crs=((), 0, attributes))
    for axis in ("x", "y"):
        data[axis].attrs.update(units="m", standard_name=f"projection_{axis}_coordinate")
    data["t2m"].attrs["grid_mapping"] = "crs"
    return data


def _bounded(data: Any, rng: random.Random) -> Any:
    old = data["time"].values.astype(float)
    bounds = np.stack([old, old + rng.choice((1, 0, -5, 1e300, np.nan))], axis=1)
    if rng.random() < 0.3:
        bounds = bounds[:, :1]
    data["time"].attrs["bounds"] = "time_bnds"
    return data.assign(time_bnds=(("time", "nv"), bounds))


CHANGES = (
    _described,
    _described,
    _packed,
    _packed,
    _timed,
    _timed,
    _placed,
    _placed,
    _shaped,
    _shaped,
    _typed,
    _valued,
    _projected,
    _bounded,
)
