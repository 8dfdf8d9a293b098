"""What is fuzzed: per reader the scenes it starts from, the damage it gets, and what "past the header" means."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

from bench.fuzz import odd_arrays, odd_hdf, odd_netcdf, odd_tables, odd_text
from bench.fuzz.damage import damaged
from bench.fuzz.seeds import Scene, scenes

ODD_SHARE = 0.5


def _csv_header(data: bytes) -> bool:
    """The first line is text of several columns, and a row follows."""
    try:
        first, rest = data.decode("utf-8").lstrip("\n").split("\n", 1)
    except (UnicodeDecodeError, ValueError):
        return False
    return "," in first and "," in rest


def _h5_header(data: bytes) -> bool:
    """The file opens, and lists what it (or the group of its frame) holds."""
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            return bool(sorted(file.get("df", file)))
    except Exception:
        return False


def _npz_header(data: bytes) -> bool:
    """The archive opens, and its first member has the header of an array."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(archive.namelist()[0]) as member:
            return member.read(8).startswith(b"\x93NUMPY")
    except Exception:
        return False


def _npy_header(data: bytes) -> bool:
    """The header names a shape, a type and an order."""
    import numpy as np

    try:
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        read(file)
        return True
    except Exception:
        return False


def _parquet_header(data: bytes) -> bool:
    """The footer gives a schema."""
    import pyarrow.parquet as pq

    try:
        return len(pq.read_schema(io.BytesIO(data)).names) > 0
    except Exception:
        return False


def _netcdf_header(data: bytes) -> bool:
    """The file opens, and lists its variables."""
    import h5py
    from scipy.io import netcdf_file

    try:
        if data.startswith(b"\x89HDF"):
            with h5py.File(io.BytesIO(data), "r") as file:
                return bool(sorted(file))
        with netcdf_file(io.BytesIO(data), mmap=False) as old:
            return bool(sorted(old.variables))
    except Exception:
        return False


def _yaml_header(data: bytes) -> bool:
    """It is YAML, and a mapping."""
    import yaml

    try:
        return isinstance(yaml.load(data, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), dict)
    except Exception:
        return False


@dataclass(frozen=True)
class Reader:
    """A reader of foreign files; `share` of all files are for it."""

    name: str
    share: float
    suffixes: tuple[str, ...]
    odd: Callable[[bytes, random.Random], bytes]
    header: Callable[[bytes], bool]

    def targets(self) -> list[tuple[str, str]]:
        """Scene and file of each seed."""
        if self.name == "yaml":
            return [(name, "fuzz.yaml") for name in scenes()]
        return [
            (name, file) for name, scene in scenes().items() for file in scene.files if file.endswith(self.suffixes)
        ]


READERS = {
    r.name: r
    for r in (
        Reader("csv", 0.16, (".csv", ".geo", ".rel", ".dyna"), odd_text.csv, _csv_header),
        Reader("h5", 0.16, (".h5",), odd_hdf.h5, _h5_header),
        Reader("npz", 0.12, (".npz",), odd_arrays.npz, _npz_header),
        Reader("npy", 0.12, (".npy",), odd_arrays.any_npy, _npy_header),
        Reader("parquet", 0.12, (".parquet",), odd_tables.parquet, _parquet_header),
        Reader("netcdf", 0.2, (".nc",), odd_netcdf.netcdf_file, _netcdf_header),
        Reader("yaml", 0.12, (".yaml",), odd_text.yaml, _yaml_header),
    )
}


@dataclass(frozen=True)
class Case:
    """A dataset of which one file, `file`, is damaged."""

    scene: Scene
    file: str
    data: bytes

    def files(self) -> dict[str, bytes]:
        return {**self.scene.files, "fuzz.yaml": self.scene.yaml.encode(), self.file: self.data}


def case(reader: str, number: int) -> Case:
    """The file of this number: the same on every machine and in every run."""
    found, rng = READERS[reader], random.Random(f"{reader} {number}")
    targets = found.targets()
    name, file = targets[number % len(targets)]
    known = [scenes()[n].files.get(f, scenes()[n].yaml.encode()) for n, f in targets]
    data = known[number % len(targets)]
    knowing = rng.random() < ODD_SHARE
    if knowing:
        data = found.odd(data, rng)
    if not knowing or rng.random() < 0.1:
        data = damaged(data, rng, rng.choice(known))
    return Case(scenes()[name], file, data)
