"""Tables that are canonical already, in a file or in the spec itself."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl

from stfm_pipeline.datasets.formats.base import Form, Scene, dated, open_frame

TEXT = ("entity", "source", "target", "zone", "text")


class Canonical(Form):
    """A canonical table (see `stfm_pipeline.tables`) as parquet or csv, as `stfm datasets export` writes it."""

    format: Literal["canonical"]
    file: str

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame:
        path = files[self.file]
        frame = open_frame(path, text=TEXT)
        frame = frame.with_columns(pl.selectors.integer().cast(pl.Float64))
        if "time" in frame.columns:
            frame = frame.with_columns(dated(table, path, frame["time"], scene.zone, None, "keep").alias("time"))
        return frame


class Inline(Form):
    """A few rows written out in the spec, such as the places of four turbines."""

    format: Literal["inline"]
    rows: tuple[dict[str, str | float | datetime | None], ...]

    def names(self) -> tuple[str, ...]:
        return ()

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame:
        columns = dict.fromkeys(k for row in self.rows for k in row)
        cells: dict[str, list[Any]] = {
            c: [str(r[c]) if c in TEXT and r.get(c) is not None else r.get(c) for r in self.rows] for c in columns
        }
        frame = pl.DataFrame(cells)
        return frame.with_columns(pl.selectors.integer().cast(pl.Float64))
