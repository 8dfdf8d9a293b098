"""What every format shares: opening a table whatever its file type, naming columns, dating rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict

from stfm_pipeline.errors import MAX_OFFENDERS, ContractError, SourceError
from stfm_pipeline.large import Table
from stfm_pipeline.tables import dense_observations, step_us, to_utc

EARLIEST, LATEST = (int(np.datetime64(f"{year}-01-01", "us").astype(np.int64)) for year in (1000, 9000))
# What deflate can make of a byte, and a little more.
INFLATES, SMALL = 1100, 256 * 1024**2
NULLS = ("", "NA", "NaN", "nan", "null", "NULL", "None")
PICKLES = (".pkl", ".pickle", ".pk")
TEXT = (".csv", ".tsv", ".txt", ".gz", ".geo", ".rel", ".dyna")
FileName = Annotated[str, Field(min_length=1, max_length=255)]
FrameFiles = FileName | Annotated[tuple[FileName, ...], Field(min_length=1)]
Separator = Annotated[str, Field(pattern=r"^[\x00-\x7f]$")]


def _no_number(value: Any) -> Any:
    """A bare number would be taken for seconds since 1970."""
    if isinstance(value, int | float) or (isinstance(value, str) and re.fullmatch(r"[+-]?[0-9.]+", value)):
        raise ValueError("a time is written as 2024-01-31 or 2024-01-31T06:00:00")
    return value


Moment = Annotated[datetime, BeforeValidator(_no_number)]


# Neither a text nor true and false.
Whole = Annotated[int, Strict()]
Real = Annotated[float, Strict()]
Box = tuple[Real, Real, Real, Real]


def check_box(box: Box) -> Box:
    """West, south, east, north in degrees; west of a box over the date line is larger than its east."""
    west, south, east, north = box
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90 and west != east):
        raise ValueError(
            "a box is west, south, east, north, longitudes from -180 to 180; over the date line west > east"
        )
    return box


def in_box(lon: NDArray[Any], lat: NDArray[Any], box: Box) -> NDArray[np.bool_]:
    """Which places lie in a box, its edges included; NaN is nowhere."""
    west, south, east, north = box
    across = (lon >= west) & (lon <= east) if west < east else (lon >= west) | (lon <= east)
    return np.asarray(across & (lat >= south) & (lat <= north))


class Model(BaseModel):
    """A part of a dataset's description; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass
class Scene:
    """What a reader knows about the dataset: channels with their units, civil zone, step, and entities.

    `listed` are those of the entities table, where there is one. Once observations are read, `entities` is their order
    in the file, and `columns` that of a dense table's columns where it is another one. With `rows`, observations came
    as rows, whose order means nothing. `cells` is the entities table of observations that come as a grid.
    """

    channels: tuple[str, ...]
    zone: str
    step: str
    entities: list[str] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: bool = False
    units: dict[str, str] = field(default_factory=dict)
    cells: pl.DataFrame | None = None


class Form(Model):
    """A format with its options. `names()` are the files it needs, `read` gives the canonical table."""

    def names(self) -> tuple[str, ...]:
        file: FrameFiles = self.file  # type: ignore[attr-defined]
        return (file,) if isinstance(file, str) else tuple(file)

    def ready(self, files: dict[str, Path]) -> bool:
        """Whether every file is there (an optional one may not be)."""
        return all(f in files for f in self.names())

    def fragile(self, files: dict[str, Path]) -> bool:
        """Whether a damaged file could bring down the process that reads it."""
        return False

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> Table:
        raise NotImplementedError


def refuse_pickle(path: Path) -> None:
    """Loading a pickle runs whatever code it holds, so none is ever opened; the message says how to convert one."""
    if path.suffix in PICKLES:
        raise SourceError(
            f"{path.name} is a pickle, and opening one runs the code in it",
            expected="an adjacency matrix as csv, npz or npy, or a csv of distances",
            found=path.suffix,
            fix=(
                "if you trust its origin, convert it once, elsewhere: "
                "python -c \"import pickle, numpy as np; ids, _, a = pickle.load(open('adj_mx.pkl', 'rb'), "
                "encoding='latin1'); np.savez('adj_mx.npz', ids=np.array(ids, str), adjacency=a)\""
            ),
        )


