"""Entities: where they are and what is known about them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl

from stfm_pipeline.datasets.formats.base import Form, Scene, open_frame, pick
from stfm_pipeline.datasets.formats.numbers import numbers


class Places(Form):
    """A row per entity. Columns are named as in the file; `text` is a column or a sentence with {column} in it.

    Without a header, columns are called column_0, column_1 and so on.
    """

    format: Literal["places"]
    file: str
    entity: str = "entity"
    lon: str | None = "lon"
    lat: str | None = "lat"
    zone: str | None = None
    text: str | None = None
    separator: str | None = None
    header: bool = True

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame:
        path = files[self.file]
        frame = open_frame(path, self.separator, self.header, text=[self.entity])
        named = {"entity": self.entity, "lon": self.lon, "lat": self.lat, "zone": self.zone}
        pick(table, path, frame, [c for c in named.values() if c is not None])
        where = numbers(table, path, frame, [c for c in (self.lon, self.lat) if c is not None])
        out = where.select(
            **{k: pl.col(c).cast(pl.Float64 if k in ("lon", "lat") else pl.String) for k, c in named.items() if c}
        )
        if self.text is None:
            return out
        if self.text in frame.columns:
            return out.with_columns(text=frame[self.text].cast(pl.String))
        pieces = self.text.replace("}", "{").split("{")
        pick(table, path, frame, pieces[1::2])
        words = [frame[p].cast(pl.String).fill_null("unknown") if i % 2 else p for i, p in enumerate(pieces)]
        return out.with_columns(text=pl.concat_str([pl.lit(w) for w in words]))
