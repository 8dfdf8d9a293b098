"""Columns that have to hold numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from stfm_pipeline.errors import ContractError


def numbers(table: str, path: Path, frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """`frame` with these columns in double precision; an error names the first cells that are no numbers."""
    odd = [cell for c in columns for cell in _odd(frame[c])]
    if odd:
        raise ContractError(
            f"{table}: {path.name} holds something else than numbers",
            expected=f"numbers, or nothing, in {', '.join(columns[:5])}{' ...' if len(columns) > 5 else ''}",
            offenders=odd,
            fix=f"mend them, or correct separator, header and column names of tables.{table}",
        )
    return frame.with_columns(pl.col(list(columns)).cast(pl.Float64))


def _odd(column: pl.Series) -> list[str]:
    if column.dtype.is_numeric() or column.dtype in (pl.Null, pl.Boolean):
        return []
    known = column.drop_nulls()
    if column.dtype == pl.String:
        known = known.filter(known.cast(pl.Float64, strict=False).is_null())
    return [f"{column.name}: {value!r}" for value in known]
