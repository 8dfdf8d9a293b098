"""What embeddings were made from, and whether they are still what this signal, these places and these weights give."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.digest import data_version
from stfm_pipeline.embed import frequency, spatial, temporal, tokens
from stfm_pipeline.embed.places import ENCODED, place_table
from stfm_pipeline.large import passes
from stfm_pipeline.settings import Settings
from stfm_pipeline.tables import Check, Signal

SERIES, PLACES = 16, 8
CHEAP = ("coordinates", "sphere", "fourier", "h3")
Frames = Mapping[str, pl.DataFrame]


def made_from(entities: pl.DataFrame, edges: pl.DataFrame, signal: Signal, until: int) -> dict[str, str]:
    """Versions of all that embeddings are made from: of the signal only its first `until` steps, the training part."""
    known = {name: data_version({name: table}, {}) for name, table in (("entities", entities), ("edges", edges))}
    digest = hashlib.sha256(signal.times[:until].astype(np.int64).tobytes())
    # One after the other: how many rows a pass looks at must not show.
    for array in (signal.values, signal.observed):
        for rows in passes(until, signal.values[0].size, array):
            digest.update(np.ascontiguousarray(array[rows]).view(np.uint8).data)
    return known | {"training_part": digest.hexdigest()[:16]}


def checks(
    spec: DatasetSpec,
    tables: Frames,
    signal: Signal,
    until: int,
    made: Frames,
    facts: dict[str, Any],
    settings: Settings,
) -> list[Check]:
    """Whether `made` and `facts` are the embeddings of the harmonized `tables`, whose first `until` steps are train.

    Places are made again but for encoders, of which a few are; eigenvectors have to be some of this graph; a few series
    are measured again, and tokens learned again, on a table that is cut off after the training part.
    """
    cut = Signal(signal.times[:until], signal.entities, signal.channels, signal.values[:until], signal.observed[:until])
    now = made_from(tables["entities"], tables["edges"], cut, until)
    stale = [k for k in now if facts["made_from"].get(k) != now[k]]
    stale += _unlike(spec, tables["entities"], tables["edges"], made["spatial"], settings)
    foreign = _foreign(tables["entities"], made["spatial"], facts["spatial"], settings)
    leaks = _leaks(spec, tables, cut, made)
    return [
        Check(
            "embeddings_are_of_this_signal",
            not stale,
            "they were made from these entities, edges and training values",
            dict.fromkeys(stale, "differs"),
        ),
        Check(
            "encoders_have_the_weights_they_state",
            not foreign,
            "a pretrained encoder has the pinned weights, and vectors are what the stated weights give",
            foreign,
        ),
        Check(
            "learned_from_training_part_alone",
            not leaks,
            "cut off after the training part, the table gives the same vocabulary, spectrum, density and tokens",
            dict.fromkeys(leaks, "differs"),
        ),
    ]


def _unlike(
    spec: DatasetSpec, entities: pl.DataFrame, edges: pl.DataFrame, places: pl.DataFrame, settings: Settings
) -> list[str]:
    rule = spec.embed.model_copy(update={"spatial": tuple(p for p in spec.embed.spatial if p in CHEAP)})
    again = place_table(entities, edges.clear(), rule, settings)[0].drop("patch")
    unlike = [c for c in again.columns if c not in places.columns or not again[c].equals(places[c])]
    eigen = [c for c in places.columns if c.startswith("eig_")]
    if eigen:
        vectors = places.select(eigen).to_numpy().astype(np.float64)
        left = spatial.residual(spatial.adjacency_of(edges, entities["entity"].to_list()), vectors)
        unlike += [c for c, r in zip(eigen, left, strict=True) if not r < 1e-3]
    return unlike


def _foreign(
    entities: pl.DataFrame, places: pl.DataFrame, stated: dict[str, Any], settings: Settings
) -> dict[str, str]:
    wrong = {}
    for name in (n for n in ENCODED if n in places.columns):
        from stfm_pipeline.embed import geoclip

        weights = geoclip.weights(name == "geoclip", settings)
        how = stated.get(name.replace("_", "-"), {})
        if (how.get("encoder"), how.get("weights")) != (name, geoclip.digest(weights)):
            wrong[name] = f"states {how.get('encoder')} with weights {how.get('weights')}"
            continue
        rows = np.flatnonzero(places["located"].to_numpy())
        some = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), PLACES)).astype(int))] if len(rows) else rows
        lat, lon = (entities[c][some].cast(pl.Float64).to_numpy() for c in ("lat", "lon"))
        held = [v if v is not None else [np.nan] for v in places[name][some].to_list()]
        if not all(np.allclose(a, b, atol=1e-3) for a, b in zip(held, geoclip.encode(lat, lon, weights), strict=True)):
            wrong[name] = "holds other vectors than its weights give"
    return wrong


def _leaks(spec: DatasetSpec, tables: Frames, cut: Signal, made: Frames) -> list[str]:
    rule, train = spec.embed, slice(0, len(cut.times))
    some = np.unique(np.linspace(0, len(cut.entities) - 1, min(len(cut.entities), SERIES)).astype(int))
    names = tuple(cut.entities[i] for i in some)
    few = Signal(cut.times, names, cut.channels, cut.values[:, some], cut.observed[:, some])
    again = {
        "spectrum": frequency.dominant_periods(few, train, rule.periods, spec.task.clip),
        "density": frequency.density(few, train, rule.bands, max(spec.seasons), spec.task.clip),
    }
    leaks = []
    for table, expected in again.items():
        found = made[table].filter(pl.col("entity").is_in(names))
        wanted, held = (f["power"].fill_null(np.nan).to_numpy() for f in (expected, found))
        if len(wanted) != len(held) or not np.allclose(wanted, held, rtol=1e-5, equal_nan=True):
            leaks.append(table)
    end = tables["split"].filter(pl.col("part") == "train")["end"][0]
    known = made["calendar"].filter(pl.col("time") < end)
    if not temporal.vocabulary(known, end, cut.step_us).equals(made["vocabulary"]):
        leaks.append("vocabulary")
    if "bins" in made and not tokens.bins(cut, train, rule.tokens.bins).equals(made["bins"]):
        leaks.append("bins")
    if "codebook" in made:
        learned = tokens.of_spec(cut, {"train": train, "val": slice(0, 0)}, tables["scaler"], rule.tokens)
        if not learned.to_frame().equals(made["codebook"]):
            leaks.append("codebook")
    return leaks