def refuse_bomb(path: Path, size: int) -> None:
    """Before a file's contents are made room for: refuse a size in bytes that no file of its length means."""
    there = path.stat().st_size
    if size > max(SMALL, INFLATES * there):
        raise SourceError(
            f"{path.name} says that it holds more than it can",
            expected=f"{INFLATES} times its {there} bytes at most",
            found=f"{size} bytes",
            fix="the file is damaged; fetch or write it again",
        )


def open_frame(path: Path, separator: str | None = None, header: bool = True, text: Sequence[str] = ()) -> pl.DataFrame:
    """A csv (also gzipped), tsv or parquet file; the columns named in `text` stay strings."""
    refuse_pickle(path)
    frame = _open(path, separator, header, text)
    if double := [c for c in frame.columns if (m := re.fullmatch(r"(.*)_duplicated_\d+", c)) and m[1] in frame.columns]:
        raise SourceError(
            f"{path.name} has several columns of one name",
            offenders=[c.rpartition("_duplicated_")[0] for c in double],
            fix="give each its own",
        )
    return frame


def _open(path: Path, separator: str | None, header: bool, text: Sequence[str]) -> pl.DataFrame:
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        if path.suffix not in TEXT:
            raise SourceError(f"cannot read {path.name} as a table", expected="csv, tsv, csv.gz or parquet")
        guess = "\t" if ".tsv" in path.suffixes else ","
        options: dict[str, Any] = {"separator": separator or guess, "has_header": header, "null_values": list(NULLS)}
        there = pl.read_csv(path, n_rows=0, **options).columns if text else []
        overrides = {c: pl.String for c in text if c in there}
        try:
            return pl.read_csv(path, schema_overrides=overrides, infer_schema_length=10_000, **options)
        except pl.exceptions.ComputeError:
            # A column that looks whole for ten thousand rows and is not: all rows decide.
            return pl.read_csv(path, schema_overrides=overrides, infer_schema_length=None, **options)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise SourceError(
            f"{path.name} cannot be read as a table",
            found=str(error).splitlines()[0],
            fix="check its separator, header and encoding (UTF-8)",
        ) from error


def open_lazily(
    path: Path, separator: str | None = None, types: dict[str, Any] | None = None, nulls: Sequence[str] = NULLS
) -> pl.LazyFrame:
    """The same as a query, so that a file need not fit into memory; the columns in `types` are taken for what it says.

    Running it raises what polars raises: whoever wants to know what is wrong with a file opens it whole.
    """
    refuse_pickle(path)
    if path.suffix == ".parquet":
        return pl.scan_parquet(path)
    if path.suffix not in TEXT or path.suffix == ".gz":
        return open_frame(path, separator, text=[c for c, t in (types or {}).items() if t == pl.String]).lazy()
    guess = "\t" if ".tsv" in path.suffixes else ","
    return pl.scan_csv(
        path,
        separator=separator or guess,
        null_values=list(nulls) or None,
        schema_overrides=types,
        infer_schema_length=10_000,
    )


