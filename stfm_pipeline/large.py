"""What may be larger than memory: tables that come a few rows at a time, arrays that lie in a scratch file.

Arrays beyond `LARGE` bytes lie in a file that nobody else sees, and are gone through a few rows at a time.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

LARGE = 1 << 29
CELLS_OF_A_PASS = 1 << 24


@dataclass(frozen=True)
class Chunks:
    """A table too large to hold: `frames` gives its rows a few at a time, the same ones whenever it is called.

    `times` is its column `time`, all of it.
    """

    times: pl.Series
    columns: list[str]
    frames: Callable[[], Iterator[pl.DataFrame]]

    def __len__(self) -> int:
        return len(self.times)


Table = pl.DataFrame | Chunks


def whole(table: Table) -> pl.DataFrame:
    """A table as one frame."""
    return table if isinstance(table, pl.DataFrame) else pl.concat(table.frames())


def frames_of(table: Table) -> Iterator[pl.DataFrame]:
    """A table as frames that follow one another."""
    return iter([table]) if isinstance(table, pl.DataFrame) else table.frames()


def times_in(table: Table) -> pl.Series:
    """The column `time` of a table."""
    return table["time"] if isinstance(table, pl.DataFrame) else table.times


def is_large(shape: tuple[int, ...], dtype: Any = np.float32) -> bool:
    """Whether an array of this size is kept in a file."""
    return bool(prod(shape) * np.dtype(dtype).itemsize > LARGE)


def room(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros, in memory or in a file that is gone with the array."""
    if not is_large(shape, dtype):
        return np.zeros(shape, dtype)
    from stfm_pipeline.settings import Settings

    # The folder for temporary files may be memory itself.
    folder = Settings().cache / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, "r+", shape=shape)


def release(*arrays: NDArray[Any]) -> None:
    """Let go of the memory through which large arrays were looked at; what they hold stays."""
    for array in arrays:
        owner: Any = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if isinstance(owner, np.memmap) and owner._mmap is not None:  # type: ignore[attr-defined]
            owner._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def rows_at_once(width: int) -> int:
    """How many rows of a wide table a pass looks at."""
    return max(1, CELLS_OF_A_PASS // max(width, 1))


def passes(rows: int, width: int, *arrays: NDArray[Any]) -> Iterator[slice]:
    """Rows of a table `width` cells wide, some at a time; after each, `arrays` are released."""
    size = rows_at_once(width)
    for i in range(0, rows, size):
        yield slice(i, min(i + size, rows))
        release(*arrays)


def total(count: Callable[..., Any], *arrays: NDArray[Any]) -> int:
    """The sum of what `count` says of arrays with as many rows each, some rows at a time."""
    rows = len(arrays[0])
    width = max(prod(a.shape[1:]) for a in arrays)
    return sum(int(count(*(a[part] for a in arrays))) for part in passes(rows, width, *arrays))
