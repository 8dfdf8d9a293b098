"""Tables that are canonical already, in a file or in the spec itself."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field, field_validator

from stfm_pipeline.datasets.formats.base import Form, Scene, dated, open_frame, pick
from stfm_pipeline.datasets.formats.numbers import numbers

TEXT = ("entity", "source", "target", "zone", "country", "text")
TIMES = ("time", "known_at")
KEYS = {"observations": ("entity", "time"), "entities": ("entity",), "edges": ("source", "target", "weight")}


class Canonical(Form):
    """A canonical table (see `stfm_pipeline.tables`) as parquet or csv, as `stfm datasets export` writes it."""

    format: Literal["canonical"]
    file: str

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame:
        path = files[self.file]
        return _canonical(table, path, open_frame(path, text=TEXT), scene)


class Inline(Form):
    """A few rows written out in the spec, such as the places of four turbines."""

    format: Literal["inline"]
    rows: tuple[dict[str, str | float | datetime | None], ...] = Field(min_length=1)

    @field_validator("rows", mode="before")
    @classmethod
    def _names_are_text(cls, rows: Any) -> Any:
        """A whole number is one way to write it; a float, a truth value or a date is not what was written."""
        if not isinstance(rows, list | tuple) or not all(isinstance(row, dict) for row in rows):
            return rows
        for key, value in (cell for row in rows for cell in row.items() if cell[0] in TEXT):
            if not isinstance(value, str | int | None) or isinstance(value, bool):
                raise ValueError(f"{key} {value} is no text: quote it")
        return tuple({k: str(v) if k in TEXT and v is not None else v for k, v in row.items()} for row in rows)

    def names(self) -> tuple[str, ...]:
        return ()

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame:
        columns = dict.fromkeys(k for row in self.rows for k in row)
        frame = pl.DataFrame([_column(c, [row.get(c) for row in self.rows]) for c in columns])
        here = Path("the list of rows")
        # What a side table says of its own may be text.
        mine = table in KEYS
        figures = [c for c in columns if c not in (*TEXT, *TIMES) and (mine or frame.schema[c] != pl.String)]
        return _canonical(table, here, numbers(table, here, frame, figures), scene)


def _column(name: str, cells: list[Any]) -> pl.Series:
    """Cells as they are where all are numbers, else as text: what is to become of it is decided by the column."""
    if name not in (*TEXT, *TIMES) and not any(isinstance(cell, str | datetime) for cell in cells):
        return pl.Series(name, cells, pl.Float64)
    plain = [cell.isoformat(timespec="microseconds") if isinstance(cell, datetime) else cell for cell in cells]
    return pl.Series(name, [None if cell is None else str(cell) for cell in plain], pl.String)


def _canonical(table: str, path: Path, frame: pl.DataFrame, scene: Scene) -> pl.DataFrame:
    """With numbers in double precision and UTC times; naive ones are civil in the dataset's zone."""
    # Observations that are dense hold lists over entities instead of naming them.
    # What a side table needs is known to the join that reads it.
    keys = ("time",) if pl.List in frame.dtypes else KEYS.get(table, ())
    frame = pick(table, path, frame, keys)
    names = [c for c in TEXT if c in frame.columns and frame.schema[c] != pl.String]
    frame = frame.with_columns(pl.col(names).cast(pl.String), pl.selectors.integer().exclude(names).cast(pl.Float64))
    times = [c for c in TIMES if c in frame.columns]
    return frame.with_columns(dated(table, path, frame[c], scene.zone, None, "keep").alias(c) for c in times)
