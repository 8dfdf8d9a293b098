"""Fields over a grid, read through the public function from small files of exactly the form that people have."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from fixtures import foreign
from fixtures.foreign import START
from fixtures.foreign import read_grid as read

from stfm_pipeline.datasets.formats.gridded import Gridded
from stfm_pipeline.datasets.formats.projection import places
from stfm_pipeline.datasets.formats.units import same_unit
from stfm_pipeline.errors import ContractError, SourceError
from stfm_pipeline.tables import dense_values, grid_of


@pytest.fixture(autouse=True)
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each file takes a second; that it reads the same is tested in tests/faults/test_fuzz.py."""
    monkeypatch.setattr(Gridded, "fragile", lambda form, files: False)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", ["nc4", "nc", "zarr", "zip"])
def test_every_container_gives_the_same_fields(suffix: str, packed: bool, tmp_path: Path) -> None:
    data = foreign.field()
    foreign.stored(data, tmp_path / f"a.{suffix}", packed)
    raw = read(tmp_path, file=f"a.{suffix}")
    assert raw["observations"]["time"].to_list() == [START + timedelta(hours=h) for h in range(8)]
    found = dense_values(raw["observations"], "temp")
    assert np.array_equal(found, data["t2m"].values.reshape(8, 12), equal_nan=True)
    assert np.isnan(found[:, 6]).all(), "the fill value is no value"
    assert grid_of(raw["entities"]) == (3, 4)


def test_cells_keep_the_order_of_the_source_and_their_longitudes_become_those_of_maps(tmp_path: Path) -> None:
    foreign.stored(foreign.field(), tmp_path / "a.nc4")
    cells = read(tmp_path, file="a.nc4")["entities"]
    assert cells["entity"].to_list()[:5] == ["r0c0", "r0c1", "r0c2", "r0c3", "r1c0"]
    assert cells["lon"].to_list()[:4] == [-10, -5, 0, 5]
    assert cells["lat"].to_list()[::4] == [55, 54, 53]


def test_axes_may_come_in_any_order(tmp_path: Path) -> None:
    data = foreign.field()
    foreign.stored(data.transpose("longitude", "time", "latitude"), tmp_path / "a.nc4")
    found = dense_values(read(tmp_path, file="a.nc4")["observations"], "temp")
    assert np.array_equal(found, data["t2m"].values.reshape(8, 12), equal_nan=True)


@pytest.mark.parametrize("calendar", ["360_day", "noleap"])
def test_days_that_never_were_are_refused(calendar: str, tmp_path: Path) -> None:
    foreign.stored(foreign.field(calendar=calendar), tmp_path / "a.nc4")
    with pytest.raises(ContractError, match=rf"'{calendar}', whose days are not those of the real one"):
        read(tmp_path, file="a.nc4")


def test_times_that_count_from_nowhere_are_refused(tmp_path: Path) -> None:
    foreign.stored(foreign.field(since="hours"), tmp_path / "a.nc4")
    with pytest.raises(ContractError, match=r"'time' of a.nc4 says nowhere from when it counts"):
        read(tmp_path, file="a.nc4")


def test_rounding_makes_no_hour_the_one_before(tmp_path: Path) -> None:
    data = foreign.field(steps=200, since="days since 1900-01-01")
    days = data["time"].copy(data=1_000_000 / 24 + np.arange(200) / 24)
    foreign.stored(data.assign_coords(time=days), tmp_path / "a.nc4")
    assert read(tmp_path, file="a.nc4")["observations"]["time"].to_list() == [
        START + timedelta(hours=h) for h in range(200)
    ]


