"""What a gridded file means by missing without saying so, and times that need more than arithmetic."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from fixtures import foreign
from fixtures.foreign import START
from fixtures.foreign import read_grid as read

from stfm_pipeline.datasets.formats.gridded import Gridded
from stfm_pipeline.errors import ContractError
from stfm_pipeline.tables import dense_values


@pytest.fixture(autouse=True)
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gridded, "fragile", lambda form, files: False)


def written(data: xr.Dataset, path: Path, **encoding: Any) -> None:
    kept = {"t2m": {"_FillValue": None, **encoding}}
    if path.suffix == ".nc4":
        data.to_netcdf(path, engine="h5netcdf", encoding=kept)
    else:
        data.to_netcdf(path, engine="scipy", format="NETCDF3_64BIT", encoding=kept)


def values(folder: Path, name: str) -> Any:
    return dense_values(read(folder, file=name)["observations"], "temp")


@pytest.mark.parametrize(("kind", "left"), [("f4", 9.969209968386869e36), ("f8", 9.969209968386869e36), ("i2", -32767)])
@pytest.mark.parametrize("suffix", ["nc4", "nc"])
def test_cells_that_nobody_wrote_are_missing(suffix: str, kind: str, left: float, tmp_path: Path) -> None:
    data = foreign.field()
    known = np.nan_to_num(data["t2m"].values, nan=281.0).round().astype(kind)
    known[2, 0, :2] = left
    written(data.assign(t2m=data["t2m"].copy(data=known)), tmp_path / f"a.{suffix}")
    found = values(tmp_path, f"a.{suffix}")
    assert np.argwhere(np.isnan(found)).tolist() == [[2, 0], [2, 1]]
    assert np.array_equal(found[3], known[3].ravel())


def test_wide_integers_that_nobody_wrote_are_missing(tmp_path: Path) -> None:
    data = foreign.field()
    known = np.nan_to_num(data["t2m"].values, nan=281.0).round().astype(np.int64)
    known[2, 0, 0] = -9223372036854775806
    written(data.assign(t2m=data["t2m"].copy(data=known)), tmp_path / "a.nc4")
    assert np.argwhere(np.isnan(values(tmp_path, "a.nc4"))).tolist() == [[2, 0]]


def test_a_missing_value_beside_a_fill_value_is_missing_too(tmp_path: Path) -> None:
    data = foreign.field(missing_value=np.float32(-99))
    known = np.nan_to_num(data["t2m"].values, nan=281.0)
    known[0, 0, 0], known[1, 0, 0] = -99, 9.969209968386869e36
    written(data.assign(t2m=data["t2m"].copy(data=known)), tmp_path / "a.nc4")
    assert np.argwhere(np.isnan(values(tmp_path, "a.nc4"))).tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize(
    "stated",
    [
        {"valid_range": np.array([270, 290], np.float32)},
        {"valid_min": np.float32(270), "valid_max": np.float32(290)},
        {"valid_max": np.float64(290)},
        {"valid_range": np.array([270, 290], np.float64)},
    ],
)
def test_what_lies_outside_the_valid_range_is_missing(stated: dict[str, Any], tmp_path: Path) -> None:
    data = foreign.field(**stated)
    known = np.nan_to_num(data["t2m"].values, nan=281.0)
    known[4, 0, 1], known[4, 0, 2] = 1e5, 290
    written(data.assign(t2m=data["t2m"].copy(data=known)), tmp_path / "a.nc4")
    assert np.argwhere(np.isnan(values(tmp_path, "a.nc4"))).tolist() == [[4, 1]]


@pytest.mark.parametrize(
    "limits", [np.array([-160, 80], np.int16), np.array([270, 285], np.float64)], ids=["packed", "unpacked"]
)
def test_limits_of_packed_values_are_told_by_their_type(limits: Any, tmp_path: Path) -> None:
    data = foreign.field(valid_range=limits)
    kept = {"dtype": "int16", "scale_factor": 0.0625, "add_offset": 280.0, "_FillValue": -32767}
    written(data, tmp_path / "a.nc4", **kept)
    known = data["t2m"].values.reshape(8, 12)
    assert np.array_equal(values(tmp_path, "a.nc4"), np.where(known <= 285, known, np.nan), equal_nan=True)


@pytest.mark.parametrize("high", [np.finfo(np.float32).max, np.finfo(np.float64).max, 1e12])
def test_an_upper_limit_that_is_none_loosens_no_lower_one(high: float, tmp_path: Path) -> None:
    data = foreign.field(valid_range=np.array([0, high]))
    known = np.nan_to_num(data["t2m"].values, nan=281.0)
    known[0, 0, :2] = -9999, -1
    written(data.assign(t2m=data["t2m"].copy(data=known)), tmp_path / "a.nc4")
    assert np.argwhere(np.isnan(values(tmp_path, "a.nc4"))).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("limits", [np.array([1.0, 2, 3]), "about 20", np.array([270.0])])
def test_limits_that_are_none_are_left_alone(limits: Any, tmp_path: Path) -> None:
    data = foreign.field(valid_range=limits)
    foreign.stored(data, tmp_path / "a.nc4")
    assert np.array_equal(values(tmp_path, "a.nc4"), data["t2m"].values.reshape(8, 12), equal_nan=True)


@pytest.mark.parametrize("version", [2, 3])
def test_a_zero_in_a_zarr_store_is_a_value(version: Any, tmp_path: Path) -> None:
    store = zarr.create_group(tmp_path / "a.zarr", zarr_format=version)
    known = foreign.field()
    for name, variable in {"t2m": known["t2m"] - 280, **known.coords}.items():
        array = store.create_array(
            name,
            data=np.nan_to_num(np.asarray(variable.values)),
            fill_value=0,
            **({"dimension_names": variable.dims} if version == 3 else {}),
        )
        array.attrs.update({**known[name].attrs, **({"_ARRAY_DIMENSIONS": variable.dims} if version == 2 else {})})
    found = values(tmp_path, "a.zarr")
    assert found[0, 0] == 0, "280 K less 280"
    assert not np.isnan(found).any()


def test_times_from_before_the_reform_of_the_calendar_are_those_of_old_archives(tmp_path: Path) -> None:
    data = foreign.field(since="hours since 1-1-1 00:00:0.0")
    # The first hour of 1948 in the archives of NCEP's reanalysis.
    clock = data["time"].copy(data=17_067_072.0 + np.arange(8))
    written(data.assign_coords(time=clock), tmp_path / "a.nc4")
    found = read(tmp_path, file="a.nc4")["observations"]["time"].to_list()
    assert found == [datetime(1948, 1, 1, tzinfo=UTC) + timedelta(hours=h) for h in range(8)]


@pytest.mark.parametrize("since", ["days since 1582-10-04", "days since 1500-02-28"])
def test_the_day_after_the_last_of_the_julian_calendar_is_the_first_of_the_other(since: str, tmp_path: Path) -> None:
    days = {"days since 1582-10-04": 1, "days since 1500-02-28": 30_170}[since] + 150_000
    data = foreign.field(since=since)
    written(data.assign_coords(time=data["time"].copy(data=days + np.arange(8))), tmp_path / "a.nc4")
    first = read(tmp_path, file="a.nc4", step="1d")["observations"]["time"][0]
    assert first == datetime(1582, 10, 15, tzinfo=UTC) + timedelta(days=150_000)


def test_times_in_the_julian_calendar_are_refused(tmp_path: Path) -> None:
    data = foreign.field(since="days since 1500-01-01")
    written(data.assign_coords(time=data["time"].copy(data=np.arange(8))), tmp_path / "a.nc4")
    with pytest.raises(ContractError, match="reaches back before 1582-10-15, into the Julian calendar"):
        read(tmp_path, file="a.nc4", step="1d")


@pytest.mark.parametrize(("minutes", "unit"), [(60, 1440), (15, 1440), (20, 60), (10, 60)])
def test_times_in_single_precision_are_the_moments_that_they_stand_for(minutes: int, unit: int, tmp_path: Path) -> None:
    data = foreign.field(steps=60, since=f"{'days' if unit == 1440 else 'hours'} since 1900-01-01")
    counted = ((60_000_000 + np.arange(60) * minutes) / unit).astype(np.float32)
    written(data.assign_coords(time=data["time"].copy(data=counted)), tmp_path / "a.nc4")
    assert read(tmp_path, file="a.nc4", step="5m")["observations"]["time"].to_list() == [
        START + timedelta(minutes=minutes * k) for k in range(60)
    ]
