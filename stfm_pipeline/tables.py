"""The canonical tables, their contracts, and the dense signal that the rest of the road works on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, cast
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.errors import MAX_OFFENDERS, ContractError
from stfm_pipeline.large import Chunks, Table, is_large, passes, release, room, total

UTC = pl.Datetime("us", "UTC")
ROWS_AT_ONCE = 512
CELLS_AT_ONCE = 1 << 18
_UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
DAY_US = _UNITS_US["d"]


def step_us(step: str, zero: bool = False) -> int:
    """Length of a duration such as `5m`, `1h`, `1d` in microseconds; `zero` allows `0h`."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", step)
    if not match or (int(match[1]) == 0 and not zero):
        raise ContractError("not a step length", expected="a number and s, m, h or d, e.g. '1h'", found=repr(step))
    return int(match[1]) * _UNITS_US[match[2]]


def is_zone(name: str) -> bool:
    """Whether a time zone is known to both who reads times and who turns them into civil ones."""
    try:
        ZoneInfo(name)
        pl.Series([datetime(2024, 1, 1)]).dt.replace_time_zone(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, pl.exceptions.PolarsError):
        return False
    return True


def leaves_utc(zone: str) -> bool:
    """Whether civil days of a zone are ever others than those of UTC."""
    return any(ZoneInfo(zone).utcoffset(datetime(2024, month, 1)) for month in range(1, 13))