def test_another_unit_is_refused_and_another_spelling_is_not(tmp_path: Path) -> None:
    foreign.stored(foreign.field(units="Kelvin"), tmp_path / "a.nc4")
    read(tmp_path, file="a.nc4", unit="degK")
    with pytest.raises(ContractError, match=r"another unit than the channel 'temp'[\s\S]*degC[\s\S]*Kelvin"):
        read(tmp_path, file="a.nc4", unit="degC")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("m s-1", "m/s"),
        ("m s**-1", "meter second-1"),
        ("metres per second", "m.s-1"),
        ("kg m-2 s-1", "kg/m2/s"),
        ("W m**-2", "W/m^2"),
        ("mbar", "hPa"),
        ("degK", "K"),
        ("degrees_celsius", "degC"),
        ("1", ""),
        ("%", "percent"),
    ],
)
def test_spellings_of_one_unit(one: str, other: str) -> None:
    assert same_unit(one, other)


@pytest.mark.parametrize(
    ("one", "other"), [("K", "degC"), ("m", "mm"), ("m/s", "m s-2"), ("Pa", "hPa"), ("m/s", "m s"), ("unstated", "K")]
)
def test_units_that_differ(one: str, other: str) -> None:
    assert not same_unit(one, other)


def levels() -> xr.Dataset:
    surface = foreign.field()
    deep = xr.concat([surface, surface - 10], dim="depth").transpose("time", "depth", ...)
    axis = xr.DataArray(np.array([0.0, 50.0]), dims="depth", attrs={"axis": "Z", "units": "m"})
    deep["t2m"].attrs["units"] = "K"
    return deep.assign_coords(depth=axis)


def test_one_place_of_another_axis_is_selected_by_its_coordinate(tmp_path: Path) -> None:
    foreign.stored(levels(), tmp_path / "a.nc4")
    found = dense_values(read(tmp_path, file="a.nc4", select={"depth": 50})["observations"], "temp")
    assert np.array_equal(found, foreign.field()["t2m"].values.reshape(8, 12) - 10, equal_nan=True)
    with pytest.raises(ContractError, match=r"what the axes of 't2m'[\s\S]*depth \(2\)[\s\S]*select: \{depth: 0\}"):
        read(tmp_path, file="a.nc4")
    with pytest.raises(ContractError, match=r"a.nc4 has no depth 10[\s\S]*one of: 0.0, 50.0"):
        read(tmp_path, file="a.nc4", select={"depth": 10})


def test_a_part_of_the_cells_is_taken_by_box_and_stride(tmp_path: Path) -> None:
    foreign.stored(foreign.field(), tmp_path / "a.nc4")
    raw = read(tmp_path, file="a.nc4", box=[-6, 53.5, 6, 60], every=2)
    assert raw["entities"].select("row", "col", "lon", "lat").rows() == [(0, 0, -5, 55), (0, 1, 5, 55)]
    whole = foreign.field()["t2m"].values
    assert np.array_equal(dense_values(raw["observations"], "temp"), whole[:, 0, [1, 3]])
    with pytest.raises(ContractError, match=r"no cell of a.nc4 lies in the box[\s\S]*-10, 53 to 5, 55"):
        read(tmp_path, file="a.nc4", box=[20, 53, 30, 60])


def test_a_box_over_the_seam_of_a_globe_has_no_tear_in_it(tmp_path: Path) -> None:
    data = foreign.field(lon=np.arange(0.0, 360, 30))
    foreign.stored(data, tmp_path / "a.nc4")
    raw = read(tmp_path, file="a.nc4", box=[-65, 50, 35, 60])
    assert raw["entities"]["lon"].to_list()[:4] == [-60, -30, 0, 30]
    found = dense_values(raw["observations"], "temp").reshape(8, 3, 4)
    assert np.array_equal(found, data["t2m"].values[:, :, [10, 11, 0, 1]], equal_nan=True)
    over = read(tmp_path, file="a.nc4", box=[145, 50, -145, 60])["entities"]
    assert over["lon"].to_list()[:3] == [150, 180, -150]


