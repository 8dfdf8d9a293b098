"""What a join came to, counted on the training part: it stays as it is while rows come, as all that is fitted there."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from stfm_pipeline.datasets.spec import Join
from stfm_pipeline.side_info.join import Joined
from stfm_pipeline.side_info.partners import located
from stfm_pipeline.side_info.places import RADIUS_KM

PROVENANCE = {
    "join": pl.String,
    "column": pl.String,
    "entity": pl.String,
    "partner": pl.String,
    "distance_km": pl.Float64,
    "weight": pl.Float64,
    "share": pl.Float64,
    "lag": pl.String,
    "mean_age_steps": pl.Float64,
}


def provenance(rule: Join, found: Joined, entities: pl.DataFrame, counted: slice) -> pl.DataFrame:
    """A row per column, entity and partner that it got something from.

    `share` is the share of the steps in which the partner gave something, `weight` its mean share of those means, and
    `mean_age_steps` how long ago the steps of its values were over.
    """
    steps, partners = max(counted.stop - counted.start, 1), found.partners
    away = _distances(partners, entities)
    frames = []
    for k, column in enumerate(rule.columns):
        used = found.spread.used[k].steps.tocoo()
        order = np.lexsort((used.col, used.row))
        n, s, times = used.row[order], used.col[order], used.data[order]
        weight = np.asarray(found.spread.used[k].weight.tocsr()[n, s]).ravel()
        frames.append(
            pl.DataFrame(
                {
                    "join": rule.table,
                    "column": column,
                    "entity": entities["entity"].gather(n),
                    "partner": partners["entity"].gather(s),
                    "distance_km": pl.Series(away(n, s)).fill_nan(None),
                    "weight": weight / np.maximum(times, 1),
                    "share": times / steps,
                    "lag": rule.lag if rule.timed else None,
                    "mean_age_steps": pl.Series(found.known.age[s, k]) if rule.availability == "past" else None,
                },
                schema_overrides=PROVENANCE,
            )
        )
    return pl.concat(frames)


def _distances(stations: pl.DataFrame, entities: pl.DataFrame) -> Any:
    """Kilometres between entities and stations by index, NaN where one of them is nowhere; an own value comes 0 far."""
    if "lon" not in stations.columns:
        stations = stations.join(
            entities.select("entity", "lon", "lat"), on="entity", how="left", maintain_order="left"
        )
    points = []
    for table in (entities, stations):
        rows, where = located(table)
        points.append(np.full((len(table), 3), np.nan))
        points[-1][rows] = where
    names = [t["entity"].to_numpy() for t in (entities, stations)]

    def km(n: Any, s: Any) -> Any:
        chords = np.linalg.norm(points[0][n] - points[1][s], axis=1)
        found = 2 * RADIUS_KM * np.arcsin(np.clip(chords / 2, 0, 1))
        return np.where(names[0][n] == names[1][s], 0.0, found)

    return km


def counts(rule: Join, table: pl.DataFrame, found: Joined, until: Any, counted: slice) -> dict[str, Any]:
    """Rows of the side table that found no entity, entities that found no partner, and cells missing by reason."""
    rows = table.filter(pl.col("time") < until) if rule.timed else table
    spread, known = found.spread, found.known
    names = found.partners["entity"].filter(pl.Series(spread.serving))
    met = int(rows["entity"].is_in(names.implode()).sum())
    missing = {}
    for k, column in enumerate(rule.columns):
        seen = spread.observed[counted, :, k]
        cells = seen.size - int(seen.sum())
        alone = int((~spread.linked).sum()) * len(seen)
        some = np.flatnonzero(spread.linked & ~seen.all(axis=0))
        there = spread.links(some) @ known.unusable[counted, :, k].T.astype(np.float32)
        unusable = int(((there > 0) & ~seen[:, some].T).sum()) if len(some) else 0
        why = {"no_partner": alone, _UNUSABLE[rule.availability]: unusable}
        why[_NEVER[rule.availability]] = cells - alone - unusable
        missing[column] = {reason: count for reason, count in why.items() if count}
    return {
        "table": rule.table,
        "availability": rule.availability,
        "via": rule.via,
        "rows_used": met,
        "rows_unmatched": len(rows) - met,
        "entities_without_partner": int((~spread.linked).sum()),
        "cells_missing": missing,
        "missing_is": "masked" if rule.absent is None else f"{rule.absent:g}",
    }


_UNUSABLE = {"past": "too_old", "ahead": "known_too_late", "static": "empty"}
_NEVER = {"past": "not_yet_known", "ahead": "no_row", "static": "no_value"}
