"""Small valid datasets, a scene per way of writing one: the files that the fuzzing starts from."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
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


WIDE = "observations: {format: wide, file: x.csv, time: time}"
TENSOR = "observations: {{format: tensor, file: {}, start: 2024-01-01T00:00:00}}"
FLOW = "  - {name: flow, unit: cars}\n  - {name: speed, unit: mph}"
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
        "canonical parquet": Scene(
            yaml("observations: {format: canonical, file: x.parquet}"), {"x.parquet": parquet(rows())}
        ),
    }