def curved(**attrs: str) -> xr.Dataset:
    """Axes without coordinates, and places over them."""
    data = foreign.field().rename(latitude="y", longitude="x").drop_vars(["y", "x"])
    lat, lon = np.meshgrid([55.0, 54, 53], [10.0, 11, 12, 13], indexing="ij")
    kept = {"lat": {"standard_name": "latitude"}, "lon": {"standard_name": "longitude"}} if not attrs else {}
    return data.assign_coords(
        lat=(("y", "x"), lat + lon / 100, kept.get("lat", attrs)),
        lon=(("y", "x"), lon + lat / 100, kept.get("lon", attrs)),
    )


def test_a_curvilinear_grid_has_a_place_for_every_cell(tmp_path: Path) -> None:
    foreign.stored(curved(), tmp_path / "a.nc4")
    cells = read(tmp_path, file="a.nc4")["entities"]
    assert cells["lon"][5] == pytest.approx(11.54)
    assert cells["lat"][5] == pytest.approx(54.11)


def test_what_attributes_do_not_tell_is_named(tmp_path: Path) -> None:
    foreign.stored(curved(comment="somewhere"), tmp_path / "a.nc4")
    with pytest.raises(ContractError, match=r"not clear what the axes[\s\S]*offenders: y, x[\s\S]*name the axes"):
        read(tmp_path, file="a.nc4")
    cells = read(tmp_path, file="a.nc4", y="y", x="x", lon="lon", lat="lat")["entities"]
    assert cells["lon"][5] == pytest.approx(11.54)
    assert "lon" not in read(tmp_path, file="a.nc4", y="y", x="x")["entities"].columns, "nothing says where cells are"
    with pytest.raises(ContractError, match=r"a.nc4 has no variable 'long'"):
        read(tmp_path, file="a.nc4", y="y", x="x", lon="long", lat="lat")


def projected(name: str) -> xr.Dataset:
    data = foreign.field().rename(latitude="Y", longitude="X")
    axes = {
        "X": ("X", np.arange(4) * 1e5, {"standard_name": "projection_x_coordinate", "units": "m"}),
        "Y": ("Y", -3e6 - np.arange(3) * 1e5, {"standard_name": "projection_y_coordinate", "units": "m"}),
    }
    data = data.assign_coords(axes)
    data["t2m"].attrs["grid_mapping"] = "p"
    mapping = {
        "grid_mapping_name": name,
        "earth_radius": 6371000.0,
        "straight_vertical_longitude_from_pole": 10.0,
        "latitude_of_projection_origin": 90.0,
        "standard_parallel": 60.0,
    }
    return data.assign(p=((), np.int32(0), mapping))


def test_a_polar_stereographic_grid_is_put_on_the_map(tmp_path: Path) -> None:
    foreign.stored(projected("polar_stereographic"), tmp_path / "a.nc4")
    cells = read(tmp_path, file="a.nc4")["entities"]
    assert cells["lon"][0] == pytest.approx(10)
    scale = (1 + np.sin(np.deg2rad(60))) / 2
    way = 2 * 6371000 * scale * np.tan(np.pi / 4 - np.deg2rad(cells["lat"][0]) / 2)
    assert way == pytest.approx(3e6), "the forward formula leads back to where it came from"
    lon, lat = places(dict(projected("polar_stereographic")["p"].attrs), np.array([3e6]), np.array([0.0]))
    assert (lon[0], lat[0]) == (pytest.approx(100), pytest.approx(cells["lat"][0]))


def test_other_projections_need_places_in_the_file(tmp_path: Path) -> None:
    foreign.stored(projected("lambert_conformal_conic"), tmp_path / "a.nc4")
    with pytest.raises(ContractError, match="projected as 'lambert_conformal_conic'"):
        read(tmp_path, file="a.nc4")


