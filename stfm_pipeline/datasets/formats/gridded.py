"""Fields over a grid: NetCDF, Zarr and GRIB under the CF conventions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from stfm_pipeline.datasets.formats import cf, cf_gaps, cf_times
from stfm_pipeline.datasets.formats.base import (
    Box,
    Form,
    FrameFiles,
    Real,
    Scene,
    Whole,
    check_box,
    in_box,
    lay_out,
    of_this_age,
    only_observations,
    refuse_bomb,
)
from stfm_pipeline.datasets.formats.hdf import is_hdf
from stfm_pipeline.datasets.formats.units import same_unit
from stfm_pipeline.errors import MAX_OFFENDERS, ContractError
from stfm_pipeline.large import Table, release, room
from stfm_pipeline.tables import CELLS_AT_ONCE, dense_table, step_us

if TYPE_CHECKING:
    from xarray import DataArray, Dataset

Places = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Layer:
    """The fields of one file by channel, over the axes `time`, `y`, `x`, with the rows and columns that are taken."""

    fields: dict[str, DataArray]
    axes: tuple[str, str, str]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    times: NDArray[np.int64]
    places: Places | None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)


class Gridded(Form):
    """Fields over a grid, and its cells as entities (row, col, lon, lat). Several files follow one another in time.

    `columns` says which variable is which channel. Axes are known by CF attributes (standard_name, axis, units), or
    named by `time`, `y`, `x`; `lon` and `lat` name variables over them. `select` picks one place of every other axis by
    its coordinate, such as {depth: 0}. `box` (west, south, east, north) and `every` take a part of the cells. Cells are
    in the source's order; only a box over the seam of a globe begins at its western edge. Rows are dated by `time`, or
    with `stamp: bounds` by the last moment of the period that its bounds state, when a mean over it is known.
    """

    format: Literal["gridded"]
    file: FrameFiles
    columns: dict[str, str] = Field(default={})
    time: str | None = None
    y: str | None = None
    x: str | None = None
    lon: str | None = None
    lat: str | None = None
    select: dict[str, Real | str] = Field(default={})
    box: Annotated[Box, AfterValidator(check_box)] | None = None
    every: Annotated[Whole, Field(ge=1)] = 1
    stamp: Literal["time", "bounds"] = "time"

    def fragile(self, files: dict[str, Path]) -> bool:
        """NetCDF-4 is HDF5, whose library crashes on damaged lists of axes."""
        return any(files[name].is_file() and is_hdf(files[name]) for name in self.names())

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> Table:
        only_observations(table)
        paths = [files[name] for name in self.names()]
        layers, stamps = [], []
        for path in paths:
            with cf.open_cf(path) as sets:
                layer = self._layer(table, path, sets, scene)
                layers.append((layer.shape, layer.places))
                stamps.append(layer.times)
        _agree(table, paths, layers)
        (height, width), places = layers[0]
        values: dict[str, NDArray[Any]] = {}
        done = 0
        for path, times in zip(paths, stamps, strict=True):
            with cf.open_cf(path) as sets:
                layer = self._layer(table, path, sets, scene)
                for channel, field in layer.fields.items():
                    if channel not in values:
                        kind = np.result_type(field.dtype, np.float32)
                        values[channel] = room((sum(map(len, stamps)), height * width), kind)
                    _fill(values[channel][done : done + len(times)], field, layer)
            done += len(times)
        lay_out(scene, height, width, *(places or ()))
        moments = of_this_age(table, paths[0], pl.Series(np.concatenate(stamps)).cast(pl.Datetime("us")))
        moments = moments.dt.replace_time_zone("UTC")
        return dense_table(moments, values)

    def _layer(self, table: str, path: Path, sets: list[Dataset], scene: Scene) -> Layer:
        wanted = self.columns or {c: c for c in scene.channels}
        data = next((d for d in sets if all(v in d.data_vars for v in wanted.values())), None)
        if data is None:
            there = sorted({str(v) for d in sets for v in d.data_vars})
            raise ContractError(
                f"{table}: {path.name} lacks variables",
                expected=", ".join(wanted.values()),
                found=", ".join(there),
                offenders=[v for v in wanted.values() if v not in there] or list(wanted.values()),
                fix=f"correct `columns` of tables.{table} (ours: theirs)",
            )
        fields = {c: self._field(table, path, data, v) for c, v in wanted.items()}
        for channel, field in fields.items():
            _same_unit(table, path, channel, field, scene)
            # A Zarr store leaves out the chunks that hold nothing.
            if path.is_file() and path.suffix != ".zip":
                refuse_bomb(path, field.nbytes)
        axes = {c: self._axes(table, path, data, f) for c, f in fields.items()}
        first = next(iter(axes.values()))
        if odd := [c for c, a in axes.items() if a != first]:
            raise ContractError(
                f"{table}: variables of {path.name} lie on different grids",
                expected=f"all over {', '.join(first)}",
                offenders=[f"{c}: {', '.join(axes[c])}" for c in odd],
                fix="make a dataset of each grid",
            )
        time, y, x = first
        field = next(iter(fields.values()))
        places = cf.where(path, data, field, y, x, (self.lon, self.lat))
        rows, columns = self._taken(table, path, field.sizes[y], field.sizes[x], places)
        if places is not None:
            places = places[0][np.ix_(rows, columns)], places[1][np.ix_(rows, columns)]
        return Layer(fields, first, rows, columns, self._times(table, path, data, time, scene.step), places)

    def _field(self, table: str, path: Path, data: Dataset, name: str) -> DataArray:
        """A variable at one place of every axis that `select` names."""
        field = data[name]
        for axis, value in ((a, v) for a, v in self.select.items() if a in field.dims):
            known = data[axis].values if axis in data.variables else np.arange(field.sizes[axis])
            at = (
                np.flatnonzero(known == value)
                if known.dtype.kind in "USO"
                else np.flatnonzero(np.isclose(known, float(value)))
            )
            if len(at) != 1:
                raise ContractError(
                    f"{table}: {path.name} has no {axis} {value}",
                    expected=f"one of: {', '.join(map(str, known[:20]))}",
                    fix=f"correct tables.{table}.select",
                )
            field = field.isel({axis: int(at[0])})
        return field

    def _axes(self, table: str, path: Path, data: Dataset, field: DataArray) -> tuple[str, str, str]:
        """Names of a field's axes of time, y and x; every other one must have a single place."""
        told = {k: v for k, v in (("time", self.time), ("y", self.y), ("x", self.x)) if v is not None}
        for dim in map(str, field.dims):
            known = cf.role(data[dim] if dim in data.variables else None)
            if known is not None and dim not in told.values():
                told.setdefault(known, dim)
        if "y" not in told and "x" not in told:
            # Curvilinear: the axes have no coordinates, but places lie over them.
            over = [data[n].dims for n in data.variables if cf.degrees(data[n]) and data[n].ndim == 2]
            if over and set(over[0]) <= set(field.dims):
                told["y"], told["x"] = map(str, over[0])
        rest = [str(d) for d in field.dims if d not in told.values()]
        lacking = [k for k in ("time", "y", "x") if told.get(k) not in field.dims]
        if lacking or any(field.sizes[d] > 1 for d in rest):
            raise ContractError(
                f"{table}: it is not clear what the axes of '{field.name}' in {path.name} are",
                expected="time, y and x; of any other axis one place",
                found=", ".join(f"{d} ({field.sizes[d]})" for d in field.dims),
                offenders=lacking or [d for d in rest if field.sizes[d] > 1],
                fix="name the axes as `time`, `y`, `x`"
                if lacking
                else "take one place of it, e.g. `select: {depth: 0}`",
            )
        return told["time"], told["y"], told["x"]

    def _taken(
        self, table: str, path: Path, height: int, width: int, places: Places | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns inside the box, every so many."""
        rows, columns = np.arange(height), np.arange(width)
        if self.box is not None:
            if places is None:
                raise ContractError(f"{table}: {path.name} does not say where its cells are", fix="leave `box` out")
            lon = np.where(places[0] > 180, places[0] - 360, places[0])
            inside = in_box(lon, places[1], self.box)
            if not inside.any():
                raise ContractError(
                    f"{table}: no cell of {path.name} lies in the box",
                    expected=", ".join(map(str, self.box)),
                    found=f"{lon.min():g}, {places[1].min():g} to {lon.max():g}, {places[1].max():g}",
                    fix="a box is west, south, east, north",
                )
            rows = _spanned(np.any(inside, axis=1))
            columns = _spanned(np.any(inside, axis=0), round_the_globe=True)
        return rows[:: self.every], columns[:: self.every]

    def _times(self, table: str, path: Path, data: Dataset, axis: str, step: str) -> NDArray[np.int64]:
        times, ends = cf_times.moments(path, data, axis)
        if self.stamp == "bounds" and ends is not None:
            return ends - 1
        if self.stamp == "bounds":
            raise ContractError(f"{table}: the times of {path.name} have no bounds", fix="leave `stamp` out")
        length = step_us(step)
        late = np.flatnonzero((times if ends is None else ends) > (times // length + 1) * length)
        if ends is not None and len(late):
            raise ContractError(
                f"{table}: values of {path.name} are known only after the step of {step} that their time falls into",
                expected="periods that end with their step",
                offenders=[f"{_text(times[i])}, known at {_text(ends[i])}" for i in late[:MAX_OFFENDERS]],
                fix="`stamp: bounds` dates them by when they are known; or take a longer step",
            )
        return times


def _text(moment: np.int64) -> str:
    return str(np.datetime64(int(moment), "us").astype("datetime64[s]"))


def _spanned(inside: Any, round_the_globe: bool = False) -> NDArray[np.int64]:
    """The lines from the first inside to the last; those at both ends of a globe are taken as neighbours."""
    there = np.flatnonzero(inside)
    gap = np.flatnonzero(np.diff(there) > 1)
    if round_the_globe and len(gap) == 1 and inside[0] and inside[-1]:
        return np.asarray(np.roll(there, -(gap[0] + 1)))
    return np.arange(there[0], there[-1] + 1)


def _same_unit(table: str, path: Path, channel: str, field: DataArray, scene: Scene) -> None:
    found, declared = field.attrs.get("units"), scene.units.get(channel)
    if found is not None and declared is not None and not same_unit(str(found), declared):
        raise ContractError(
            f"{table}: '{field.name}' of {path.name} is in another unit than the channel '{channel}'",
            expected=declared,
            found=str(found),
            fix="declare the file's unit for the channel, or convert the file; nothing is converted here",
        )


def _agree(table: str, paths: list[Path], layers: list[tuple[tuple[int, int], Places | None]]) -> None:
    """All files lie on one grid."""
    (shape, places), *others = layers
    for path, (size, at) in zip(paths[1:], others, strict=True):
        same = size == shape and (places is None) == (at is None)
        if same and places is not None and at is not None:
            same = all(np.allclose(a, b, atol=1e-4) for a, b in zip(places, at, strict=True))
        if not same:
            raise ContractError(
                f"{table}: {path.name} lies on another grid than {paths[0].name}",
                expected=f"{shape[0]} x {shape[1]} cells at the same places",
                found=f"{size[0]} x {size[1]} cells",
                fix="make a dataset of each grid",
            )


def _fill(out: NDArray[Any], field: DataArray, layer: Layer) -> None:
    """Read a field into (t, n), a few steps at a time; whole chunks of the file, each of which is inflated once."""
    time, y, x = layer.axes
    stored = field.encoding.get("chunksizes") or field.encoding.get("chunks")
    chunk = int(stored[0]) if stored and field.dims[0] == time else 1
    size = max(1, CELLS_AT_ONCE // max(out.shape[1], 1))
    size = -(-size // chunk) * chunk
    low, high = cf_gaps.limits(field)
    lines = {y: _compact(layer.rows), x: _compact(layer.columns)}
    for i in range(0, len(out), size):
        part = field.isel({time: slice(i, i + size), **lines}).squeeze(
            [d for d in field.dims if d not in layer.axes], drop=True
        )
        block = out[i : i + size]
        block[:] = part.transpose(time, y, x).values.reshape(-1, out.shape[1])
        if low > -np.inf or high < np.inf:
            block[(block < low) | (block > high)] = np.nan
        release(out)


def _compact(index: NDArray[np.int64]) -> Any:
    """Evenly spaced lines as a slice, which is read without looking each up."""
    step = int(index[1] - index[0]) if len(index) > 1 else 1
    even = step > 0 and (np.diff(index) == step).all()
    return slice(int(index[0]), int(index[-1]) + 1, step) if even else index
