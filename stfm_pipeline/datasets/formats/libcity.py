"""LibCity's atomic files: .dyna (observations), .geo (entities), .rel (edges)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from stfm_pipeline.datasets.formats.base import Form, Scene, open_frame, pick
from stfm_pipeline.datasets.formats.edges import once
from stfm_pipeline.datasets.formats.numbers import numbers
from stfm_pipeline.datasets.formats.series import Long
from stfm_pipeline.errors import ContractError

POINT = r"^\s*\[\s*([-+.\deE]+)\s*,\s*([-+.\deE]+)\s*\]\s*$"


class LibCity(Form):
    """An atomic file. `columns` maps channels to columns of the .dyna file (default: the same names).

    Times carry a Z; many published files mean civil time by it all the same: `offsets: ignore` reads them so.
    `weight` is the .rel file's column of weights (default: its first after the ends, or 1).
    """

    format: Literal["libcity"]
    file: str
    columns: dict[str, str] = Field(default={})
    offsets: Literal["keep", "ignore"] = "keep"
    weight: str | None = None

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> pl.DataFrame:
        path = files[self.file]
        if table == "entities":
            return self._geo(table, path)
        if table == "edges":
            return self._rel(table, path)
        rows = Long(
            format="long", file=self.file, entity="entity_id", time="time", columns=self.columns, offsets=self.offsets
        )
        return rows.read(table, files, scene)

    def _geo(self, table: str, path: Path) -> pl.DataFrame:
        frame = pick(table, path, open_frame(path, text=["geo_id"]), ["geo_id", "coordinates"])
        where = pl.col("coordinates").cast(pl.String)
        lon, lat = (where.str.extract(POINT, i).cast(pl.Float64, strict=False) for i in (1, 2))
        out = frame.select(entity="geo_id", lon=lon, lat=lat)
        if odd := frame.filter(out["lon"].is_null() | out["lat"].is_null()).select("geo_id", "coordinates").rows():
            raise ContractError(
                f"{table}: places of {path.name} are not points",
                expected="[lon, lat]",
                offenders=[f"{name}: {found}" for name, found in odd],
                fix="write a point for each of them, or bring the places as csv (`format: places`)",
            )
        return out

    def _rel(self, table: str, path: Path) -> pl.DataFrame:
        ends = ["origin_id", "destination_id"]
        frame = pick(table, path, open_frame(path, text=ends), ends)
        rest = [c for c in frame.columns if c not in (*ends, "rel_id", "type") and frame.schema[c].is_numeric()]
        column = self.weight or (rest[0] if rest else None)
        weights = [column] if column else []
        frame = numbers(table, path, pick(table, path, frame, weights), weights)
        listed = frame.select(
            source="origin_id", target="destination_id", weight=pl.col(column) if column else pl.lit(1.0)
        )
        edges = listed.filter((pl.col("source") != pl.col("target")) & (pl.col("weight") > 0))
        return once(f"{table}: {path.name}", edges)