def test_files_follow_one_another_on_one_grid(tmp_path: Path) -> None:
    whole = foreign.field()
    foreign.stored(whole.isel(time=slice(0, 5)), tmp_path / "a.nc4")
    foreign.stored(whole.isel(time=slice(5, 8)), tmp_path / "b.nc")
    raw = read(tmp_path, file=["a.nc4", "b.nc"])
    found = dense_values(raw["observations"], "temp")
    assert np.array_equal(found, whole["t2m"].values.reshape(8, 12), equal_nan=True)
    foreign.stored(foreign.field(lat=(51, 50, 49)), tmp_path / "c.nc4")
    with pytest.raises(ContractError, match=r"c.nc4 lies on another grid than a.nc4"):
        read(tmp_path, file=["a.nc4", "c.nc4"])


def test_several_channels_come_from_one_grid_alone(tmp_path: Path) -> None:
    data = foreign.field()
    data["d2m"] = data["t2m"].copy(data=data["t2m"].values - 5)
    data["other"] = data["t2m"].rename(latitude="lat2", longitude="lon2").drop_vars(["lat2", "lon2"])
    data = data.assign_coords(lat2=("lat2", [1.0, 2, 3], {"axis": "Y"}), lon2=("lon2", [1.0, 2, 3, 4], {"axis": "X"}))
    foreign.stored(data, tmp_path / "a.nc4")
    channels = ("temp", "dew")
    raw = read(tmp_path, file="a.nc4", channels=channels, columns={"temp": "t2m", "dew": "d2m"})
    assert np.array_equal(dense_values(raw["observations"], "dew")[0, :3], data["d2m"].values[0, 0, :3])
    with pytest.raises(ContractError, match=r"lie on different grids[\s\S]*dew: time, lat2, lon2"):
        read(tmp_path, file="a.nc4", channels=channels, columns={"temp": "t2m", "dew": "other"})
    with pytest.raises(ContractError, match=r"a.nc4 lacks variables[\s\S]*offenders: t2n"):
        read(tmp_path, file="a.nc4", columns={"temp": "t2n"})


def monthly() -> xr.Dataset:
    """Means over a month, dated by its middle."""
    data = foreign.field(steps=3, since="hours since 2020-01-01")
    edges = np.array([0, 31, 60, 91]) * 24.0
    bounds = np.stack([edges[:-1], edges[1:]], axis=1)
    middle = data["time"].copy(data=bounds.mean(axis=1)).assign_attrs(bounds="time_bnds")
    return data.assign_coords(time=middle).assign(time_bnds=(("time", "nv"), bounds))


def test_a_mean_is_not_known_before_its_period_has_ended(tmp_path: Path) -> None:
    foreign.stored(monthly(), tmp_path / "a.nc4")
    with pytest.raises(
        ContractError, match=r"known only after the step of 1d[\s\S]*2020-01-16T12:00:00, known at 2020-02"
    ):
        read(tmp_path, file="a.nc4", step="1d")
    times = read(tmp_path, file="a.nc4", step="1d", stamp="bounds")["observations"]["time"]
    known = times.dt.offset_by("1us")
    assert known.to_list() == [datetime(2020, m, 1, tzinfo=UTC) for m in (2, 3, 4)]


def test_bounds_that_are_asked_for_must_be_there(tmp_path: Path) -> None:
    foreign.stored(foreign.field(), tmp_path / "a.nc4")
    with pytest.raises(ContractError, match=r"times of a.nc4 have no bounds"):
        read(tmp_path, file="a.nc4", stamp="bounds")


def test_a_store_with_pickles_in_it_is_never_read(tmp_path: Path) -> None:
    store = foreign.stored(foreign.field(), tmp_path / "a.zarr")
    for path in (store / "t2m" / ".zarray", store / ".zmetadata"):
        path.write_text(
            json.dumps(json.loads(path.read_text()), indent=1).replace(
                '"filters": null', '"filters": [{"id": "pickle"}]'
            )
        )
    with pytest.raises(SourceError, match="holds pickled objects, and reading them runs code"):
        read(tmp_path, file="a.zarr")