def pick(table: str, path: Path, frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """`frame` if it has all `columns`; else an error that names the nearest ones."""
    if missing := [c for c in columns if c not in frame.columns]:
        near = {c: get_close_matches(c, frame.columns, n=1, cutoff=0.5) for c in missing}
        raise ContractError(
            f"{table}: {path.name} lacks columns",
            expected=", ".join(columns),
            found=", ".join(frame.columns[:20]) + (" ..." if len(frame.columns) > 20 else ""),
            offenders=[f"{c} (nearest: {near[c][0]})" if near[c] else c for c in missing],
            fix=f"correct the column names of tables.{table}",
        )
    return frame


def dated(table: str, path: Path, column: pl.Series, zone: str, form: str | None, offsets: str) -> pl.Series:
    """A column of times as UTC. Naive ones are read in `zone`; text may carry offsets, which `ignore` drops."""
    runs = column.rle().struct.unnest()
    if 2 * len(runs) > len(column):
        return _dated(table, path, column, zone, form, offsets)
    # Rows that follow one another often have one time: it is read once.
    moments = _dated(table, path, runs["value"], zone, form, offsets)
    return moments.gather(np.repeat(np.arange(len(runs), dtype=np.uint32), runs["len"].to_numpy()))


def _dated(table: str, path: Path, column: pl.Series, zone: str, form: str | None, offsets: str) -> pl.Series:
    if form is not None and column.dtype.is_integer():
        column = column.cast(pl.String)
    if column.dtype == pl.String:
        column = _parsed(table, path, column.str.strip_chars(), form, offsets)
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("us"))
    elif not isinstance(column.dtype, pl.Datetime):
        raise ContractError(
            f"{table}: the time column of {path.name} holds no times",
            found=f"{column.dtype}: {column.head(3).to_list()}",
            fix="name the column of times, several that make one up ([year, month, day, hour]), or a `time_format`",
        )
    column = of_this_age(table, path, column.dt.cast_time_unit("us"))
    if getattr(column.dtype, "time_zone", None) is not None:
        return column.dt.convert_time_zone("UTC")
    moments = to_moments(column, zone)
    never = column.filter(moments.is_null() & column.is_not_null()).unique(maintain_order=True)
    if len(never):
        raise ContractError(
            f"{table}: {path.name} holds {len(never)} civil times that never were in {zone}: its clocks skipped them",
            expected=f"times of {zone}, or a zone without summer time",
            offenders=never.head(MAX_OFFENDERS).to_list(),
            fix="if the file's clock knows no summer time, state a fixed zone such as Etc/GMT+8 (which is UTC-8)",
        )
    return moments


def of_this_age(table: str, path: Path, column: pl.Series) -> pl.Series:
    """Times (microseconds) if calendars can count them; far beyond, even printing one fails."""
    stamps = column.to_physical()
    if len(far := stamps.filter((stamps < EARLIEST) | (stamps > LATEST))):
        raise ContractError(
            f"{table}: {path.name} holds times beyond the years 1000 to 9000",
            found=f"{len(far)} of them",
            offenders=[f"{stamp} microseconds since 1970" for stamp in far.head(MAX_OFFENDERS)],
            fix="mend them; are they counted in another unit?",
        )
    return column


# An offset follows a time; at the end of a date, as in 15-01-2013, stands a year.
OFFSET = r"([T: ]\d{2}[0-9:.]*) ?(Z|[+-]\d{2}:?\d{2})$"
DAY_FIRST = r"^(\d{1,2})[/.-]\d{1,2}[/.-]\d{4}"


def _parsed(table: str, path: Path, column: pl.Series, form: str | None, offsets: str) -> pl.Series:
    known = column.drop_nulls()
    aware = len(known) > 0 and bool(known.head(1).str.contains(OFFSET)[0]) and (form is None or "%z" in form)
    if aware and offsets == "ignore":
        column, aware = column.str.replace(OFFSET, "$1"), False
    slashed = form is None and len(known) > 0 and bool(known.head(1).str.contains(DAY_FIRST)[0])
    if slashed and not (known.str.extract(DAY_FIRST).cast(pl.Int64) > 12).any():
        raise ContractError(
            f"{table}: the dates of {path.name} can be read with the day first or with the month first",
            found=", ".join(map(repr, known.head(3))),
            fix="state `time_format`, e.g. '%d/%m/%Y %H:%M' or '%m/%d/%Y %H:%M'",
        )
    try:
        if aware:
            whole = column.str.replace(r"Z$", "+00:00")
            out = whole.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False)
        else:
            out = column.str.to_datetime(form, time_unit="us", strict=False)
    except pl.exceptions.ComputeError as error:
        raise ContractError(
            f"{table}: the times of {path.name} are in no form that can be recognised",
            expected=f"{form}: {str(error).splitlines()[0]}" if form else None,
            found=", ".join(map(repr, known.head(3))),
            fix=f"{'mend' if form else 'state'} `time_format`, e.g. '%d.%m.%Y %H:%M'",
        ) from error
    bad = column.filter(out.is_null() & column.is_not_null())
    if len(bad):
        raise ContractError(
            f"{table}: {len(bad)} times of {path.name} cannot be read",
            expected=form or "ISO 8601, all in one form",
            offenders=[repr(b) for b in bad.head(MAX_OFFENDERS)],
            fix="mend them, or state `time_format`",
        )
    return out


