"""Data that land before or after what there is: who was trained on which, and who may wear the crown because of it.

The dataset has no joined tables, so that `enriched` holds the same whatever lands.
"""

from __future__ import annotations

from datetime import datetime

import numpy as np
import polars as pl
import pytest
from fixtures.live import day, land, write

from stfm_pipeline import decision, registry, scoring, training
from stfm_pipeline.cli.road import print_result, result_of
from stfm_pipeline.datasets.catalog import folder, get_dataset
from stfm_pipeline.forecasts import score
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import materialize
from stfm_pipeline.serve.metrics import Metrics
from stfm_pipeline.serve.watch import Watch
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS
from stfm_pipeline.systems.advice import advise

YAML = """\
title: waves
kind: graph
zone: UTC
tables:
  observations: {format: long, file: waves.csv}
channels:
  - {name: v, unit: m}
harmonize: {step: 1h}
seasons: [24]
task: {look_back: 24, horizon: 6}
"""
SYSTEMS = ("constant", "seasonal-naive", "dlinear")


def waves(start: int, stop: int) -> pl.DataFrame:
    """Four autoregressive series over a daily wave, from day `start` to day `stop`."""
    rng, names = np.random.default_rng(0), list("abcd")
    x = np.zeros((24 * 80, len(names)))
    for t in range(1, len(x)):
        x[t] = 0.8 * x[t - 1] + rng.normal(0, 1, len(names))
    x += 3 * np.sin(np.arange(len(x)) * 2 * np.pi / 24)[:, None]
    times = [t for h in range(len(x)) for t in [day(h / 24)] * len(names)]
    whole = pl.DataFrame({"entity": names * len(x), "time": times, "v": x.ravel().round(3)})
    return whole.filter((pl.col("time") >= day(start)) & (pl.col("time") < day(stop)))


def base(start: int, stop: int) -> None:
    write(folder() / "waves.csv", waves(start, stop))
    (folder() / "waves.yaml").write_text(YAML)


def tables(lake: Lake, settings: Settings, new_split: bool = False) -> None:
    for stage in STEPS:
        assert materialize("waves", stage, lake, settings, new_split=new_split).stage is not None


def decide(lake: Lake, settings: Settings, systems: tuple[str, ...] = SYSTEMS, start: str = "scratch") -> None:
    for system in systems:
        assert training.train_system("waves", system, lake, settings, start=start, progress=False).stage is not None
    assert scoring.evaluate_dataset("waves", lake, settings).stage is not None
    assert decision.crown("waves", lake, settings).stage is not None


def champion(settings: Settings) -> int:
    version = registry.champion_version(settings, "waves")
    assert version is not None
    return int(version.version)


