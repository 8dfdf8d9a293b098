"""An embedding that is random, stale or has seen too much never passes for the one it is said to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import make_dataset, make_spec, tables

from stfm_pipeline.datasets.spec import Dataset, DatasetSpec, Embed, Tokens
from stfm_pipeline.embed import geoclip, lineage
from stfm_pipeline.embed.run import embed
from stfm_pipeline.errors import StfmError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS
from stfm_pipeline.tables import Signal
from stfm_pipeline.windows import load_panel

SPATIAL = ("coordinates", "eigenvectors", "fourier", "sphere", "h3", "geoclip-random")
RULE = Embed(spatial=SPATIAL, eigenvectors=3, patch_size=2, tokens=Tokens(codebook=8))
Frames = dict[str, pl.DataFrame]


def embedded(spec: DatasetSpec) -> tuple[Frames, Frames, dict[str, Any]]:
    """Harmonized tables, and the tables and facts that are made of them."""
    source = harmonize(spec, tables()).frames
    result = embed(spec, source)
    assert result.passed, [c for c in result.checks if not c.passed]
    return source, result.frames, result.facts


def failing(spec: DatasetSpec, source: Frames, made: Frames, facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    signal = Signal.from_frame(source["signal"], source["entities"]["entity"].to_list(), spec.channel_names)
    until = int((source["signal"]["time"] < source["split"].filter(part="train")["end"][0]).sum())
    found = lineage.checks(spec, source, signal, until, made, facts, Settings())
    return {c.name: c.details for c in found if not c.passed}


def with_places(made: Frames, **columns: pl.Expr | pl.Series) -> Frames:
    return made | {"spatial": made["spatial"].with_columns(**columns)}


def test_random_and_stale_embeddings_are_noticed() -> None:
    spec = make_spec(embed=RULE)
    source, made, facts = embedded(spec)
    assert failing(spec, source, made, facts) == {}
    rng = np.random.default_rng(0)
    for column in ("x", "sphere_z", "eig_2"):
        fake = with_places(made, **{column: pl.Series(rng.normal(size=6).astype(np.float32))})
        assert failing(spec, source, fake, facts) == {"embeddings_are_of_this_signal": {column: "differs"}}
    moved = with_places(made, h3=pl.col("h3").reverse(), fourier=pl.col("fourier").reverse())
    assert set(failing(spec, source, moved, facts)["embeddings_are_of_this_signal"]) == {"h3", "fourier"}
    turned = made | {"density": made["density"].with_columns(pl.col("power").reverse())}
    assert failing(spec, source, turned, facts) == {"learned_from_training_part_alone": {"density": "differs"}}


def test_vectors_of_other_weights_do_not_pass_for_an_encoders() -> None:
    spec = make_spec(embed=RULE)
    source, made, facts = embedded(spec)
    fake = with_places(made, geoclip_random=pl.col("geoclip_random").reverse())
    wrong = failing(spec, source, fake, facts)
    assert wrong == {
        "encoders_have_the_weights_they_state": {"geoclip_random": "holds other vectors than its weights give"}
    }
    stated = facts | {
        "spatial": facts["spatial"] | {"geoclip-random": {"encoder": "geoclip", "weights": geoclip.PINNED}}
    }
    said = failing(spec, source, made, stated)["encoders_have_the_weights_they_state"]["geoclip_random"]
    assert said.startswith("states geoclip with weights")


@pytest.mark.network
def test_a_random_encoder_never_passes_for_the_pretrained_one() -> None:
    spec = make_spec(embed=Embed(spatial=("geoclip", "geoclip-random")))
    source, made, facts = embedded(spec)
    assert facts["spatial"]["geoclip"]["weights"] == geoclip.PINNED != facts["spatial"]["geoclip-random"]["weights"]
    fake = with_places(made, geoclip=pl.col("geoclip_random"))
    assert set(failing(spec, source, fake, facts)["encoders_have_the_weights_they_state"]) == {"geoclip"}
    random = facts["spatial"]["geoclip"] | {"weights": facts["spatial"]["geoclip-random"]["weights"]}
    stated = facts | {"spatial": facts["spatial"] | {"geoclip": random}}
    assert set(failing(spec, source, made, stated)["encoders_have_the_weights_they_state"]) == {"geoclip"}


def test_what_has_seen_more_than_the_training_part_is_noticed() -> None:
    spec = make_spec(embed=RULE)
    source, _, facts = embedded(spec)
    longer = source["split"].with_columns(
        end=pl.when(part="train").then(pl.col("end").dt.offset_by("5d")).otherwise("end")
    )
    seen_more = embed(spec, source | {"split": longer}).frames
    found = failing(spec, source, seen_more, facts)
    assert set(found["learned_from_training_part_alone"]) == {"vocabulary", "spectrum", "density", "bins", "codebook"}


def test_embeddings_of_another_signal_are_noticed_by_what_they_were_made_from() -> None:
    spec = make_spec(embed=RULE)
    source, made, facts = embedded(spec)
    first = source["signal"].with_columns(pl.col("observed").list.eval(pl.element() & False))
    other = source | {"signal": pl.concat([first.head(1), source["signal"].slice(1)])}
    assert failing(spec, other, made, facts)["embeddings_are_of_this_signal"] == {"training_part": "differs"}
    heavier = source | {"edges": source["edges"].with_columns(weight=pl.lit(1.5))}
    assert failing(spec, heavier, made, facts)["embeddings_are_of_this_signal"] == {"edges": "differs"}


def test_a_panel_is_not_built_of_embeddings_of_another_signal(
    add_dataset: Callable[[Dataset], Dataset], lake: Lake, settings: Settings
) -> None:
    dataset = add_dataset(make_dataset())
    for stage in STEPS:
        materialize("synthetic", stage, lake, settings)
    before, enriched = lake.require("synthetic", "embedded"), lake.require("synthetic", "enriched")
    other = tables()
    other["edges"] = other["edges"].with_columns(weight=pl.lit(2.0))
    stale = embed(dataset.spec, harmonize(dataset.spec, other).frames)
    forged = lake.publish(
        "synthetic", "embedded", stale.tables, fingerprint=before.fingerprint, facts=stale.facts, inputs=before.inputs
    )
    lake.publish(
        "synthetic",
        "enriched",
        {t: lake.read(enriched, t) for t in enriched.tables},
        fingerprint=enriched.fingerprint,
        facts=enriched.facts,
        inputs=enriched.inputs | {"embedded": forged.data_version},
    )
    with pytest.raises(StfmError, match="are not of this signal") as error:
        load_panel(lake, "synthetic", settings.cache)
    assert error.value.offenders == ["edges"]
