"""The file formats that a dataset's tables can be read from, as data: a `tables` section names one per raw table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import Field

from stfm_pipeline import large
from stfm_pipeline.datasets.formats.apart import read_apart
from stfm_pipeline.datasets.formats.base import Form, Scene
from stfm_pipeline.datasets.formats.canonical import Canonical, Inline
from stfm_pipeline.datasets.formats.city import StResNet, UniST
from stfm_pipeline.datasets.formats.edges import Distances, EdgeList, Matrix
from stfm_pipeline.datasets.formats.gridded import Gridded
from stfm_pipeline.datasets.formats.libcity import LibCity
from stfm_pipeline.datasets.formats.places import Places
from stfm_pipeline.datasets.formats.series import Long, Nixtla, Tensor, Wide
from stfm_pipeline.errors import ContractError, SourceError, StfmError
from stfm_pipeline.tables import is_dense

Plain = Annotated[
    Wide
    | Tensor
    | Long
    | Nixtla
    | Gridded
    | StResNet
    | UniST
    | LibCity
    | Places
    | Matrix
    | Distances
    | EdgeList
    | Canonical
    | Inline,
    Field(discriminator="format"),
]


class FirstOf(Form):
    """The first of several ways whose files are there, for what goes around in more than one form."""

    format: Literal["first_of"]
    options: tuple[Plain, ...] = Field(min_length=1)

    def names(self) -> tuple[str, ...]:
        return tuple(n for option in self.options for n in option.names())

    def ready(self, files: dict[str, Path]) -> bool:
        return any(option.ready(files) for option in self.options)

    def fragile(self, files: dict[str, Path]) -> bool:
        return next(o for o in self.options if o.ready(files)).fragile(files)

    def read(self, table: str, files: dict[str, Path], scene: Scene) -> large.Table:
        return next(o for o in self.options if o.ready(files)).read(table, files, scene)


Table = Annotated[
    Wide
    | Tensor
    | Long
    | Nixtla
    | Gridded
    | StResNet
    | UniST
    | LibCity
    | Places
    | Matrix
    | Distances
    | EdgeList
    | Canonical
    | Inline
    | FirstOf,
    Field(discriminator="format"),
]


# Delta Lake has no such columns, or gives them back as others.
UNKEPT = (pl.Time, pl.Duration, pl.Float16, pl.Int128, pl.UInt128, pl.Enum, pl.Array, pl.Map, pl.Object)


def read_tables(tables: dict[str, Table], files: dict[str, Path], scene: Scene) -> dict[str, large.Table]:
    """Raw tables by name. Edges come last: the order of entities is what matrices without names go by.

    A table all of whose files are optional and absent is left out.
    """
    out: dict[str, large.Table] = {}
    for name in sorted(tables, key=lambda t: (t != "entities", t != "observations")):
        table = tables[name]
        if not table.ready(files):
            continue
        out[name] = _read(name, table, files, scene)
        if name == "entities":
            scene.listed.extend(_names(large.whole(out[name])))
        if name == "observations":
            scene.rows = bool(scene.columns) or not scene.entities
            if not scene.entities and "entity" in out[name].columns:
                scene.entities.extend(
                    large.whole(out[name])["entity"].unique(maintain_order=True).drop_nulls().cast(pl.String)
                )
    if "entities" not in out and scene.cells is not None:
        out["entities"] = scene.cells
    elif "entities" not in out:
        out["entities"] = pl.DataFrame({"entity": scene.entities}, schema={"entity": pl.String})
    elif "observations" in out and is_dense(out["observations"]):
        out["entities"] = _in_order(large.whole(out["entities"]), scene.columns or scene.entities)
    return out


def _read(name: str, table: Table, files: dict[str, Path], scene: Scene) -> large.Table:
    return (read_apart if table.fragile(files) else read_here)(name, table, files, scene)


def read_here(name: str, table: Table, files: dict[str, Path], scene: Scene) -> large.Table:
    """A table; whatever a file may hold that no reader foresaw is an error that names the file."""
    try:
        frame = table.read(name, files, scene)
    except (StfmError, MemoryError):
        raise
    except (Exception, pl.exceptions.PanicException) as error:
        raise SourceError(
            f"{name}: {', '.join(table.names())} cannot be read as `format: {table.format}`",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix=f"compare the file with what docs/your-own-data.md says of `{table.format}`",
        ) from error
    if isinstance(frame, large.Chunks):
        return frame
    if odd := [f"{c}: {kind}" for c, kind in frame.schema.items() if _unkept(kind)]:
        raise ContractError(
            f"{name}: {', '.join(table.names())} hold columns of types that no table here keeps",
            expected="numbers, text, truth values, times, or lists of them",
            offenders=odd,
            fix="leave them out, or write them as one of these",
        )
    return frame


def _unkept(kind: pl.DataType) -> bool:
    inner = [kind.inner] if isinstance(kind, pl.List) else [f.dtype for f in getattr(kind, "fields", ())]
    return kind in UNKEPT or any(_unkept(k) for k in inner if isinstance(k, pl.DataType))


def _names(entities: pl.DataFrame) -> pl.Series:
    if "entity" not in entities.columns:
        raise ContractError(
            "entities: nothing says who they are",
            expected="a column `entity`",
            found=", ".join(entities.columns),
            fix="name it, or correct the column names of tables.entities",
        )
    return entities["entity"].drop_nulls().cast(pl.String)


def _in_order(entities: pl.DataFrame, order: list[str]) -> pl.DataFrame:
    """Entities with those that dense observations are about first, in their order."""
    named = set(entities["entity"])
    if strangers := [e for e in order if e not in named]:
        raise ContractError(
            "observations name entities that the entities table lacks", offenders=strangers, fix="add their rows"
        )
    place = {e: i for i, e in enumerate(order)}
    rank = pl.col("entity").replace_strict(place, default=len(order), return_dtype=pl.Int64)
    return entities.sort(rank, maintain_order=True)