def test_a_model_that_was_rolled_back_is_not_crowned_again_on_the_same_evidence(
    lake: Lake, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    base(0, 40)
    tables(lake, settings)
    decide(lake, settings)
    registry.promote(settings, "waves", 1)
    assert land(waves(40, 80), "waves-more.csv", lake, settings, "waves")[0].accepted
    tables(lake, settings, new_split=True)
    decide(lake, settings)
    won = registry.decisions(settings, "waves")[0]
    assert (won["kind"], won["version"], won["promote"], champion(settings)) == ("decided", 2, True, 2)
    registry.connect(settings).set_registered_model_alias("waves", "champion", "1")
    again = registry.Decision(True, "cut short before the alias")
    assert registry.apply_decision(settings, "waves", 2, again, evidence=won["evidence"]) == won
    assert champion(settings) == 2, "the newest entry is done again"
    assert registry.rollback(settings, "waves")["version"] == 1
    history, path = registry.decisions(settings, "waves"), folder() / "waves.yaml"
    path.write_text(path.read_text().replace("title: waves", "title: waves of another title"))
    decide(lake, settings)
    assert lake.require("waves", "evaluated").facts["evidence"] == won["evidence"]
    assert champion(settings) == 1
    assert registry.decisions(settings, "waves") == history
    facts = lake.require("waves", "champion").facts
    assert not facts["promoted"]
    assert "the crown has changed since" in facts["reason"]
    print_result(result_of("waves", lake, settings), lake)
    assert "not promoted again" in " ".join(capsys.readouterr().out.split())
    registry.promote(settings, "waves", 2)
    registry.promote(settings, "waves", 1)
    registry.apply_decision(settings, "waves", 2, again, evidence=won["evidence"])
    assert champion(settings) == 1, "nor against what was decided by hand"


def test_only_systems_that_were_trained_on_all_current_tables_are_scored(lake: Lake, settings: Settings) -> None:
    base(0, 40)
    tables(lake, settings)
    decide(lake, settings)
    registry.promote(settings, "waves", 1)
    watch = Watch("waves", "champion", lake, settings, Metrics(), every=60)
    watch.look()
    first, enriched = score("waves", lake, settings), lake.require("waves", "enriched").data_version
    assert [s.name for s, _ in scoring.trained_systems(lake, "waves")] == list(SYSTEMS)
    measured = [r["name"] for r in advise(get_dataset("waves").spec, lake).rows if r["val_score"] is not None]
    assert sorted(measured) == sorted(SYSTEMS)
    assert land(waves(40, 80), "waves-more.csv", lake, settings, "waves")[0].accepted
    tables(lake, settings, new_split=True)
    assert lake.require("waves", "enriched").data_version == enriched
    assert scoring.trained_systems(lake, "waves") == []
    assert not any(r["val_score"] is not None for r in advise(get_dataset("waves").spec, lake).rows), (
        "those scores are of older data"
    )
    decide(lake, settings, ("constant", "seasonal-naive", "stid"))
    facts = lake.require("waves", "evaluated").facts
    assert sorted(r["system"] for r in facts["ranking"]) == ["constant", "seasonal-naive", "stid"]
    assert facts["candidate"]["system"] == "stid"
    assert first.stage is not None
    then, now = (f.facts["origin"] for f in (first.stage, score("waves", lake, settings).stage) if f is not None)
    assert now > then
    watch.look()
    assert watch.latest is not None
    assert watch.latest[1].origin.isoformat() == now, "the server forecasts from the new end, too"


def test_a_champion_that_knows_the_gate_gives_no_weights_and_the_report_says_what_it_knows(
    lake: Lake, settings: Settings
) -> None:
    base(40, 80)
    tables(lake, settings)
    decide(lake, settings)
    registry.promote(settings, "waves", 1)
    known = registry.load_model("models:/waves@champion", settings).lineage["split"]
    assert land(waves(0, 40), "waves-before.csv", lake, settings, "waves")[0].accepted
    tables(lake, settings, new_split=True)
    split = training.split_of(lake, lake.require("waves", "harmonized"))
    assert split["gate"][0] < known["train"][1], "the champion was trained on the new gate"
    decide(lake, settings, start="warm")
    seed = lake.require("waves", "trained_dlinear").facts["seeds"][0]
    assert seed["started"].startswith(f"scratch: version 1 was trained up to {known['train'][1]}")
    notes = lake.require("waves", "evaluated").facts["notes"]
    said = f"champion (version 1) was trained up to {known['train'][1]} and chosen on data up to {known['val'][1]}"
    assert any(n.startswith(said) and f"gate begins at {split['gate'][0]}" in n for n in notes)


def test_what_a_model_knows_is_what_it_started_from_knew(lake: Lake, settings: Settings) -> None:
    base(0, 40)
    tables(lake, settings)
    decide(lake, settings)
    registry.promote(settings, "waves", 1)
    assert land(waves(40, 60), "waves-more.csv", lake, settings, "waves")[0].accepted
    tables(lake, settings, new_split=True)
    decide(lake, settings, start="warm")
    seed = lake.require("waves", "trained_dlinear").facts["seeds"][0]
    assert seed["started"] == "warm, from version 1"
    first, second = registry.load_model("models:/waves/1", settings), registry.load_model(seed["uri"], settings)
    seen = {part: first.lineage["split"][part][1] for part in ("train", "val")}
    assert second.lineage["started"]["seen"] == seen
    assert not any("advantage" in n for n in lake.require("waves", "evaluated").facts["notes"])
    own = {part: datetime.fromisoformat(second.lineage["split"][part][1]) for part in seen}
    assert training.seen_until(second.lineage) == own
    late = str(day(70))
    older = second.lineage | {"started": {"seen": {"train": late, "val": seen["val"]}}}
    assert training.seen_until(older) == own | {"train": day(70)}
    assert training.chosen_on(training.seen_until(older), second.lineage["split"])


def test_where_gate_is_val_being_chosen_on_it_is_no_advantage() -> None:
    split = {"train": ["2024-01-01", "2024-01-05"], "val": ["2024-01-05", "2024-01-07"]}
    seen = training.seen_until({"split": split})
    assert not training.chosen_on(seen, split | {"gate": split["val"]})
    assert training.chosen_on(seen, split | {"gate": ["2024-01-06", "2024-01-08"]})
    assert not training.chosen_on(seen, split | {"gate": ["2024-01-07", "2024-01-08"]})
