"""Observations: wide tables, arrays, long tables."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from stfm_pipeline.datasets.formats.base import (
    NULLS,
    Block,
    Form,
    FrameFiles,
    Moment,
    Scene,
    Separator,
    assemble,
    clock,
    dated,
    open_frame,
    open_lazily,
    pick,
    refuse_bomb,
)
from stfm_pipeline.datasets.formats.cells import Cells
from stfm_pipeline.datasets.formats.hdf import is_hdf, read_pandas_hdf
from stfm_pipeline.errors import MAX_OFFENDERS, ContractError, SourceError, StfmError

ROWS_OF_A_BATCH = 500_000


class _Dated(Form):
    """Rows without times of their own are dated by `start`, civil in the dataset's zone, one step apart."""

    start: Moment | None = None
    weekends: bool = True


class Wide(_Dated):
    """A row per time and a column per entity: csv, parquet, or a frame that pandas wrote to HDF5 (METR-LA, LargeST).

    `file` is one channel's; `files` names one per channel. Several files of a channel follow one another in time.
    `time` is the column of times by name or position, None where the file has none. `key` is the frame's name in HDF5.
    """

    format: Literal["wide"]
    file: FrameFiles | None = None
    files: dict[str, FrameFiles] = Field(default={})
    time: str | int | None = None
    time_format: str | None = None
    header: bool = True
    separator: Separator | None = None
    key: str | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Wide:
        if (self.file is None) == (not self.files):
            raise ValueError("name either `file` (one channel) or `files` (one per channel)")
        return self

    def names(self) -> tuple[str, ...]:
        every = [self.file, *self.files.values()]
        return tuple(f for entry in every if entry for f in ((entry,) if isinstance(entry, str) else entry))

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame:
        wanted = self.files or {scene.channels[0]: self.file or ()}
        named = {c: (names,) if isinstance(names, str) else names for c, names in wanted.items()}
        return assemble({c: [self._dense(table, files[n], scene) for n in names] for c, names in named.items()}, scene)

    def _dense(self, table: str, path: Path, scene: Scene) -> Block:
        if is_hdf(path):
            times, entities, values = read_pandas_hdf(path, self.key)
        else:
            times, entities, values = self._text(table, path)
        if times is None:
            if self.start is None:
                raise ContractError(
                    f"{table}: {path.name} says nowhere when its rows were measured",
                    expected="a column of times (`time`), or the first row's time (`start`)",
                    fix=f"add `time:` or `start:` to tables.{table}",
                )
            found = clock(self.start, scene.step, len(values), scene.zone, self.weekends)
            return Block(found, entities, values)
        return Block(dated(table, path, times, scene.zone, self.time_format, "keep"), entities, values)

    def _text(self, table: str, path: Path) -> tuple[pl.Series | None, list[str], NDArray[Any]]:
        frame = open_frame(path, self.separator, self.header)
        times = None
        if isinstance(self.time, int) and self.start is None:
            if not -frame.width <= self.time < frame.width:
                raise ContractError(
                    f"{table}: {path.name} has no column at position {self.time}", found=f"{frame.width} columns"
                )
            times = frame.to_series(self.time)
        elif isinstance(self.time, str):
            times = pick(table, path, frame, [self.time])[self.time]
        if times is not None:
            frame = frame.drop(times.name)
        if text := [c for c in frame.columns if not frame.schema[c].is_numeric() and frame.schema[c] != pl.Null]:
            raise ContractError(
                f"{table}: columns of {path.name} hold something else than numbers",
                expected="a number per entity and time",
                offenders=[f"{c}: {no_number(frame[c])}" for c in text],
                fix="mend them; if one of them is the time, name it as `time`",
            )
        if not frame.width:
            raise ContractError(f"{table}: {path.name} has no column of values", fix="bring a column per entity")
        entities = frame.columns if self.header else [str(i) for i in range(frame.width)]
        return times, entities, frame.select(pl.all().cast(pl.Float64)).to_numpy(order="c")


