"""Small valid datasets, a scene per way of writing one: the files that the fuzzing starts from."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

STEPS, NAMES = 72, ("a", "b", "c", "d")
HEAD = """\
kind: {kind}
zone: UTC
tables:
{tables}
channels:
{channels}
harmonize: {{step: 1h}}
{more}task: {{look_back: 6, horizon: 3}}
"""
SPEED = "  - {name: speed, unit: mph, minimum: 0, maximum: 200, missing: [0]}"


@dataclass(frozen=True)
class Scene:
    """A dataset: its description and its files by name."""

    yaml: str
    files: dict[str, bytes]


def yaml(*tables: str, channels: str = SPEED, more: str = "", kind: str = "graph") -> str:
    return HEAD.format(kind=kind, tables="\n".join(f"  {t}" for t in tables), channels=channels, more=more)


def values(channels: int = 1) -> Any:
    """(t, n, c) speeds with a daily rhythm and a few zeros."""
    rng = np.random.default_rng(0)
    rhythm = 50 + 10 * np.sin(np.arange(STEPS) * 2 * np.pi / 24)[:, None, None]
    found = (rhythm + rng.normal(0, 2, (STEPS, len(NAMES), channels))).round(2)
    found[rng.random(found.shape) < 0.05] = 0
    return found


def times() -> Any:
    return np.datetime64("2024-01-01", "us") + np.arange(STEPS) * np.timedelta64(1, "h").astype("timedelta64[us]")


def text(*rows: str) -> bytes:
    return ("\n".join(rows) + "\n").encode()


PLACES = text("entity,lon,lat", *(f"{n},{8 + i / 10},{47 + i / 10}" for i, n in enumerate(NAMES)))
EDGES = text("source,target,weight", "a,b,1", "b,c,0.5", "c,d,0.25", "d,a,1")
MATRIX = text("0,1,0,0", "0,0,0.5,0", "0,0,0,0.25", "1,0,0,0")
DISTANCES = text("from,to,cost", "a,b,300", "b,c,600", "c,d,900", "d,a,300")


def wide_csv() -> bytes:
    rows = [f"{t}," + ",".join(map(str, row)) for t, row in zip(times(), values()[..., 0].tolist(), strict=True)]
    return text("time," + ",".join(NAMES), *rows)


def long_csv(head: str = "entity,time,speed") -> bytes:
    cells = values()[..., 0]
    rows = [f"{n},{t}Z,{cells[k, i]}" for k, t in enumerate(times()) for i, n in enumerate(NAMES)]
    return text(head, *rows)


def libcity() -> dict[str, bytes]:
    cells = values()[..., 0]
    geo = [f'{i},Point,"[{8 + i / 10}, {47 + i / 10}]"' for i in range(len(NAMES))]
    dyna = [f"{k * 4 + i},state,{t}Z,{i},{cells[k, i]}" for k, t in enumerate(times()) for i in range(len(NAMES))]
    return {
        "x.geo": text("geo_id,type,coordinates", *geo),
        "x.rel": text("rel_id,type,origin_id,destination_id,weight", "0,geo,0,1,1.0", "1,geo,1,2,0.5"),
        "x.dyna": text("dyna_id,type,time,entity_id,speed", *dyna),
    }


def frame() -> Any:
    import polars as pl

    return pl.DataFrame({"time": times(), **{n: values()[:, i, 0] for i, n in enumerate(NAMES)}})


def rows() -> Any:
    import polars as pl

    cells = values()[..., 0].ravel()
    who, when = np.tile(np.array(NAMES), STEPS), np.repeat(times(), len(NAMES))
    long = pl.DataFrame({"entity": who, "time": when, "speed": cells})
    return long.with_columns(pl.col("time").dt.replace_time_zone("UTC"))


def parquet(table: Any) -> bytes:
    out = io.BytesIO()
    table.write_parquet(out)
    return out.getvalue()


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)
    return out.getvalue()


def hdf(write: Callable[[Any], None], **options: Any) -> bytes:
    """The bytes of an HDF5 file that `write` fills."""
    import h5py

    out = io.BytesIO()
    with h5py.File(out, "w", **options) as file:
        write(file)
    return out.getvalue()


def pandas_frame(file: Any) -> None:
    """A frame as pandas' to_hdf lays it out."""
    group = file.create_group("df")
    group.attrs["pandas_type"] = np.bytes_(b"frame")
    for axis in ("axis0", "block0_items"):
        group.create_dataset(axis, data=np.array([n.encode() for n in NAMES])).attrs["kind"] = np.bytes_(b"string")
    index = group.create_dataset("axis1", data=times().astype("datetime64[ns]").astype(np.int64))
    index.attrs["kind"] = np.bytes_(b"datetime64")
    group.create_dataset("block0_values", data=values()[..., 0])


def two_blocks(file: Any) -> None:
    """The same with the last column in a block of whole numbers, chunked and compressed."""
    pandas_frame(file)
    group, cells = file["df"], values()[..., 0]
    del group["block0_items"], group["block0_values"]
    for i, part in enumerate((slice(0, 3), slice(3, 4))):
        group.create_dataset(f"block{i}_items", data=np.array([n.encode() for n in NAMES[part]]))
        kind = np.float64 if i == 0 else np.int64
        group.create_dataset(f"block{i}_values", data=cells[:, part].astype(kind), chunks=(24, 1), compression="gzip")


