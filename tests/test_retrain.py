"""Retraining: a new split on what has landed, from the champion's weights, with a decision that is kept."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
import torch
from fixtures.live import begin, check_whole, day, down_the_road, land, rows
from typer.testing import CliRunner

from stfm_pipeline import decision, points, registry, scoring, training
from stfm_pipeline.cli import app
from stfm_pipeline.evaluate.choose import CAPACITY, REFILL, SHARE, Decision, allowance
from stfm_pipeline.lake import Lake
from stfm_pipeline.retrain import due, retrain_after
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.splits import split_version
from stfm_pipeline.steps import STEPS
from stfm_pipeline.windows import load_panel

SYSTEMS = ("constant", "seasonal-naive", "dlinear")


def round_of(lake: Lake, settings: Settings, start: str | None = None, new_split: bool = False) -> None:
    for stage in STEPS:
        assert materialize("live", stage, lake, settings, new_split=new_split).stage is not None
    for system in SYSTEMS:
        assert training.train_system("live", system, lake, settings, start=start, progress=False).stage is not None
    assert scoring.evaluate_dataset("live", lake, settings).stage is not None
    assert decision.crown("live", lake, settings).stage is not None


@pytest.fixture
def live(lake: Lake, settings: Settings) -> Lake:
    """Fifty days of data with a champion, and six more that have landed."""
    begin(stop=50)
    round_of(lake, settings)
    registry.promote(settings, "live", 1)
    assert land(rows("observations", 50, 56), "observations-50.csv", lake, settings)[0].accepted
    return lake


def parts(lake: Lake) -> list[datetime]:
    return lake.read(lake.require("live", "harmonized"), "split")["start"].to_list()


def test_a_new_split_is_drawn_once_per_amount_of_data_and_outlives_a_crash(live: Lake, settings: Settings) -> None:
    before = parts(live)
    down_the_road(live, settings)
    assert parts(live) == before, "what lands lengthens the newest part"
    assert materialize("live", "raw", live, settings, new_split=True).reused

    def crash(point: str) -> None:
        raise KeyboardInterrupt

    points.hooks.append(crash)
    try:
        with pytest.raises(KeyboardInterrupt):
            materialize("live", "harmonized", live, settings, new_split=True)
    finally:
        points.hooks.remove(crash)
    assert split_version("live") == 2
    assert parts(live) == before, "the last version is whole"
    down_the_road(live, settings)
    moved = parts(live)
    assert all(new > old for new, old in zip(moved[1:], before[1:], strict=True))
    facts = live.require("live", "harmonized").facts
    assert (facts["split_version"], facts["split_drawn"]) == (2, facts["end"])
    assert materialize("live", "harmonized", live, settings, new_split=True).reused, "nothing more, nothing new"
    land(rows("observations", 56, 57), "observations-56.csv", live, settings)
    down_the_road(live, settings)
    assert parts(live) == moved
    check_whole(live, settings)


def test_a_published_split_never_moves(lake: Lake, settings: Settings, add_dataset: object) -> None:
    from fixtures.synthetic import make_dataset

    from stfm_pipeline.datasets.spec import Split

    add_dataset(make_dataset(split=Split(counts=(800, 100, 100, 300))))  # type: ignore[operator]
    for _ in range(2):
        for stage in STEPS:
            outcome = materialize("synthetic", stage, lake, settings, new_split=True)
    assert outcome.reused
    assert split_version("synthetic") == 1


def test_warm_starts_from_the_champions_weights_and_says_so_everywhere(live: Lake, settings: Settings) -> None:
    champion = registry.load_model("models:/live@champion", settings)
    assert champion.system == "dlinear"
    round_of(live, settings, start="warm", new_split=True)
    seed = live.require("live", "trained_dlinear").facts["seeds"][0]
    assert seed["started"] == "warm, from version 1"
    model = registry.load_model(seed["uri"], settings)
    assert model.lineage["started"]["version"] == 1
    assert model.lineage["split_version"] == 2
    assert not torch.equal(model.problem.tensors["mean"], champion.problem.tensors["mean"]), "scalers are its own"
    client = registry.connect(settings)
    assert client.get_run(seed["run_id"]).data.params["start"] == "warm, from version 1"
    assert registry.show(settings, "live", 2)["started"] == "warm, from version 1"
    evaluated = live.require("live", "evaluated").facts
    assert "dlinear started: warm, from version 1" in evaluated["notes"]
    rivals = [m["rival"] for m in evaluated["decision"]["margins"]]
    assert "champion (version 1)" in rivals or evaluated["decision"]["level"] == 0
    assert training.stale_systems(live, "live", SYSTEMS, "quick", False) == [], "`stfm run` keeps what is there"
    again = training.train_system("live", "dlinear", live, settings, start="warm", progress=False)
    assert again.reused
    scratch = training.train_system("live", "dlinear", live, settings, start="scratch", progress=False)
    assert scratch.stage is not None
    assert not scratch.reused
    assert scratch.stage.facts["seeds"][0]["started"] == "scratch"


def test_warm_without_fitting_weights_starts_from_scratch_and_says_why(live: Lake, settings: Settings) -> None:
    from stfm_pipeline.systems.catalog import get_system
    from stfm_pipeline.train import BUDGETS, fit, misfit

    down_the_road(live, settings)
    stage = training.train_system("live", "stid", live, settings, start="warm", progress=False).stage
    assert stage is not None
    assert stage.facts["seeds"][0]["started"] == "scratch: the champion is of dlinear"
    panel = load_panel(live, "live", settings.cache)
    module = get_system("dlinear").build(panel.problem)
    weights = {k: v.detach() for k, v in module.named_parameters()}
    assert misfit(module, weights) is None
    name, first = next(iter(weights.items()))
    assert name in str(misfit(module, {**weights, name: first[:1, ..., :1]}))
    assert "not there" in str(misfit(module, {k: v for k, v in weights.items() if k != name}))
    none = BUDGETS["quick"].__class__("none", epochs=1, patience=1, seeds=1, stride=50)
    given = {k: torch.full_like(v, 0.25) for k, v in weights.items()}
    losses = [fit(get_system("dlinear"), panel, none, weights=w, progress=False).val_loss for w in (None, given)]
    assert losses[0] != losses[1]


def test_a_dataset_is_due_when_it_has_grown_enough_since_the_decision(live: Lake, settings: Settings) -> None:
    from stfm_pipeline.datasets.catalog import get_dataset

    assert due(live) == {}, "it has landed, and is not in the tables yet"
    down_the_road(live, settings)
    assert list(due(live)) == ["live"]
    assert due(live)["live"] == str(day(56).replace(tzinfo=None)).replace(" ", "T") + ".000000"
    round_of(live, settings, new_split=True)
    assert due(live) == {}
    spec = get_dataset("live").spec
    assert retrain_after(spec).days == 1, "the longest season"
    assert retrain_after(spec.model_copy(update={"retrain_after": "3d"})).days == 3


def test_in_any_year_no_more_than_five_percent_are_spent_and_never_nothing() -> None:
    for every in (0, 1, 7, 30, 91, 365):
        left, spent = None, []
        for _ in range(round(3 * 365 / every) if every else 500):
            available = allowance(left, every)
            spent.append(SHARE * available)
            left = available - spent[-1]
        year = round(365 / every) + 1 if every else len(spent)
        most = max(sum(spent[i : i + year]) for i in range(len(spent)))
        assert most <= 0.05 + 1e-9 + REFILL * every / 365, every
        assert min(spent) > 0
    assert allowance(0.0, 10 * 365) == CAPACITY
    assert CAPACITY + REFILL <= 0.05


def test_the_history_tells_every_change_of_the_crown(live: Lake, settings: Settings) -> None:
    first = registry.decisions(settings, "live")
    assert [d["kind"] for d in first] == ["by hand", "decided"]
    assert first[1]["evidence"] == live.require("live", "evaluated").facts["evidence"]
    round_of(live, settings, start="scratch", new_split=True)
    newest = registry.decisions(settings, "live")[0]
    assert newest["number"] == 3
    assert newest["left"] <= CAPACITY
    count = len(registry.decisions(settings, "live"))
    registry.apply_decision(settings, "live", 2, Decision(newest["promote"], "again"), evidence=newest["evidence"])
    assert len(registry.decisions(settings, "live")) == count, "the same evidence is decided on once"
    registry.promote(settings, "live", 2)
    registry.promote(settings, "live", 1)
    registry.promote(settings, "live", 2)
    assert registry.rollback(settings, "live")["version"] == 1
    assert registry.rollback(settings, "live")["version"] == 2
    assert registry.rollback(settings, "live")["version"] == 1
    kinds = [d["kind"] for d in registry.decisions(settings, "live")]
    assert kinds[:6] == ["rollback"] * 3 + ["by hand"] * 3
    shown = CliRunner().invoke(app, ["models", "decisions", "live", "--json"])
    assert [d["kind"] for d in json.loads(shown.stdout)] == kinds
    table = CliRunner().invoke(app, ["models", "decisions", "live"])
    assert table.exit_code == 0, table.output
    assert "rollback" in table.output
    assert CliRunner().invoke(app, ["models", "show", "live"]).exit_code == 0


def test_the_next_decision_meets_the_champion_that_was_rolled_back_to(live: Lake, settings: Settings) -> None:
    round_of(live, settings, start="scratch", new_split=True)
    registry.promote(settings, "live", 2)
    assert registry.rollback(settings, "live")["version"] == 1
    land(rows("observations", 56, 60), "observations-56.csv", live, settings)
    round_of(live, settings, start="warm", new_split=True)
    evaluated = live.require("live", "evaluated").facts
    assert evaluated["met"] == registry.show(settings, "live", 1)["run_id"]
    assert not any("was not met" in n for n in evaluated["notes"]), "another split is no other problem"


def test_options_that_are_no_options_are_named() -> None:
    wrong = CliRunner().invoke(app, ["retrain", "live", "--start", "cold"])
    assert wrong.exit_code == 2