@pytest.mark.parametrize("start", [b"CDF\x05", b"time,t2m\n"])
def test_what_is_no_gridded_file_is_named(start: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.nc").write_bytes(start + b"\x00" * 100)
    with pytest.raises(SourceError, match=r"a.nc is no gridded file[\s\S]*nccopy"):
        read(tmp_path, file="a.nc")


def test_a_file_that_takes_its_values_from_another_is_refused(tmp_path: Path) -> None:
    foreign.stored(foreign.field(), tmp_path / "a.nc4")
    with h5py.File(tmp_path / "b.nc4", "w") as file:
        file["t2m"] = h5py.ExternalLink(str(tmp_path / "a.nc4"), "t2m")
    with pytest.raises(SourceError, match=r"b.nc4 takes its values from other files"):
        read(tmp_path, file="b.nc4")


def test_a_file_that_says_it_holds_more_than_it_can_is_refused(tmp_path: Path) -> None:
    path = foreign.stored(foreign.field(steps=2), tmp_path / "a.nc4")
    with h5py.File(path, "a") as file:
        del file["t2m"], file["time"], file["longitude"]
        large = file.create_dataset("t2m", shape=(200_000, 3, 2000), chunks=(1000, 3, 200), dtype="f4")
        file["time"], file["longitude"] = np.arange(200_000.0), np.arange(2000.0)
        for axis, name in enumerate(("time", "latitude", "longitude")):
            file[name].make_scale(name)
            large.dims[axis].attach_scale(file[name])
        file["longitude"].attrs["units"] = "degrees_east"
        file["time"].attrs["units"] = "hours since 2000-01-01"
    with pytest.raises(SourceError, match=r"a.nc4 says that it holds more than it can"):
        read(tmp_path, file="a.nc4")


def grib(path: Path, first: float, last: float) -> None:
    """Three hourly messages of 2 m temperature."""
    eccodes = pytest.importorskip("eccodes")
    with path.open("wb") as file:
        for hour in range(3):
            message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
            keys = {"Ni": 4, "Nj": 3, "iDirectionIncrementInDegrees": 1, "jDirectionIncrementInDegrees": 1}
            keys |= {"latitudeOfFirstGridPointInDegrees": 55, "latitudeOfLastGridPointInDegrees": 53}
            keys |= {"longitudeOfFirstGridPointInDegrees": first, "longitudeOfLastGridPointInDegrees": last}
            for key, value in (keys | {"dataDate": 20190301, "dataTime": 100 * hour, "shortName": "2t"}).items():
                eccodes.codes_set(message, key, value)
            eccodes.codes_set_values(message, 270 + hour + np.arange(12.0))
            eccodes.codes_write(message, file)
            eccodes.codes_release(message)


def test_grib_is_read_and_leaves_no_index_behind(tmp_path: Path) -> None:
    pytest.importorskip("cfgrib")
    grib(tmp_path / "a.grib", 10, 13)
    raw = read(tmp_path, file="a.grib")
    assert raw["observations"]["time"].to_list() == [datetime(2019, 3, 1, h, tzinfo=UTC) for h in range(3)]
    assert np.allclose(dense_values(raw["observations"], "temp"), 270 + np.arange(3)[:, None] + np.arange(12))
    assert raw["entities"]["lon"].to_list()[:4] == [10, 11, 12, 13]
    assert [p.name for p in tmp_path.iterdir()] == ["a.grib"], "cfgrib's index is a pickle"


def test_grib_over_the_seam_is_refused_where_its_longitudes_come_sorted(tmp_path: Path) -> None:
    pytest.importorskip("cfgrib")
    grib(tmp_path / "a.grib", 358, 1)
    with pytest.raises(ContractError, match="runs over the seam of the globe"):
        read(tmp_path, file="a.grib")


def test_grib_without_its_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.grib").write_bytes(b"GRIB" + b"\x00" * 100)
    monkeypatch.setitem(sys.modules, "cfgrib", None)
    with pytest.raises(SourceError, match=r"needs the extra `grib`[\s\S]*pip install 'stfm-pipeline\[grib\]'"):
        read(tmp_path, file="a.grib")
