"""What a side table says of its own stations at every step: as of a time for what is measured, or as planned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import Join
from stfm_pipeline.errors import ContractError
from stfm_pipeline.tables import UTC, scatter, step_us, stretches, times_of

Values = NDArray[np.float32]
Mask = NDArray[np.bool_]
Times = NDArray[np.datetime64]
KNOWN_AT = "known_at"
# Steps before its own from which a planned value is known; this many is always.
ALWAYS = np.iinfo(np.int16).max


@dataclass(frozen=True)
class Known:
    """Side values (t, s, k) of stations with their mask.

    `unusable` marks cells for which there is a row that is too old, or that was planned too late. `lead` is from how
    many steps before its own a planned value is known, None where always. `age` holds, per station and column (s, k),
    the mean steps since a value's own step was over, in the steps asked for.
    """

    values: Values
    observed: Mask
    unusable: Mask
    lead: NDArray[np.int16] | None
    age: NDArray[np.float64]


def checked(table: pl.DataFrame, rule: Join, of: str = "numbers") -> pl.DataFrame:
    """A side table with its keys, UTC times and columns of numbers (or also text), or a `ContractError`."""
    where = ["lon", "lat"] if rule.via == "place" and rule.places is None else []
    keys = ["entity", *(["time"] if rule.timed else []), *where]
    if missing := [c for c in (*keys, *rule.columns) if c not in table.columns]:
        raise ContractError(
            f"side table '{rule.table}' lacks columns", found=", ".join(table.columns), offenders=missing
        )
    moments = [c for c in ("time", KNOWN_AT) if rule.timed and c in table.columns]
    for column in moments:
        if getattr(table.schema[column], "time_zone", None) is None:
            raise ContractError(
                f"side table '{rule.table}': times carry no time zone",
                found=f"{column}: {table.schema[column]}",
                fix="state the zone: `to_utc(pl.col('time'), zone=...)`",
            )
    kinds = {c: table.schema[c] for c in rule.columns}
    good = (pl.Null, pl.Boolean) if of == "numbers" else (pl.Null, pl.Boolean, pl.String)
    if text := [c for c, kind in kinds.items() if not kind.is_numeric() and kind not in good]:
        raise ContractError(
            f"side table '{rule.table}': joined columns hold something else than {of}",
            offenders=[f"{c}: {table[c].drop_nulls().head(1).to_list()}" for c in text],
            fix="mend them, or leave them out of the join",
        )
    return table.with_columns(pl.col("entity").cast(pl.String), *(pl.col(c).cast(UTC) for c in moments))


def known_us(table: pl.DataFrame, rule: Join, step: int) -> NDArray[np.int64]:
    """When each row of a measured table was known, in microseconds; never before its own time has passed."""
    stamp = pl.col("time").dt.epoch("us")
    known = stamp + step + step_us(rule.lag, zero=True)
    if KNOWN_AT in table.columns:
        told = pl.col(KNOWN_AT).dt.epoch("us")
        known = pl.when(told.is_null()).then(known).otherwise(pl.max_horizontal(told, stamp + 1))
    return np.asarray(table.select(known=known)["known"].to_numpy(), np.int64)


def as_of(table: pl.DataFrame, rule: Join, times: Times, stations: list[str], step: int, counted: slice) -> Known:
    """The newest row known when a step ends, at most `tolerance` old; each column looks back on its own.

    A row's age counts from when it was known, or, where `known_at` says that, from the end of its own step.
    """
    code = pl.DataFrame({"entity": stations, "_s": np.arange(len(stations), dtype=np.int64)})
    rows = table.join(code, on="entity", how="inner", maintain_order="left")
    stamp, known = times_of(rows["time"]).astype(np.int64), known_us(rows, rule, step)
    told = rows[KNOWN_AT].is_not_null().to_numpy() if KNOWN_AT in rows.columns else np.zeros(len(rows), np.bool_)
    order = np.lexsort((known, stamp))
    rows, stamp, known, told = rows[order], stamp[order], known[order], told[order]
    since = np.where(told, stamp + step, known)
    ends = times.astype(np.int64) + step
    first, station = np.searchsorted(ends, known), rows["_s"].to_numpy()
    shape = (len(times), len(stations), len(rule.columns))
    values, observed, unusable = np.zeros(shape, np.float32), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    age = np.zeros(shape[1:])
    if rows.is_empty():
        return Known(values, observed, unusable, None, age)
    tolerance = step_us(rule.tolerance or "0h", zero=True)
    newest = np.empty(shape[:2], np.int32)
    for k, column in enumerate(rule.columns):
        found = rows[column].cast(pl.Float32).fill_null(np.nan).to_numpy()
        usable = np.flatnonzero(np.isfinite(found) & (first < len(times)))
        newest[:] = -1
        # In the order of time, so that of several rows known in one step the newest is written last.
        newest[first[usable], station[usable]] = usable
        np.maximum.accumulate(newest, axis=0, out=newest)
        for part in stretches(*shape[:2]):
            row = newest[part]
            old = ends[part, None] - since[row]
            there = row >= 0
            fresh = there & (old <= tolerance)
            values[part, :, k] = np.where(fresh, found[row], 0)
            observed[part, :, k] = fresh
            unusable[part, :, k] = there & ~fresh
            within = slice(
                max(part.start, counted.start) - part.start, max(min(part.stop, counted.stop) - part.start, 0)
            )
            own = ends[part, None] - (stamp[row] + step)
            age[:, k] += np.where(fresh, own, 0)[within].sum(axis=0, dtype=np.int64) / step
        age[:, k] /= np.maximum(observed[counted, :, k].sum(axis=0), 1)
    return Known(values, observed, unusable, None, age)


def planned(table: pl.DataFrame, rule: Join, times: Times, stations: list[str], step: int, horizon: int) -> Known:
    """What is planned for each step; with `known_at`, the row that windows of `horizon` steps can use best.

    Of several rows for one step that is the last one known when the first window asks for it, else the first one known
    later; a row that comes after its step has begun is of no use to any window.
    """
    shape = (len(times), len(stations), len(rule.columns))
    age = np.zeros(shape[1:])
    if KNOWN_AT not in table.columns:
        values, observed = scatter(table, times, stations, rule.columns)
        return Known(values, observed, np.zeros(shape, np.bool_), None, age)
    stamp, told = pl.col("time").dt.epoch("us"), pl.col(KNOWN_AT).dt.epoch("us")
    lead = pl.when(told.is_null()).then(ALWAYS).otherwise((stamp - told).floordiv(step).clip(-1, ALWAYS))
    in_time = told.is_null() | (told <= stamp - (horizon - 1) * step)
    # The one to be used comes last within its step, as it is the last that is written there.
    order = pl.when(in_time).then(told).otherwise(-told)
    rows = table.with_columns(_lead=lead, _good=in_time, _order=order)
    rows = rows.sort("_good", "_order", nulls_last=False, maintain_order=True)
    usable = rows.filter(pl.col("_lead") >= 0)
    values, observed = scatter(usable, times, stations, rule.columns)
    leads = [pl.when(pl.col(c).cast(pl.Float32).is_finite()).then("_lead").alias(c) for c in rule.columns]
    first, _ = scatter(usable.with_columns(leads), times, stations, rule.columns)
    late = scatter(rows.filter(pl.col("_lead") < 0), times, stations, rule.columns)[1] & ~observed
    return Known(values, observed, late, np.where(observed, first, ALWAYS).astype(np.int16), age)


def never_changing(table: pl.DataFrame, rule: Join, stations: list[str]) -> Known:
    """One row per station, as a single step."""
    double = table.filter(pl.col("entity").is_duplicated())["entity"].unique(maintain_order=True)
    if len(double):
        raise ContractError(
            f"side table '{rule.table}': several rows of one entity",
            expected="one row each: what is joined as `static` never changes",
            offenders=double.head(5).to_list(),
            fix="leave the one that holds, or give the rows a time and join them as `past`",
        )
    clock = np.zeros(1, "datetime64[us]")
    rows = table.with_columns(time=pl.lit(clock[0]).cast(UTC))
    values, observed = scatter(rows, clock, stations, rule.columns)
    return Known(values, observed, np.zeros(observed.shape, np.bool_), None, np.zeros(observed.shape[1:]))


def stations_of(rule: Join, tables: Callable[[str, list[str]], pl.DataFrame]) -> pl.DataFrame:
    """All stations a join names, sorted, with `lon` and `lat` where it goes by place; a place stands still.

    `tables` gives, for a table and its columns, the rows that differ.
    """
    if rule.via != "place":
        found = tables(rule.table, ["entity"])
        return found.drop_nulls().select(pl.col("entity").cast(pl.String)).sort("entity")
    source = rule.places or rule.table
    try:
        found = tables(source, ["entity", "lon", "lat"]).drop_nulls("entity")
    except pl.exceptions.ColumnNotFoundError as error:
        raise ContractError(
            f"side table '{source}' lacks columns",
            expected="entity, lon, lat",
            found=str(error).splitlines()[0],
            fix="add where the stations are, or name the table that says it: `places`",
        ) from error
    known = found.filter(pl.col("lon").is_finite() & pl.col("lat").is_finite())
    double = known.filter(pl.col("entity").is_duplicated())["entity"].unique().sort()
    if len(double):
        raise ContractError(
            f"side table '{source}': a station is at several places",
            expected="one lon and lat per station",
            offenders=double.head(5).to_list(),
            fix="where it moved, give it another name from then on",
        )
    off = known.filter((pl.col("lat").abs() > 90) | (pl.col("lon").abs() > 360))
    if len(off):
        raise ContractError(
            f"side table '{source}': no place on earth",
            expected="degrees: lon, lat",
            offenders=[str(r) for r in off.head(5).rows()],
            fix="check that lon and lat are not exchanged, and that they are degrees",
        )
    nowhere = found.select("entity").unique().join(known, on="entity", how="left")
    return nowhere.select(pl.col("entity").cast(pl.String), "lon", "lat").sort("entity")