class Tensor(_Dated):
    """An array (t, n, c) or (t, n) in npz or npy, as the PEMS0x files are. `columns` says which index is which channel.

    Entities are called by their position, or by the lines of the file `ids`.
    """

    format: Literal["tensor"]
    file: str
    start: Moment
    key: str = "data"
    columns: dict[str, int] = Field(default={})
    ids: str | None = None

    def names(self) -> tuple[str, ...]:
        return (self.file, *([self.ids] if self.ids else []))

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame:
        path = files[self.file]
        array = load_array(path, self.key)
        array = array[..., None] if array.ndim == 2 else array
        wanted = self.columns or {c: i for i, c in enumerate(scene.channels)}
        if array.ndim != 3 or max(wanted.values()) >= array.shape[2]:
            raise ContractError(
                f"{table}: {path.name} holds an array of another form",
                expected=f"(steps, entities, channels) with channels up to index {max(wanted.values())}",
                found=str(array.shape),
                fix="correct `columns`, or name another `key`",
            )
        times = clock(self.start, scene.step, len(array), scene.zone, self.weekends)
        names = [str(i) for i in range(array.shape[1])]
        if self.ids is not None:
            names = files[self.ids].read_text().split()
            if len(names) != array.shape[1]:
                raise ContractError(
                    f"{self.ids} does not name the entities of {path.name}",
                    expected=f"{array.shape[1]} names",
                    found=f"{len(names)}",
                )
            if twice := [n for n, count in Counter(names).items() if count > 1]:
                raise ContractError(
                    f"{self.ids} names entities twice", offenders=twice, fix="give each entity its own name"
                )
        return assemble({c: [Block(times, names, array[:, :, i])] for c, i in wanted.items()}, scene)


def load_array(path: Path, key: str | None = None, text: bool = False) -> NDArray[Any]:
    """An array of numbers from npz (by key, or the only one) or npy; with `text` it may be of names.

    Object arrays, which hide pickles, are refused.
    """
    array = _load(path, key)
    if array.dtype.kind not in ("fiubU" if text else "fiub"):
        raise SourceError(
            f"{path.name} holds something else than {'names' if text else 'numbers'}",
            found=str(array.dtype),
            fix="save it with np.savez from plain arrays",
        )
    return array


