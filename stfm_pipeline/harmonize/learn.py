"""The small tables of a harmonized stage that are learned from its training part, and from nothing else."""

from __future__ import annotations

import polars as pl

from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.harmonize import adjacency, climatology, decompose, scaler
from stfm_pipeline.tables import Signal


def learn(
    spec: DatasetSpec, signal: Signal, train: slice, entities: pl.DataFrame, given: pl.DataFrame | None
) -> dict[str, pl.DataFrame]:
    """Scaler, edges, climatology and season; `given` are the source's edges, as far as training knows them."""
    rule = spec.harmonize
    scales = scaler.fit(signal, train, rule.scale_per, rule.scale)
    tables = {"scaler": scales, "edges": adjacency.edges(rule.adjacency, entities, signal, train, given)}
    if rule.climatology:
        tables["climatology"] = climatology.fit(signal, train, scales, entities["zone"], rule.climatology)
    if rule.decompose and rule.decompose.period:
        tables["profile"], tables["strength"] = decompose.fit(signal, train, rule.decompose.period)
    return tables


def until(signal: Signal, stop: int) -> Signal:
    """The first `stop` steps of a signal."""
    return Signal(signal.times[:stop], signal.entities, signal.channels, signal.values[:stop], signal.observed[:stop])