def stretches(rows: int, width: int) -> list[slice]:
    """Rows of a wide table in stretches that stay in the processor's cache."""
    height = max(1, CELLS_AT_ONCE // max(width, 1))
    return [slice(i, min(i + height, rows)) for i in range(0, rows, height)]


@dataclass(frozen=True)
class Check:
    """One rule of a contract and whether the data kept it."""

    name: str
    passed: bool
    description: str
    details: dict[str, Any]


def _utc(primary_key: bool = False) -> dy.Column:
    return dy.Datetime(nullable=False, primary_key=primary_key, time_unit="us", time_zone="UTC")


def observations(channels: Sequence[str]) -> type[dy.Schema]:
    """Long observations: one row per entity and time, a float column per channel; null, NaN and inf are unobserved."""
    columns: dict[str, Any] = {"entity": dy.String(nullable=False, min_length=1), "time": _utc()}
    columns |= {c: dy.Float64(nullable=True, allow_inf=True, allow_nan=True) for c in channels}
    return type("Observations", (dy.Schema,), columns)


def is_dense(observations: Table) -> bool:
    """Whether raw observations have a row per time with a list per channel, in the order of the first entities."""
    return "entity" not in observations.columns and "time" in observations.columns


def dense_observations(
    times: pl.Series,
    channels: dict[str, NDArray[Any]],
    seen: NDArray[np.bool_] | None = None,
    double: Collection[str] = (),
) -> pl.DataFrame:
    """Raw observations of a source that is dense itself: `time` and per channel a list over entities.

    Arrays are (t, n). NaN is a value that was not observed, null a cell of which the source has no row (`seen` false).
    Double precision is kept only where single precision would lose something, and for the channels in `double`.
    """
    import pyarrow as pa

    holes = None if seen is None or seen.all() else pa.py_buffer(np.packbits(seen, bitorder="little").data)
    lists = {}
    for channel, values in channels.items():
        kept = np.ascontiguousarray(values, np.float64) if channel in double else _lossless(values)
        t, n = kept.shape
        kind = pa.float32() if kept.dtype == np.float32 else pa.float64()
        cells = pa.Array.from_buffers(kind, t * n, [holes, pa.py_buffer(kept.reshape(-1).data)])
        lists[channel] = pl.Series(pa.LargeListArray.from_arrays(np.arange(t + 1, dtype=np.int64) * n, cells))
    return pl.DataFrame({"time": times, **lists})


def dense_table(times: pl.Series, channels: dict[str, NDArray[Any]]) -> Table:
    """The same, a few rows at a time where the arrays are large ones (`large.room`)."""
    if not any(is_large(a.shape, a.dtype) for a in channels.values()):
        return dense_observations(times, channels)
    wide = {c: a for c, a in channels.items() if a.dtype != np.float32}
    double = [c for c, a in wide.items() if total(lambda block: (_narrowed(block) != block).sum(), a)]

    def frames() -> Iterator[pl.DataFrame]:
        width = sum(a.shape[1] for a in channels.values())
        for part in passes(len(times), width, *channels.values()):
            yield dense_observations(times[part], {c: a[part] for c, a in channels.items()}, None, double)

    return Chunks(times, ["time", *channels], frames)


def _narrowed(block: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        single = block.astype(np.float32)
    # What is not a number is kept by either precision.
    return np.where(block != block, block, single)


def _lossless(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype == np.float32:
        return np.ascontiguousarray(values)
    narrow = np.empty(values.shape, np.float32)
    for part in stretches(len(values), values.shape[1]):
        block = values[part]
        with np.errstate(over="ignore"):
            narrow[part] = block
        same = narrow[part] == block
        if not same.all() and not (same | (block != block)).all():
            return np.ascontiguousarray(values, np.float64)
    return narrow


def dense_values(observations: pl.DataFrame, channel: str) -> NDArray[Any]:
    """A channel of dense raw observations as (t, n), NaN where there is no value."""
    column = observations[channel]
    width = int(column.list.len()[0]) if len(column) else 0
    return np.asarray(column.list.to_array(width).to_numpy())


def dense_rows(observations: pl.DataFrame) -> NDArray[np.bool_] | None:
    """Cells (t, n) of which the source has a row: of any channel that is not null. None means all."""
    seen = None
    for column in (observations[c] for c in observations.columns if c != "time"):
        cells = column.explode(empty_as_null=False)
        if not cells.null_count():
            return None
        known = cells.is_not_null().to_numpy().reshape(len(column), -1)
        seen = known if seen is None else seen | known
    return None if seen is None or seen.all() else seen


def long_observations(observations: pl.DataFrame, entities: Sequence[str]) -> pl.DataFrame:
    """Raw observations with a row per entity and time, whichever way they are kept."""
    if not is_dense(observations):
        return observations
    channels = [c for c in observations.columns if c != "time"]
    blocks = {c: dense_values(observations, c) for c in channels}
    t, n = next(iter(blocks.values())).shape
    seen = dense_rows(observations)
    cells = np.arange(t * n) if seen is None else np.flatnonzero(seen)
    return pl.DataFrame(
        {
            "entity": pl.Series(list(entities)[:n], dtype=pl.String).gather((cells % max(n, 1)).astype(np.uint32)),
            "time": observations["time"].gather((cells // max(n, 1)).astype(np.uint32)),
            **{c: pl.Series(v.astype(np.float64).reshape(-1)[cells]).fill_nan(None) for c, v in blocks.items()},
        }
    )


def validate_dense(observations: pl.DataFrame, channels: Sequence[str], entities: int, fix: str) -> pl.DataFrame:
    """Dense raw observations with exactly these channels, all as wide as one another and no wider than the entities."""
    missing = [c for c in channels if c not in observations.columns]
    if missing:
        raise ContractError(
            "observations: columns are missing",
            expected=", ".join(("time", *channels)),
            found=", ".join(observations.columns),
            offenders=missing,
            fix=fix,
        )
    if observations.schema["time"] != UTC or observations["time"].null_count():
        raise ContractError(
            "observations: times carry no time zone or are missing",
            expected="UTC times on every row",
            found=f"{observations.schema['time']}, {observations['time'].null_count()} missing",
            fix=fix,
        )
    widths = {c: observations[c].list.len().unique().to_list() for c in channels}
    whole = {w for found in widths.values() for w in found}
    if len(whole) > 1 or any(w is None or w > entities for w in whole):
        raise ContractError(
            "observations: rows do not hold one value per entity",
            expected=f"lists of one length, at most {entities}",
            found=", ".join(f"{c}: {sorted(map(str, w))[:5]}" for c, w in widths.items()),
            fix=fix,
        )
    return observations.select("time", *channels)


class Entities(dy.Schema):
    """Static facts per entity. Coordinates in degrees (WGS 84), `country` as ISO 3166; null where unknown."""

    entity = dy.String(primary_key=True, min_length=1)
    lon = dy.Float64(nullable=True, min=-180, max=180)
    lat = dy.Float64(nullable=True, min=-90, max=90)
    zone = dy.String(nullable=True)
    country = dy.String(nullable=True)
    text = dy.String(nullable=True)


class Cells(Entities):
    """The cells of a grid: entities with their `row` and `col` from 0; row 0 is the first row of the source."""

    row = dy.Int32(nullable=False, min=0)
    col = dy.Int32(nullable=False, min=0)


def grid_of(cells: pl.DataFrame) -> tuple[int, int]:
    """Height and width of a grid; `ContractError` unless its cells are all of a rectangle, row after row."""
    row, col = (cells[c].to_numpy().astype(np.int64) for c in ("row", "col"))
    height, width = (int(a.max(initial=-1)) + 1 for a in (row, col))
    wanted = np.arange(height * width)
    if len(cells) != len(wanted) or (row * width + col != wanted).any():
        place = row * width + col
        bad = np.flatnonzero(place != np.arange(len(place)))[:MAX_OFFENDERS]
        raise ContractError(
            "entities: cells are not a grid, row after row",
            expected=f"{height} x {width} cells in the order (0, 0), (0, 1) ...",
            found=f"{len(cells)} cells",
            offenders=[f"cell {i}: row {row[i]}, col {col[i]}" for i in bad],
            fix="list every cell once, also those without values, and mask their values instead",
        )
    return height, width


class Edges(dy.Schema):
    """Directed weighted edges. `time` (null = always) dates an edge, so that only training-part evidence counts."""

    source = dy.String(nullable=False)
    target = dy.String(nullable=False)
    weight = dy.Float64(nullable=False, min=0)
    time = dy.Datetime(nullable=True, time_unit="us", time_zone="UTC")


def validate(table: str, frame: pl.DataFrame, schema: type[dy.Schema], fix: str) -> pl.DataFrame:
    """`frame` with exactly the columns and types of `schema`, or a `ContractError` that names the first offenders."""
    wanted, found = schema.column_names(), frame.columns
    if missing := [c for c in wanted if c not in found]:
        raise ContractError(
            f"{table}: columns are missing",
            expected=", ".join(wanted),
            found=", ".join(found),
            offenders=missing,
            fix=fix,
        )
    naive = [c for c in wanted if frame.schema[c].is_temporal() and getattr(frame.schema[c], "time_zone", "-") is None]
    if naive:
        raise ContractError(
            f"{table}: times carry no time zone",
            expected="UTC times, or a zone in the dataset's spec to read civil times in",
            offenders=naive,
            fix="state the zone: `to_utc(pl.col('time'), zone=...)`",
        )
    frame = frame.select(wanted)
    nested = [f"{c}: {kind}" for c, kind in frame.schema.items() if kind.is_nested()]
    try:
        good, failures = schema.filter(frame, cast=True)
    except (dy.exc.SchemaError, pl.exceptions.PolarsError) as error:
        raise ContractError(
            f"{table}: column types differ from the contract", found=str(error).splitlines()[0], fix=fix
        ) from error
    if nested:
        raise ContractError(f"{table}: columns hold several values a row", offenders=nested, fix=fix)
    if len(good) != len(frame):
        rules = failures.counts()
        offenders = [str(row) for row in failures.invalid().head(MAX_OFFENDERS).to_dicts()]
        raise ContractError(
            f"{table}: {len(frame) - len(good)} of {len(frame)} rows break the contract",
            expected=", ".join(rules),
            found=", ".join(f"{rule}: {count} rows" for rule, count in rules.items()),
            offenders=offenders,
            fix=fix,
        )
    return cast(pl.DataFrame, good)


def to_utc(column: pl.Expr, zone: str | None, fold: str = "earliest") -> pl.Expr:
    """Naive civil times as UTC. An hour that occurs twice is the `fold` one; an hour that never was becomes null."""
    if not zone:
        raise ContractError(
            "times carry no time zone",
            expected="an IANA zone such as 'Europe/Berlin' for naive times",
            found="none",
            fix="state `zone` in the dataset's spec",
        )
    return (
        column.cast(pl.Datetime("us"))
        .dt.replace_time_zone(zone, ambiguous=cast(Any, fold), non_existent="null")
        .dt.convert_time_zone("UTC")
    )


@dataclass(frozen=True)
class Signal:
    """A dense signal. `values` (t, n, c) in data units, finite wherever `observed` (t, n, c) is true, else 0.

    `times` (t,) are UTC step starts in microseconds; a step is known when it ends.
    """

    times: NDArray[np.datetime64]
    entities: tuple[str, ...]
    channels: tuple[str, ...]
    values: NDArray[np.float32]
    observed: NDArray[np.bool_]

    def __post_init__(self) -> None:
        shape = (len(self.times), len(self.entities), len(self.channels))
        if self.values.shape != shape or self.observed.shape != shape:
            raise ContractError(
                "signal: shapes disagree", expected=str(shape), found=f"{self.values.shape}, {self.observed.shape}"
            )

    @property
    def step_us(self) -> int:
        return int((self.times[1] - self.times[0]).astype(np.int64)) if len(self.times) > 1 else 0

    def to_frame(self, rows: slice = slice(None)) -> pl.DataFrame:
        """One row per step: `time`, `values` and `observed` as lists over entities x channels."""
        times, values, observed = self.times[rows], self.values[rows], self.observed[rows]
        t = len(times)
        return pl.DataFrame(
            {
                "time": pl.Series(times).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
                "values": pl.Series(values.reshape(t, -1)).cast(pl.List(pl.Float32)),
                "observed": pl.Series(observed.reshape(t, -1)).cast(pl.List(pl.Boolean)),
            }
        )

    def to_table(self) -> Table:
        """The same, a few rows at a time where it is too large to hold twice."""
        if not is_large(self.values.shape):
            return self.to_frame()
        parts = partial(passes, len(self.times), self.values[0].size, self.values, self.observed)
        times = pl.Series(self.times).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        return Chunks(times, ["time", "values", "observed"], lambda: map(self.to_frame, parts()))

    @classmethod
    def from_frame(cls, frame: Table, entities: Sequence[str], channels: Sequence[str]) -> Signal:
        """The signal of a published table; a large one lies in a file."""
        shape = (len(frame), len(entities), len(channels))
        if isinstance(frame, pl.DataFrame):
            stamps = times_of(frame["time"])
            values, observed = (_cells(frame[c], shape) for c in ("values", "observed"))
        else:
            stamps, done = times_of(frame.times), 0
            values, observed = room(shape, np.float32), room(shape, np.bool_)
            for part in frame.frames():
                rows = slice(done, done + len(part))
                values[rows], observed[rows] = (
                    _cells(part[c], (len(part), *shape[1:])) for c in ("values", "observed")
                )
                done = rows.stop
                release(values, observed)
        return cls(stamps, tuple(entities), tuple(channels), values, observed)


def _cells(column: pl.Series, shape: tuple[int, int, int]) -> NDArray[Any]:
    return np.asarray(column.list.to_array(shape[1] * shape[2]).to_numpy().reshape(shape))


def times_of(column: pl.Series) -> NDArray[np.datetime64]:
    """A UTC datetime column as numpy microseconds."""
    return cast("NDArray[np.datetime64]", column.dt.replace_time_zone(None).dt.cast_time_unit("us").to_numpy())


def scatter(
    frame: pl.DataFrame,
    times: NDArray[np.datetime64],
    entities: Sequence[str],
    columns: Sequence[str],
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Long rows (entity, time, columns) into dense (t, n, c) values and mask. Rows off the clock are an error."""
    t, n = len(times), len(entities)
    step = int((times[1] - times[0]).astype(np.int64)) if t > 1 else 1
    code = pl.DataFrame({"entity": list(entities), "n": np.arange(n)})
    rows = frame.join(code, on="entity", how="inner", maintain_order="left")
    offset = times_of(rows["time"]).astype(np.int64) - times[0].astype(np.int64)
    index, off = np.divmod(offset, step)
    if off.any():
        bad = rows.filter(pl.Series(off != 0))["time"].head(MAX_OFFENDERS).to_list()
        raise ContractError("rows lie off the regular clock", offenders=bad, fix="resample before scattering")
    inside = (index >= 0) & (index < t)
    index, node = index[inside], rows["n"].to_numpy()[inside]
    values = np.zeros((t, n, len(columns)), np.float32)
    observed = np.zeros((t, n, len(columns)), np.bool_)
    for k, name in enumerate(columns):
        column = rows[name].cast(pl.Float32).fill_null(np.nan).to_numpy()[inside]
        ok = np.isfinite(column)
        values[index[ok], node[ok], k] = column[ok]
        observed[index[ok], node[ok], k] = True
    return values, observed


def entity_hash(entities: Sequence[str]) -> str:
    """Identity of the entity order that every list column relies on."""
    return hashlib.sha256("\x00".join(entities).encode()).hexdigest()[:16]