def slots(file: Any) -> None:
    """Crowd flows in the form of TaxiBJ."""
    days = [str(d).replace("-", "") for d in times().astype("datetime64[D]")]
    file["date"] = np.array([f"{d}{i % 24 + 1:02d}".encode() for i, d in enumerate(days)])
    file.create_dataset("data", data=values(2).reshape(STEPS, 2, 2, 2), chunks=(24, 2, 2, 2), compression="gzip")


def field() -> Any:
    """A variable over time, latitude and longitude, as reanalyses come."""
    import xarray as xr

    cells = 280 + values(6).reshape(STEPS, len(NAMES), 6) / 10
    hours = 1_086_960 + np.arange(STEPS)
    return xr.Dataset(
        {"t2m": (("time", "latitude", "longitude"), cells.astype(np.float32), {"units": "K"})},
        coords={
            "time": (
                "time",
                hours,
                {"standard_name": "time", "units": "hours since 1900-01-01", "calendar": "standard"},
            ),
            "latitude": ("latitude", 55.0 - np.arange(4), {"units": "degrees_north", "standard_name": "latitude"}),
            "longitude": ("longitude", 350.0 + np.arange(6), {"units": "degrees_east", "standard_name": "longitude"}),
        },
    )


def netcdf(data: Any, engine: str) -> bytes:
    """The bytes of a dataset as NetCDF-4 (h5netcdf) or NetCDF-3 (scipy)."""
    with tempfile.TemporaryDirectory(prefix="stfm-fuzz-") as folder:
        path = Path(folder, "x.nc")
        data.to_netcdf(path, engine=engine)
        return path.read_bytes()


WIDE = "observations: {format: wide, file: x.csv, time: time}"
TENSOR = "observations: {{format: tensor, file: {}, start: 2024-01-01T00:00:00}}"
FLOW = "  - {name: flow, unit: cars}\n  - {name: speed, unit: mph}"
FIELD = ("observations: {format: gridded, file: x.nc, columns: {temp_k: t2m}}",)
TEMP = "  - {name: temp_k, unit: K, minimum: 200, maximum: 330}"
JOIN = "joins:\n  - {table: weather, columns: [speed_there], availability: past, tolerance: 3h}\n"


@cache
def scenes() -> dict[str, Scene]:
    """Every scene by name."""
    wide = {"x.csv": wide_csv()}
    adjacency = np.loadtxt(io.BytesIO(MATRIX), delimiter=",")
    return {
        "wide csv": Scene(
            yaml(WIDE, "entities: {format: places, file: places.csv}", "edges: {format: edges, file: edges.csv}"),
            {**wide, "places.csv": PLACES, "edges.csv": EDGES},
        ),
        "long csv": Scene(
            yaml(
                "observations: {format: long, file: x.csv}",
                "weather: {format: long, file: weather.csv, columns: {speed_there: speed}}",
                more=JOIN,
            ),
            {"x.csv": long_csv(), "weather.csv": long_csv()},
        ),
        "nixtla csv": Scene(yaml("observations: {format: nixtla, file: x.csv}"), {"x.csv": long_csv("unique_id,ds,y")}),
        "matrix csv": Scene(yaml(WIDE, "edges: {format: matrix, file: m.csv}"), {**wide, "m.csv": MATRIX}),
        "distances csv": Scene(
            yaml(WIDE, "edges: {format: distances, file: d.csv, sigma: 500}"), {**wide, "d.csv": DISTANCES}
        ),
        "libcity": Scene(
            yaml(
                *(
                    f"{t}: {{format: libcity, file: x.{s}}}"
                    for t, s in (("observations", "dyna"), ("entities", "geo"), ("edges", "rel"))
                )
            ),
            libcity(),
        ),
        "pandas hdf5": Scene(yaml("observations: {format: wide, file: x.h5, key: df}"), {"x.h5": hdf(pandas_frame)}),
        "pandas hdf5, blocks": Scene(yaml("observations: {format: wide, file: x.h5}"), {"x.h5": hdf(two_blocks)}),
        "city hdf5": Scene(
            yaml("observations: {format: st_resnet, file: x.h5}", channels=FLOW, kind="grid"), {"x.h5": hdf(slots)}
        ),
        "tensor npz": Scene(
            yaml(TENSOR.format("x.npz"), "edges: {format: matrix, file: m.npz}", channels=FLOW),
            {
                "x.npz": npz(data=values(2)),
                "m.npz": npz(compressed=True, adjacency=adjacency, ids=np.array(["0", "1", "2", "3"])),
            },
        ),
        "tensor npy": Scene(
            yaml(TENSOR.format("x.npy"), "edges: {format: matrix, file: m.npy}", channels=FLOW),
            {"x.npy": npy(values(2)), "m.npy": npy(adjacency)},
        ),
        "wide parquet": Scene(
            yaml("observations: {format: wide, file: x.parquet, time: time}"), {"x.parquet": parquet(frame())}
        ),
        "long parquet": Scene(yaml("observations: {format: long, file: x.parquet}"), {"x.parquet": parquet(rows())}),
        "netcdf-4": Scene(yaml(*FIELD, channels=TEMP, kind="grid"), {"x.nc": netcdf(field(), "h5netcdf")}),
        "netcdf-3": Scene(yaml(*FIELD, channels=TEMP, kind="grid"), {"x.nc": netcdf(field(), "scipy")}),
        "canonical parquet": Scene(
            yaml("observations: {format: canonical, file: x.parquet}"), {"x.parquet": parquet(rows())}
        ),
    }