def _load(path: Path, key: str | None) -> NDArray[Any]:
    mapped = path.suffix == ".npy"
    try:
        with path.open("rb") as handle:
            found = np.load(path if mapped else handle, allow_pickle=False, mmap_mode="r" if mapped else None)
            if isinstance(found, np.ndarray):
                return found
            names = list(found.files)
            if key not in names and len(names) == 1:
                key = names[0]
            if key not in names:
                raise SourceError(f"{path.name} holds no array '{key}'", found=", ".join(names), fix="name the `key`")
            refuse_bomb(path, sum(i.file_size for i in found.zip.infolist() if i.filename in (key, f"{key}.npy")))
            return np.asarray(found[key])
    except (ValueError, OSError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(
            f"{path.name} is not an array file that can be read safely",
            expected="npz or npy of numbers",
            found=(str(error) or type(error).__name__).splitlines()[0],
            fix="save it with np.savez from plain numeric arrays",
        ) from error


class Long(Form):
    """A row per entity and time: csv, tsv or parquet. `columns` maps our names to the file's.

    `time` may be several columns (year, month, day, hour, minute). Without `entity`, all rows are of `one_entity`.
    `offsets: ignore` reads times that are written with a Z or an offset as the civil times they are. A side table's
    `known_at` is the column that says when a row was known.
    """

    format: Literal["long"]
    file: FrameFiles
    entity: str | None = "entity"
    one_entity: str | None = None
    time: str | Annotated[tuple[str, ...], Field(min_length=3, max_length=6)] = "time"
    time_format: str | None = None
    offsets: Literal["keep", "ignore"] = "keep"
    known_at: str | None = None
    columns: dict[str, str] = Field(default={})
    separator: Separator | None = None
    only: dict[str, str] = Field(default={}, description="keep rows where these columns hold these values")

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame:
        """Observations become dense while they are read where that loses nothing; all else is read whole."""
        if table == "observations" and (dense := self._dense(table, files, scene)) is not None:
            return dense
        text = [*self._keys()[0], *self.only]
        paths = [files[name] for name in self.names()]
        return pl.concat([self._rows(table, p, open_frame(p, self.separator, text=text), scene) for p in paths])

    def mapping(self, table: str, scene: Scene, there: list[str]) -> dict[str, str]:
        """Our names to the file's; observations without a mapping bring the dataset's channels, others all numbers."""
        if self.columns:
            return self.columns
        return {c: c for c in scene.channels} if table == "observations" else {c: c for c in there}

    def _keys(self) -> tuple[list[str], list[str]]:
        """Columns of entities and of times."""
        names = [] if self.one_entity is not None or self.entity is None else [self.entity]
        return names, [self.time] if isinstance(self.time, str) else list(self.time)

    def _dense(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame | None:
        """None where the rows do not fit, or where something is wrong with them: reading them whole says what."""
        # Looking for the words of nothing takes a quarter of the time, and few files have any.
        for nulls in ((), NULLS):
            cells = Cells(scene.listed)
            try:
                batches = (b for name in self.names() for b in self._batches(table, files[name], scene, nulls))
                fits = all(cells.add(rows) for rows in batches)
            except (StfmError, pl.exceptions.PolarsError, OSError):
                continue
            if not nulls and not {*cells.came, *self.only.values()}.isdisjoint(NULLS):
                continue
            dense = cells.table() if fits else None
            if dense is not None:
                scene.entities.extend(cells.came)
                scene.columns.extend(cells.order)
            return dense
        return None

    def _batches(self, table: str, path: Path, scene: Scene, nulls: Sequence[str]) -> Iterator[pl.DataFrame]:
        names, stamps = self._keys()
        there = open_lazily(path, self.separator).collect_schema().names()
        mapping = self.mapping(table, scene, [c for c in there if c not in (*names, *stamps)])
        types = dict.fromkeys(mapping.values(), pl.Float64()) | dict.fromkeys((*names, *self.only), pl.String())
        wanted = dict.fromkeys([*names, *stamps, *self.only, *mapping.values()])
        scan = open_lazily(path, self.separator, types, nulls).select(*wanted)
        for batch in scan.collect_batches(chunk_size=ROWS_OF_A_BATCH, maintain_order=True):
            yield self._rows(table, path, batch, scene)

    def _rows(self, table: str, path: Path, frame: pl.DataFrame, scene: Scene) -> pl.DataFrame:
        """Rows of the file as (entity, time, columns)."""
        names, stamps = self._keys()
        for column, value in self.only.items():
            frame = pick(table, path, frame, [column]).filter(pl.col(column) == value)
        told = [] if self.known_at is None else [self.known_at]
        pick(table, path, frame, [*names, *stamps, *told])
        there = [c for c in frame.columns if c not in (*names, *stamps, *told) and frame.schema[c].is_numeric()]
        mapping = self.mapping(table, scene, there)
        pick(table, path, frame, list(mapping.values()))
        if text := [c for c in mapping.values() if not frame.schema[c].is_numeric() and frame.schema[c] != pl.Null]:
            raise ContractError(
                f"{table}: columns of {path.name} hold something else than numbers",
                offenders=[f"{c}: {no_number(frame[c])}" for c in text],
                fix=f"mend them, or leave them out of tables.{table}.columns",
            )
        if not names and self.one_entity is None:
            raise ContractError(
                f"{table}: nothing says whose rows these are", fix="name the column `entity`, or `one_entity`"
            )
        stamp = _moments(table, path, frame.select(stamps)) if len(stamps) > 1 else frame[stamps[0]]
        known = {} if self.known_at is None else {"known_at": frame[self.known_at]}
        who = pl.col(names[0]).cast(pl.String) if names else pl.lit(self.one_entity)
        return frame.select(
            entity=who,
            time=dated(table, path, stamp, scene.zone, self.time_format, self.offsets),
            **{c: dated(table, path, s, scene.zone, self.time_format, self.offsets) for c, s in known.items()},
            **{ours: pl.col(theirs).cast(pl.Float64) for ours, theirs in mapping.items()},
        )


def no_number(column: pl.Series) -> str:
    """The first value of a text column that is no number."""
    return repr(next(iter(column.filter(column.cast(pl.Float64, strict=False).is_null() & column.is_not_null())), None))


def _moments(table: str, path: Path, parts: pl.DataFrame) -> pl.Series:
    """Civil times from their parts: year, month, day and what follows."""
    try:
        whole = parts.cast(pl.Float64)
        out = whole.select(pl.datetime(*(pl.col(c).cast(pl.Int32) for c in whole.columns), time_unit="us")).to_series()
    except pl.exceptions.PolarsError as error:
        raise ContractError(
            f"{table}: {', '.join(parts.columns)} of {path.name} are no parts of a time",
            expected="whole numbers: year, month, day, and if there are any hour, minute, second",
            found=str(error).splitlines()[0],
        ) from error
    wrong = whole.select(pl.any_horizontal(pl.all() != pl.all().round())).to_series()
    if wrong.any():
        raise ContractError(
            f"{table}: {', '.join(parts.columns)} of {path.name} are not whole",
            offenders=[str(row) for row in parts.filter(wrong).head(MAX_OFFENDERS).rows()],
            fix="split them further, e.g. into hour and minute",
        )
    return out


class Nixtla(Long):
    """A long frame as Nixtla's libraries write it: unique_id, ds, y (y is the channel where there is only one)."""

    format: Literal["nixtla"]  # type: ignore[assignment]
    entity: str | None = "unique_id"
    time: str | Annotated[tuple[str, ...], Field(min_length=3, max_length=6)] = "ds"

    def mapping(self, table: str, scene: Scene, there: list[str]) -> dict[str, str]:
        if not self.columns and table == "observations" and len(scene.channels) == 1 and "y" in there:
            return {scene.channels[0]: "y"}
        return super().mapping(table, scene, there)