def clock(start: datetime, step: str, count: int, zone: str, weekends: bool = True) -> pl.Series:
    """`count` UTC step starts from a civil `start`; without `weekends`, Saturdays and Sundays are passed over."""
    length = timedelta(microseconds=step_us(step))
    civil = start if start.tzinfo is None else start.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    try:
        if not weekends:
            days = count * length / timedelta(days=1)
            span = pl.datetime_range(civil, civil + timedelta(days=7 * days / 5 + 7), length, eager=True)
            return to_moments(span.filter(span.dt.weekday() < 6).head(count), zone)
        first = to_moments(pl.Series([civil]), zone)[0] if start.tzinfo is None else start.astimezone(UTC)
        if first is None:
            raise ContractError(
                f"the first row's time never was in {zone}: its clocks skipped it", found=str(start), fix="mend `start`"
            )
        return pl.datetime_range(
            first, first + length * (count - 1), interval=length, time_unit="us", time_zone="UTC", eager=True
        )
    except OverflowError:
        raise ContractError("the clock runs beyond all dates", found=f"{count} steps from {start}") from None


def to_moments(civil: pl.Series, zone: str) -> pl.Series:
    """Civil times as UTC, null where they never were."""
    return civil.cast(pl.Datetime("us")).to_frame("time").select(to_utc(pl.col("time"), zone))["time"]


def only_observations(table: str) -> None:
    """Raise where a file of fields is asked for another table."""
    if table != "observations":
        raise ContractError(f"{table}: a file of fields brings observations and their cells, no other table")


def lay_out(scene: Scene, height: int, width: int, lon: Any = None, lat: Any = None) -> None:
    """Note the cells of a grid, row after row; `lon` and `lat` (height, width) in degrees, where they are known.

    Longitudes from 180 to 360 become -180 to 0; no cell moves for it.
    """
    row, col = (a.ravel() for a in np.indices((height, width), np.int32))
    names = [f"r{r}c{c}" for r, c in zip(row.tolist(), col.tolist(), strict=True)]
    cells = pl.DataFrame({"entity": names, "row": row, "col": col})
    if lon is not None:
        east, north = (np.asarray(a, np.float64).ravel() for a in (lon, lat))
        turned = np.where((east > 180) & (east <= 360), east - 360, east)
        cells = cells.with_columns(lon=pl.Series(turned).fill_nan(None), lat=pl.Series(north).fill_nan(None))
    scene.cells = cells
    scene.entities.extend(names)


@dataclass(frozen=True)
class Block:
    """What one file of a dense source holds: UTC times (t,), names (n,), values (t, n)."""

    times: pl.Series
    entities: list[str]
    values: NDArray[Any]


def assemble(blocks: dict[str, list[Block]], scene: Scene) -> pl.DataFrame:
    """Dense raw observations from the blocks of each channel; entities and times that a block lacks are unobserved."""
    for block in (b for part in blocks.values() for b in part):
        known = set(scene.entities)
        scene.entities.extend(e for e in block.entities if e not in known)
    stacked = {c: [_onto(b, scene.entities) for b in part] for c, part in blocks.items()}
    times = {c: pl.concat([b.times for b in part]) for c, part in blocks.items()}
    values = {c: part[0] if len(part) == 1 else np.concatenate(part) for c, part in stacked.items()}
    first = next(iter(times.values()))
    if all(t.equals(first) for t in times.values()):
        return dense_observations(first, values)
    union = pl.concat(list(times.values())).unique().sort()
    out = {}
    for channel, own in times.items():
        if own.is_duplicated().any():
            raise ContractError(
                f"channel '{channel}' has two rows of one time, and the channels' times differ",
                offenders=own.filter(own.is_duplicated()).to_list(),
                fix="remove the second row",
            )
        out[channel] = np.full((len(union), len(scene.entities)), np.nan, np.float64)
        out[channel][union.search_sorted(own).to_numpy()] = values[channel]
    return dense_observations(union, out)


def _onto(block: Block, entities: Sequence[str]) -> NDArray[Any]:
    if block.entities == list(entities):
        return block.values
    place = {e: i for i, e in enumerate(entities)}
    out = np.full((len(block.values), len(entities)), np.nan, np.float64)
    out[:, [place[e] for e in block.entities]] = block.values
    return out
