"""The enriched stage of a signal: what else was known, past and ahead, beside the values."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import DatasetSpec, Join
from stfm_pipeline.embed.spatial import adjacency_of
from stfm_pipeline.harmonize import scaler
from stfm_pipeline.harmonize.split import parts_of
from stfm_pipeline.side_info.join import join_side_table, require_values
from stfm_pipeline.stage import Result
from stfm_pipeline.tables import Check, Signal


def enrich(spec: DatasetSpec, raw: dict[str, pl.DataFrame], tables: dict[str, pl.DataFrame]) -> Result:
    """Dense side signals `past` and `ahead` with scalers fitted on train, and a text per entity."""
    entities = tables["entities"]
    names = entities["entity"].to_list()
    out: dict[str, pl.DataFrame] = {}
    shares: dict[str, float] = {}
    dense: dict[str, list[str]] = {"signal": list(spec.channel_names)}
    leaks: dict[str, str] = {}
    if spec.joins:
        signal = Signal.from_frame(tables["signal"], names, spec.channel_names)
        parts = parts_of(tables["split"], signal.times)
        adjacency = adjacency_of(tables["edges"], names)
        for side in ("past", "ahead"):
            joins = [j for j in spec.joins if j.availability == side]
            if not joins:
                continue
            found = [join_side_table(raw[j.table], j, signal.times, names, adjacency, signal.step_us) for j in joins]
            for join, (_, observed) in zip(joins, found, strict=True):
                require_values(raw[join.table], join, observed, signal.times, names)
            columns = [c for j in joins for c in j.columns]
            block = Signal(
                signal.times,
                tuple(names),
                tuple(columns),
                np.concatenate([v for v, _ in found], axis=2),
                np.concatenate([o for _, o in found], axis=2),
            )
            out[side] = block.to_frame()
            out[f"{side}_scaler"] = scaler.fit(block, parts["train"], "entity")
            dense[side] = columns
            shares |= {c: float(block.observed[..., k].mean()) for k, c in enumerate(columns)}
            for join, (values, observed) in zip(joins, found, strict=True):
                if side == "past" and not past_half_holds(
                    join, raw[join.table], signal.times, names, adjacency, signal.step_us, None, values, observed
                ):
                    leaks[join.table] = "rows after a step change what the step shows"
    texts = entities.select("entity", text=pl.col("text").fill_null(pl.format("Entity {}.", "entity")))
    facts: dict[str, Any] = {
        "dense": dense,
        "observed_share": shares,
        "sources": {j.table: f"{j.availability}, via {j.via}, lag {j.lag}" for j in spec.joins},
        "texts": len(texts),
    }
    checks = [
        Check(
            "side_information_never_from_the_future",
            not leaks,
            "measured side tables give the same past half when only the rows known by then are joined",
            leaks,
        ),
        Check("every_entity_has_a_text", texts["text"].null_count() == 0, "a sentence per entity", {}),
    ]
    return Result({**out, "text": texts}, facts, checks)


def past_half_holds(
    rule: Join,
    table: pl.DataFrame,
    times: NDArray[np.datetime64],
    names: list[str],
    adjacency: Any,
    step: int,
    stations: list[str] | None,
    values: NDArray[np.float32],
    observed: NDArray[np.bool_],
) -> bool:
    """Whether the first half comes out the same when only what was known by its end is joined."""
    half = len(times) // 2
    if not half:
        return True
    cut = pl.lit(times[half].astype(np.int64)).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    # Later values are blanked and not cut off: which stations there are is known throughout.
    by_then = [pl.when(pl.col("time").dt.convert_time_zone("UTC") < cut).then(c).alias(c) for c in rule.columns]
    again, mask = join_side_table(table.with_columns(by_then), rule, times[:half], names, adjacency, step, stations)
    return np.array_equal(again, values[:half]) and np.array_equal(mask, observed[:half])
