"""The embedded stage of a signal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.embed import frequency, lineage, patches, temporal, tokens
from stfm_pipeline.embed.places import features, place_table
from stfm_pipeline.harmonize.split import parts_of
from stfm_pipeline.large import Table, whole
from stfm_pipeline.settings import Settings
from stfm_pipeline.stage import NEVER, Extension, Result, Tail
from stfm_pipeline.tables import Check, Signal, step_us


def embed(spec: DatasetSpec, harmonized: Mapping[str, Table], settings: Settings | None = None) -> Result:
    """Calendar per step and civil place, its training vocabulary, spatial embedding per entity, periods and density."""
    home = settings or Settings()
    tables = {name: whole(table) for name, table in harmonized.items() if name != "signal"}
    entities = tables["entities"]
    signal = Signal.from_frame(harmonized["signal"], entities["entity"].to_list(), spec.channel_names)
    parts = parts_of(tables["split"], signal.times)
    civil = temporal.civil_places(entities)
    zones, countries = civil["zone"].to_list(), civil["country"].to_list()
    calendar = temporal.calendar(signal.times, zones, signal.step_us, countries)
    until = tables["split"].filter(pl.col("part") == "train")["end"][0]
    vocabulary = temporal.vocabulary(calendar, until, signal.step_us)
    places, made = place_table(entities, tables["edges"], spec.embed, home)
    spectrum = frequency.dominant_periods(signal, parts["train"], spec.embed.periods, spec.task.clip)
    per_day = temporal.steps_per_day(signal.step_us)
    profiles = patches.daily_profiles(signal, parts["train"], tables["scaler"], per_day)
    cut, partitions, once = patches.cut(spec, entities, tables["edges"], profiles)
    density = frequency.density(signal, parts["train"], spec.embed.bands, max(spec.seasons), spec.task.clip)
    out: dict[str, pl.DataFrame] = {
        "calendar": calendar,
        "vocabulary": vocabulary,
        "spatial": places,
        "patches": cut,
        "spectrum": spectrum,
        "density": density,
        "zones": civil,
    }
    said: dict[str, Any] = {}
    if spec.embed.tokens.bins:
        out["bins"] = tokens.bins(signal, parts["train"], spec.embed.tokens.bins)
    if spec.embed.tokens.codebook:
        found = tokens.of_spec(signal, dict(parts), tables["scaler"], spec.embed.tokens)
        out["codebook"], said["codebook"] = found.to_frame(), found.facts
    unseen = vocabulary.filter(pl.col("count") == 0)
    sizes = places["patch"].value_counts()["count"]
    strongest = (
        spectrum.filter(pl.col("rank") == 1)
        .group_by("channel", pl.col("period").round(1))
        .len()
        .sort("channel", "len", "period", descending=[False, True, False])
        .group_by("channel", maintain_order=True)
        .first()
    )
    facts: dict[str, Any] = {
        "zones": zones,
        "countries": countries,
        "steps": len(signal.times),
        "unseen_categories": [f"{r['feature']} {r['code']}" for r in unseen.to_dicts()],
        "patches": len(sizes),
        "partitions": partitions,
        "located": int(places["located"].sum()),
        "spatial": made,
        "commonest_dominant_period": {r["channel"]: r["period"] for r in strongest.to_dicts()},
        "made_from": lineage.made_from(entities, tables["edges"], signal, parts["train"].stop),
        **said,
    }
    numeric = features(places)
    span = (int(sizes.min() or 0), int(sizes.max() or 0))  # type: ignore[arg-type]
    checks = [
        Check("calendar_is_complete", len(calendar) == len(signal.times) * len(zones), "every step in every zone", {}),
        Check(
            "patches_are_balanced",
            span[1] - span[0] <= 1 and span[1] <= spec.embed.patch_size,
            "patch sizes differ by at most one",
            {"smallest": span[0], "largest": span[1]},
        ),
        Check("embeddings_are_finite", bool(np.isfinite(numeric).all()), "no infinite coordinate or eigenvector", {}),
        once,
        *lineage.checks(spec, tables, signal, parts["train"].stop, out, facts, home),
    ]
    return Result(out, facts, checks)


def extend(spec: DatasetSpec, facts: dict[str, Any], clock: NDArray[np.datetime64]) -> Extension:
    """What an embedded stage with `facts` becomes when the clock is a longer one: the calendar of its new steps."""
    zones, countries, kept = facts["zones"], facts["countries"], facts["steps"]
    times = clock[kept:]
    new = facts | {"steps": len(clock)}
    if not len(times):
        return Extension({}, new, [], NEVER)
    calendar = temporal.calendar(times, zones, step_us(spec.harmonize.step), countries)
    every = len(calendar) == len(times) * len(zones)
    check = Check("calendar_is_complete", every, "every new step in every zone", {})
    return Extension({"calendar": Tail(kept * len(zones), calendar)}, new, [check], calendar["time"][0])
