"""What never changes: attributes of entities, and the points of interest around them, as columns of one table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from stfm_pipeline.datasets.spec import Join, PointsNear
from stfm_pipeline.errors import ContractError
from stfm_pipeline.side_info import places
from stfm_pipeline.side_info.join import Joined, Scene, join_side_table, require_values
from stfm_pipeline.side_info.known import checked
from stfm_pipeline.side_info.partners import located

# More are names, not categories.
MOST = 64
# Numbers name airports and pubs alike: a point is the entity itself where it lies there as well, roundings aside.
OWN_KM = 1.0


def attributes(table: pl.DataFrame, rule: Join, stations: pl.DataFrame, scene: Scene) -> tuple[Joined, pl.DataFrame]:
    """Static columns of the entities: numbers as they are, text as codes of its vocabulary, in the order of letters.

    With them the vocabulary (`column`, `code`, `category`). Text goes from one station to an entity, never as a mean.
    """
    checked(table, rule, "numbers or text")
    text = [c for c in rule.columns if table.schema[c] in (pl.String, pl.Boolean)]
    if text and (rule.via == "edges" or rule.nearest > 1):
        raise ContractError(
            f"side table '{rule.table}': there is no mean of categories",
            offenders=text,
            fix="join them `via: entity`, or `via: place` from the nearest one",
        )
    words = []
    for column in text:
        said = table[column].cast(pl.String).drop_nulls().unique().sort()
        if len(said) > MOST:
            raise ContractError(
                f"side table '{rule.table}': '{column}' has too many categories",
                expected=f"at most {MOST}",
                found=f"{len(said)}: {', '.join(said.head(3))} ...",
                fix="leave the column out, put rare categories together, or say it in the entities' `text`",
            )
        words.append(
            pl.DataFrame(
                {"column": column, "code": pl.Series(range(len(said)), dtype=pl.Int32), "category": said},
                schema_overrides={"column": pl.String},
            )
        )
        table = table.with_columns(
            pl.col(column).cast(pl.String).replace_strict(dict(zip(said, range(len(said)), strict=True)), default=None)
        )
    found = join_side_table(table, rule, scene, stations, slice(0, 1))
    require_values(table, rule, found.observed, replace(scene, times=scene.times[:0]))
    return found, pl.concat([NO_WORDS, *words])


NO_WORDS = pl.DataFrame(schema={"column": pl.String, "code": pl.Int32, "category": pl.String})


def points_near(table: pl.DataFrame, rule: PointsNear, entities: pl.DataFrame) -> pl.DataFrame:
    """Distances to and counts of points around each entity, by category; null where an entity is nowhere."""
    wanted = ["lon", "lat", *([rule.category] if rule.category else [])]
    if missing := [c for c in wanted if c not in table.columns]:
        raise ContractError(f"points '{rule.table}' lack columns", found=", ".join(table.columns), offenders=missing)
    kind = pl.col(rule.category).cast(pl.String) if rule.category else pl.lit(rule.table)
    who = pl.col("entity").cast(pl.String) if "entity" in table.columns else pl.lit(None, pl.String)
    points = table.select("lon", "lat", kind=kind, entity=who).drop_nulls("kind")
    points = points.filter(pl.col("lon").is_finite() & pl.col("lat").is_finite())
    kinds = sorted(rule.only) or points["kind"].unique().sort().to_list()
    if strangers := [k for k in kinds if k not in set(points["kind"])]:
        raise ContractError(
            f"points '{rule.table}' have none of a category",
            found=", ".join(points["kind"].unique().sort().head(8)) or "no point that has coordinates",
            offenders=strangers,
        )
    if not kinds or len(kinds) > MOST:
        raise ContractError(
            f"points '{rule.table}': {'too many categories' if kinds else 'no point has coordinates'}",
            expected=f"1 to {MOST}",
            found=str(len(kinds)),
            fix="name those that matter in `only`",
        )
    rows, here = located(entities)
    names = entities["entity"].gather(rows)
    out: dict[str, Any] = {}
    for k in kinds:
        some = points.filter(kind=k)
        there, owner = places.on_sphere(some["lon"], some["lat"]), some["entity"]
        i, j, away = _own(names, owner, here, there)
        # One more than the entity's own points, so that one of them is another.
        index, km = places.nearest(here, there, 1 + int(np.bincount(i).max(initial=0)))
        mine = np.isin(np.arange(len(here))[:, None] * len(there) + index, i * len(there) + j)
        out[f"{k}_nearest_m"] = _column(np.where(mine, np.inf, km).min(axis=1) * 1000, rows, len(entities))
        for radius in rule.radii_km:
            count = places.count_within(here, there, radius) - np.bincount(i[away <= radius], minlength=len(here))
            out[f"{k}_within_{radius:g}km"] = _column(count.astype(np.float64), rows, len(entities))
    return pl.DataFrame(out)


def _own(names: pl.Series, owner: pl.Series, here: places.Array, there: places.Array) -> tuple[Any, Any, Any]:
    """Entity, point and km of the points that are the entity itself."""
    entities = pl.DataFrame({"name": names}).with_row_index("i")
    pairs = entities.join(pl.DataFrame({"name": owner}).with_row_index("j"), on="name")
    i, j = (pairs[k].to_numpy().astype(np.int64) for k in "ij")
    km = places.km_of(np.linalg.norm(here[i] - there[j], axis=1))
    near = km <= OWN_KM
    return i[near], j[near], km[near]


def _column(values: Any, rows: Any, n: int) -> pl.Series:
    whole = np.full(n, np.nan)
    whole[rows] = np.where(np.isfinite(values), values, np.nan)
    return pl.Series(whole).fill_nan(None)


def scaler(static: pl.DataFrame, codes: list[str]) -> pl.DataFrame:
    """Mean and standard deviation over the entities that have a value, per column of numbers; a constant has 1."""
    columns = [c for c in static.columns if c not in ("entity", *codes)]
    rows = []
    for column in columns:
        values = static[column].drop_nulls().to_numpy().astype(np.float64)
        std = float(values.std()) if len(values) else 1.0
        mean = float(values.mean()) if len(values) else 0.0
        rows.append((column, mean, std if std > 1e-8 else 1.0, len(values)))
    schema = {"column": pl.String, "mean": pl.Float64, "std": pl.Float64, "count": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")
