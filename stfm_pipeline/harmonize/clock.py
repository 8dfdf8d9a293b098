"""A regular clock: rows floored to steps, duplicates resolved by a stated rule."""

from __future__ import annotations

from typing import cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import Harmonize
from stfm_pipeline.errors import ContractError
from stfm_pipeline.tables import dense_values, step_us


def to_steps(rows: pl.DataFrame, channels: tuple[str, ...], rule: Harmonize) -> tuple[pl.DataFrame, dict[str, int]]:
    """Sorted rows with unique (entity, step start); counts of what had to be done for it."""
    step_us(rule.step)
    finite = [pl.when(pl.col(c).is_finite()).then(c).alias(c) for c in channels]
    ordered = rows.sort("entity", "time", maintain_order=True).with_columns(finite)
    backwards = rows.select((pl.col("time").diff().over("entity").dt.total_microseconds() < 0).sum()).item()
    report = {"rows": len(rows), "rows_out_of_order": int(backwards)}
    floored = ordered.with_columns(pl.col("time").dt.truncate(rule.step))
    report["rows_off_the_clock"] = int((floored["time"] != ordered["time"]).sum())
    double = floored.select("entity", "time").is_duplicated()
    report["rows_in_a_shared_step"] = int(double.sum())
    if report["rows_in_a_shared_step"]:
        if rule.duplicates == "error":
            bad = floored.filter(double).select("entity", "time").unique(maintain_order=True)
            raise ContractError(
                f"{report['rows_in_a_shared_step']} rows share an entity and a step of {rule.step}",
                expected="one row per entity and step",
                offenders=[f"{r['entity']} at {r['time']:%Y-%m-%d %H:%M:%S}" for r in bad.to_dicts()],
                fix="remove them, or set harmonize.duplicates to 'first', 'last' or 'mean'",
            )
        pick = {"first": pl.col(channels).first(), "last": pl.col(channels).last(), "mean": pl.col(channels).mean()}
        floored = floored.group_by("entity", "time", maintain_order=True).agg(pick[rule.duplicates])
    return floored, report


def to_dense_steps(
    rows: pl.DataFrame, channels: tuple[str, ...], rule: Harmonize
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Dense rows with unique step starts, in order; counts of cells as `to_steps` counts rows."""
    step_us(rule.step)
    width = int(rows[channels[0]].list.len()[0]) if len(rows) else 0
    backwards = int((rows["time"].diff().dt.total_microseconds() < 0).sum())
    report = {"rows": len(rows) * width, "rows_out_of_order": backwards * width}
    ordered = rows.sort("time", maintain_order=True) if backwards else rows
    floored = ordered.with_columns(pl.col("time").dt.truncate(rule.step))
    report["rows_off_the_clock"] = int((floored["time"] != ordered["time"]).sum()) * width
    double = floored["time"].is_duplicated()
    report["rows_in_a_shared_step"] = int(double.sum()) * width
    if report["rows_in_a_shared_step"]:
        bad = floored["time"].filter(double).unique(maintain_order=True)
        if rule.duplicates == "error":
            raise ContractError(
                f"{report['rows_in_a_shared_step']} rows share an entity and a step of {rule.step}",
                expected="one row per entity and step",
                offenders=[f"every entity at {t:%Y-%m-%d %H:%M:%S}" for t in bad],
                fix="remove them, or set harmonize.duplicates to 'first', 'last' or 'mean'",
            )
        floored = _merged(floored, channels, rule)
    return floored, report


def _merged(rows: pl.DataFrame, channels: tuple[str, ...], rule: Harmonize) -> pl.DataFrame:
    """Rows of one step made one, by the stated rule."""
    out: dict[str, pl.Series] = {}
    starts = rows["time"].rle_id().to_numpy()
    first = np.flatnonzero(np.diff(starts, prepend=-1))
    for channel in channels:
        block = dense_values(rows, channel).astype(np.float64)
        if rule.duplicates == "mean":
            known = np.isfinite(block)
            total = np.add.reduceat(np.where(known, block, 0), first, axis=0)
            count = np.add.reduceat(known, first, axis=0, dtype=np.int64)
            with np.errstate(invalid="ignore"):
                merged = total / count
        else:
            # As for long rows: the first or last row speaks, observed or not.
            merged = block[first if rule.duplicates == "first" else np.append(first[1:], len(block)) - 1]
        out[channel] = pl.Series(merged).cast(pl.List(pl.Float64))
    return pl.DataFrame({"time": rows["time"].gather(first), **out})


def clock_of(rows: pl.DataFrame, rule: Harmonize) -> NDArray[np.datetime64]:
    """Step starts (t,) in UTC microseconds from the rule's start or the first row to its end or the last row."""
    step = step_us(rule.step)
    first, last = rows["time"].min(), rows["time"].max()
    if first is None or last is None:
        raise ContractError("no observations", expected="at least one row", found="an empty table")
    if naive := [str(edge) for edge in (rule.start, rule.end) if edge is not None and edge.tzinfo is None]:
        raise ContractError(
            "the clock's start or end carries no time zone", offenders=naive, fix="write it as 2024-01-01T00:00:00Z"
        )
    start, end = pl.Series([rule.start or first, rule.end or last]).cast(pl.Int64).to_list()
    if rule.end is None:
        end += step
    return cast("NDArray[np.datetime64]", np.arange(start, end, step, dtype=np.int64).astype("datetime64[us]"))
