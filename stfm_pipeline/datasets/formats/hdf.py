"""Frames that pandas wrote to HDF5 in its fixed format, read with h5py: pandas itself would unpickle.

Layout: a group with `axis0` (columns), `axis1` (index, nanoseconds where it is of times) and blocks of values, each
with the columns it holds in `block<i>_items`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.formats.base import refuse_bomb
from stfm_pipeline.errors import SourceError


def is_hdf(path: Path) -> bool:
    """Whether a file starts as HDF5 files do."""
    with path.open("rb") as handle:
        return handle.read(8) == b"\x89HDF\r\n\x1a\n"


def read_pandas_hdf(path: Path, key: str | None = None) -> tuple[pl.Series | None, list[str], NDArray[Any]]:
    """Times (None where the index holds none), column names, values (t, n)."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            frames = [name for name, group in file.items() if isinstance(group, h5py.Group) and "axis0" in group]
            name = key or (frames[0] if len(frames) == 1 else None)
            if name is None or name not in frames:
                raise SourceError(
                    f"{path.name} holds no frame '{name}'" if name else f"{path.name} holds not exactly one frame",
                    expected="a frame that pandas wrote with to_hdf in its fixed format",
                    found=", ".join(frames or file.keys()) or "nothing",
                    fix="name its `key`, or write it as csv, parquet or npz",
                )
            group = file[name]
            away = [n for n in group if isinstance(group.get(n, getlink=True), h5py.ExternalLink)]
            if away or isinstance(file.get(name, getlink=True), h5py.ExternalLink):
                raise _elsewhere(path)
            columns = _labels(path, group["axis0"])
            blocks = sorted(k for k in group if k.startswith("block") and k.endswith("_values"))
            if any(group[b].dtype.kind not in "fiub" for b in blocks):
                raise SourceError(f"{path.name} holds columns that are not numbers", fix="write the numbers alone")
            if len(blocks) == 1 and _labels(path, group["block0_items"]) == columns:
                values = held(path, group["block0_values"])
            else:
                shape = (len(group["axis1"]), len(columns))
                refuse_bomb(path, 8 * shape[0] * shape[1])
                values = np.empty(shape)
                place = {c: i for i, c in enumerate(columns)}
                for block in blocks:
                    items = _labels(path, group[block.replace("_values", "_items")])
                    values[:, [place[c] for c in items]] = held(path, group[block])
            return _times(path, group["axis1"]), columns, values
    except (OSError, KeyError, AttributeError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise SourceError(
            f"{path.name} cannot be read as a frame in HDF5",
            found=(str(error) or type(error).__name__).splitlines()[0],
            fix="write it again with pandas' to_hdf(format='fixed'), or as csv or parquet",
        ) from error


def held(path: Path, data: Any) -> Any:
    """All of a dataset. One without bytes is filled with zeros however large it says it is."""
    if data.external or data.is_virtual:
        raise _elsewhere(path)
    refuse_bomb(path, data.nbytes)
    return data[()]


def refuse_elsewhere(path: Path, group: Any) -> None:
    """Raise where anything in an HDF5 file or group takes its values from another file."""
    import h5py

    for name in group:
        link = group.get(name, getlink=True)
        found = None if isinstance(link, h5py.ExternalLink | h5py.SoftLink) else group[name]
        if isinstance(link, h5py.ExternalLink) or (
            isinstance(found, h5py.Dataset) and (found.external or found.is_virtual)
        ):
            raise _elsewhere(path)
        if isinstance(found, h5py.Group):
            refuse_elsewhere(path, found)


def _elsewhere(path: Path) -> SourceError:
    return SourceError(
        f"{path.name} takes its values from other files",
        expected="a file that holds them itself",
        fix="copy them into it",
    )


def _labels(path: Path, axis: Any) -> list[str]:
    if axis.dtype.kind == "O" or "pseudoatom" in axis.attrs or axis.attrs.get("CLASS") == b"VLARRAY":
        raise SourceError("the names of the columns are stored as a pickle", fix="write the frame as csv or parquet")
    return [v.decode() if isinstance(v, bytes) else str(v) for v in held(path, axis).tolist()]


def _times(path: Path, axis: Any) -> pl.Series | None:
    kind = axis.attrs.get("kind", b"")
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    if not kind.startswith("datetime64"):
        return None
    unit = kind[11:-1] if "[" in kind else "ns"
    stamps = pl.Series("time", held(path, axis).astype(f"datetime64[{unit}]").astype("datetime64[us]"))
    zone = axis.attrs.get("tz")
    if zone is None:
        return stamps
    zone = zone.decode() if isinstance(zone, bytes) else str(zone)
    return stamps.dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
