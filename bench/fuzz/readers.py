"""What is fuzzed: per reader the scenes it starts from, the damage it gets, and what "past the header" means."""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable
from dataclasses import dataclass

from bench.fuzz import odd
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
    """The file opens, and lists what the group of its frame holds."""
    import h5py

    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            return bool(sorted(file["df"]))
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
        Reader("csv", 0.2, (".csv", ".geo", ".rel", ".dyna"), odd.csv, _csv_header),
        Reader("h5", 0.2, (".h5",), odd.h5, _h5_header),
        Reader("npz", 0.15, (".npz",), odd.npz, _npz_header),
        Reader("npy", 0.15, (".npy",), odd.any_npy, _npy_header),
        Reader("parquet", 0.15, (".parquet",), odd.parquet, _parquet_header),
        Reader("yaml", 0.15, (".yaml",), odd.yaml, _yaml_header),
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
