"""Advice on systems rests on train and val alone, finds neighbours where there are any, and says its numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import START, make_spec
from typer.testing import CliRunner

from stfm_pipeline.cli import app
from stfm_pipeline.datasets.spec import Channel, Dataset, DatasetSpec, Harmonize, Task
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.systems import advice as advice_module
from stfm_pipeline.systems import own
from stfm_pipeline.systems.advice import LEAST_GAIN, advise
from stfm_pipeline.systems.catalog import all_systems, built_in

STEPS = 1500
SPEC = DatasetSpec(
    name="made",
    title="Made by a test",
    kind="graph",
    licence="none needed",
    channels=(Channel(name="x", unit="m"),),
    zone="UTC",
    seasons=(24,),
    harmonize=Harmonize(step="1h"),
    task=Task(look_back=24, horizon=4),
)


def noise(n: int, steps: int = STEPS, seed: int = 0) -> np.ndarray[Any, Any]:
    """Independent autoregressions with a season of a day."""
    rng = np.random.default_rng(seed)
    x = np.zeros((steps, n))
    for t in range(1, steps):
        x[t] = 0.6 * x[t - 1] + rng.normal(size=n)
    return x + 2 * np.sin(2 * np.pi * np.arange(steps) / 24)[:, None]


def followers(n: int, steps: int = STEPS, seed: int = 0) -> np.ndarray[Any, Any]:
    """A ring on which everyone repeats, two steps later and with noise, what the one before said."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps, n))
    for t in range(2, steps):
        x[t] += 0.9 * np.roll(x[t - 2], 1)
    return x


def publish(lake: Lake, values: Any, spec: DatasetSpec = SPEC, ring: bool = False, missing: Any = None) -> DatasetSpec:
    """A harmonized stage of these values (t, n)."""
    t, n = values.shape
    names = [f"s{i:03d}" for i in range(n)]
    times = np.datetime64(START.replace(tzinfo=None), "us") + np.arange(t) * np.timedelta64(3_600_000_000, "us")
    shown = values.copy()
    if missing is not None:
        shown[missing] = np.nan
    frame = pl.DataFrame({"entity": np.tile(names, t), "time": np.repeat(times, n), "x": shown.ravel()})
    raw = {
        "observations": frame.with_columns(pl.col("time").dt.replace_time_zone("UTC"), pl.col("x").fill_nan(None)),
        "entities": pl.DataFrame({"entity": names}),
    }
    if ring:
        raw["edges"] = pl.DataFrame({"source": names, "target": names[1:] + names[:1], "weight": [1.0] * n})
    result = harmonize(spec, raw)
    lake.publish(spec.name, "harmonized", result.tables, fingerprint="f", facts=result.facts, inputs={})
    return spec


def republish(lake: Lake, spec: DatasetSpec, change: Callable[[Any, Any], None]) -> None:
    """The same stage with another signal; `change` gets values and mask, (t, n c) each."""
    stage = lake.require(spec.name, "harmonized")
    found = {t: lake.read(stage, t) for t in stage.tables}
    values, observed = (np.array(found["signal"][k].to_list()) for k in ("values", "observed"))
    change(values, observed)
    found["signal"] = found["signal"].with_columns(
        pl.Series("values", values.astype(np.float32)).arr.to_list(), pl.Series("observed", observed).arr.to_list()
    )
    lake.publish(spec.name, "harmonized", found, fingerprint="g", facts=stage.facts, inputs={})


def measured(spec: DatasetSpec, lake: Lake) -> dict[str, Any]:
    found = advise(spec, lake).rows[0]["measured"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("ring", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_independent_series_gain_nothing_from_neighbours(lake: Lake, ring: bool, seed: int) -> None:
    spec = publish(lake, noise(12, seed=seed), ring=ring)
    found = measured(spec, lake)
    assert abs(found["neighbour_gain"]) < 0.01
    assert found["neighbour_gain"] < 3 * found["neighbour_noise"]
    assert found["recent_gain"] > 0.1, "an autoregression is worth something"
    rows = [r for r in advise(spec, lake).rows if r["branch"] != "baseline"]
    assert rows[0]["dependencies"] == "temporal"


@pytest.mark.parametrize("ring", [True, False])
def test_neighbours_that_lead_are_found_with_edges_and_without(lake: Lake, ring: bool) -> None:
    spec = publish(lake, followers(12), ring=ring)
    found = measured(spec, lake)
    assert found["neighbour_gain"] > 0.08
    assert found["neighbour_gain"] > 5 * found["neighbour_noise"]
    assert (found["neighbours"] == "training edges") is ring
    first, *others = [r for r in advise(spec, lake).rows if r["branch"] != "baseline"]
    assert first["dependencies"] == "both"
    said = f"neighbours improve a ridge forecast by {found['neighbour_gain']:.1%} on val"
    assert first["reason"] == f"{said}; this system models space and time"
    assert f"{said}; this system models time alone" in {r["reason"] for r in others}


def test_edges_that_lead_nowhere_do_not_help(lake: Lake) -> None:
    """The same followers, but the ring joins those whose words take 26 steps from one to the other."""
    strangers = np.arange(30) * 13 % 30
    assert measured(publish(lake, followers(30), ring=True), lake)["neighbour_gain"] > 0.08
    assert abs(measured(publish(lake, followers(30)[:, strangers], ring=True), lake)["neighbour_gain"]) < 0.01


def test_nothing_is_read_after_val(lake: Lake) -> None:
    spec = publish(lake, followers(8), ring=True)
    before = advise(spec, lake)
    stop = lake.require("made", "harmonized").facts["parts"]["val"][1]

    def spoil(start: int) -> Callable[[Any, Any], None]:
        def change(values: Any, observed: Any) -> None:
            values[start:] = 1e6
            observed[start::2] = False

        return change

    republish(lake, spec, spoil(stop))
    assert advise(spec, lake) == before
    republish(lake, spec, spoil(stop - 1))
    assert advise(spec, lake).rows != before.rows, "the last step of val does count"


def test_what_the_mask_hides_says_nothing(lake: Lake) -> None:
    hidden = np.random.default_rng(1).random((STEPS, 8)) < 0.4
    spec = publish(lake, followers(8), ring=True, missing=hidden)
    before = advise(spec, lake)
    assert before.rows[0]["measured"]["neighbour_gain"] > LEAST_GAIN
    cells = before.rows[0]["measured"]["channels"][0]["cells"]
    start, stop = lake.require("made", "harmonized").facts["parts"]["val"]
    assert cells == sum(int((~hidden[start + k : stop - 3 + k]).sum()) for k in (0, 1, 3)), "observed targets, no more"

    def change(values: Any, observed: Any) -> None:
        values[~observed] = 1e6

    republish(lake, spec, change)
    assert advise(spec, lake) == before


def test_a_channel_never_observed_on_val_or_hardly_on_train_is_too_little_data(lake: Lake) -> None:
    hidden = np.zeros((STEPS, 3), np.bool_)
    hidden[30:1100] = True
    spec = publish(lake, noise(3), missing=hidden)
    advice = advise(spec, lake)
    assert "too few observed windows" in " ".join(advice.head)
    assert "too little data to measure more" in advice.order
    assert {r["reason"] for r in advice.rows if r["branch"] != "baseline"} >= {
        "too few windows to measure neighbours; this system models time alone"
    }


def test_a_strong_season_and_little_else_puts_climatologies_first(lake: Lake) -> None:
    rng = np.random.default_rng(0)
    season = 5 * np.sin(2 * np.pi * np.arange(STEPS) / 24)[:, None] + rng.normal(size=(STEPS, 6))
    advice = advise(publish(lake, season), lake)
    first = advice.rows[0]
    assert first["backbone"] == "climatology"
    assert first["reason"].startswith("beat this first: MAE on val ")
    assert f"season of 24 steps, strength {first['measured']['season']['strength']:.2f}" in first["reason"]
    assert first["measured"]["season"]["strength"] > 0.85
    assert advice.order.startswith("baselines first, as a ridge is ")
    walk = advise(publish(lake, np.random.default_rng(0).normal(size=(STEPS, 6)).cumsum(axis=0)), lake)
    assert walk.rows[0]["name"] == "last-value", "nothing beats it on a random walk"
    assert advise(publish(lake, noise(6)), lake).rows[0]["branch"] != "baseline"


def test_the_simple_forecasts_are_scored_as_the_metric_contract_does(trained: tuple[Settings, Lake]) -> None:
    """The constant's error on the first, middle and last step is that of the leaderboard, weighted by cells."""
    _, lake = trained
    found = measured(make_spec("trained"), lake)
    board = lake.read(lake.require("trained", "evaluated"), "leaderboard").filter(
        (pl.col("split") == "val") & (pl.col("scale") == "standardised") & (pl.col("system") == "constant")
    )
    for ladder in found["channels"]:
        rows = board.filter((pl.col("channel") == ladder["channel"]) & pl.col("horizon").is_in(["1", "6", "12"]))
        assert ladder["cells"] == rows["n"].sum()
        for metric in ("mae", "mse"):
            theirs = (rows[metric] * rows["n"]).sum() / rows["n"].sum()
            assert ladder[metric]["constant"] == pytest.approx(theirs, rel=1e-4)


def test_declared_side_information_puts_its_users_first(enriched: Lake, synthetic: Dataset) -> None:
    advice = advise(synthetic.spec, enriched)
    first = advice.rows[0]
    assert first["name"] in ("stid", "patchstg")
    assert first["reason"].endswith("uses weather and plan")
    assert "those that use the declared side information" in advice.order
    assert next(r for r in advice.rows if r["name"] == "dlinear")["reason"].endswith("leaves weather and plan unused")


def test_without_a_harmonized_stage_it_says_which_command_measures(lake: Lake) -> None:
    advice = advise(SPEC, lake)
    assert "`stfm run made --until harmonized` gives measurements" in advice.head[0]
    assert advice.order.startswith("declared kinds alone")
    assert all(r["measured"] is None and "graph" in r["reason"] for r in advice.rows)


def test_a_stage_of_another_spec_is_not_measured(lake: Lake) -> None:
    spec = publish(lake, noise(3))
    other = spec.model_copy(update={"channels": (Channel(name="y", unit="m"),)})
    assert "made from another spec" in advise(other, lake).head[0]


def test_one_series_has_no_neighbours(lake: Lake) -> None:
    advice = advise(publish(lake, noise(1)), lake)
    assert advice.rows[0]["measured"]["neighbour_gain"] is None
    by = {r["name"]: r["reason"] for r in advice.rows}
    assert by["dlinear"] == "there is one series, without neighbours; this system models time alone"
    assert by["stid"].endswith("models space and time, of which space is empty here")


@pytest.mark.parametrize("ring", [True, False])
def test_many_series_are_sampled_and_it_is_said(lake: Lake, ring: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from stfm_pipeline.systems import _view

    monkeypatch.setattr(_view, "SERIES", 5)
    monkeypatch.setattr(_view, "POOL", 20)
    monkeypatch.setattr(_view, "CELLS", 20_000)
    found = measured(publish(lake, followers(40), ring=ring), lake)
    assert found["sample"].endswith("5 of 40 series evenly apart")
    if ring:
        assert found["neighbour_gain"] > 0.05
    else:
        assert found["neighbours"].startswith("the 8 of ")
        assert re.match(r"the last 8\d\d steps of train", found["sample"]), "20 000 cells, val among them"


def test_measured_val_scores_stand_beside_and_decide_once_all_have_one(
    trained: tuple[Settings, Lake], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lake = trained
    spec = make_spec("trained")
    ranking = {r["system"]: r["val_score"] for r in lake.require("trained", "evaluated").facts["ranking"]}
    some = advise(spec, lake)
    assert {r["name"]: r["val_score"] for r in some.rows if r["val_score"] is not None} == ranking
    assert "val scores are shown, and decide once every fit system has one" in some.order
    whole = {name: s for name, s in all_systems().items() if name in ranking}
    monkeypatch.setattr(advice_module, "all_systems", lambda: whole)
    decided = advise(spec, lake)
    assert [r["name"] for r in decided.rows] == sorted(ranking, key=lambda s: ranking[s])
    assert "measured beats guessed" in decided.order
    assert decided.rows[0]["reason"].startswith(f"val score {min(ranking.values()):.3f} measured; ")


def test_val_scores_of_older_data_are_left_out(trained: tuple[Settings, Lake], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(trained[1].uri, tmp_path / "lake")
    lake = Lake(str(tmp_path / "lake"))
    stage = lake.require("trained", "enriched")
    frames = {t: lake.read(stage, t) for t in stage.tables}
    lake.publish("trained", "enriched", frames, fingerprint="x", facts={**stage.facts, "new": 1}, inputs=stage.inputs)
    advice = advise(make_spec("trained"), lake)
    assert all(r["val_score"] is None for r in advice.rows)
    assert "val scores of older data are left out" in advice.order


OWN = """\
from stfm_pipeline.systems.constant import Constant
from stfm_pipeline.systems.spec import System

SYSTEM = System(
    name="x", title="x", summary="x", reference="x", branch="{branch}", objective="closed form", backbone="none",
    dependencies="{dependencies}", kinds=("{kind}",), build=Constant,
)
"""


def test_own_systems_are_in_the_list_and_unfit_ones_come_last_with_their_reason(lake: Lake, tmp_path: Path) -> None:
    cases = {"my_film": ("primitive", "both", "video"), "my_map": ("primitive", "spatial", "graph")}
    cases["my_rule"] = ("baseline", "temporal", "graph")
    for name, (branch, dependencies, kind) in cases.items():
        path = tmp_path / f"{name}.py"
        path.write_text(OWN.format(branch=branch, dependencies=dependencies, kind=kind))
        own.install(path, set(built_in()))
    rows = advise(publish(lake, followers(8), ring=True), lake).rows
    unfit = [r["name"] for r in rows if r["rank"] is None]
    assert unfit == ["my-film", "simvp"]
    assert [r["rank"] for r in rows] == [*range(1, len(rows) - 1), None, None]
    assert rows[-2]["unfit"] == "it is for video data; 'made' is graph"
    assert rows[-2]["reason"] == "unfit: it is for video data; 'made' is graph"
    by = {r["name"]: r for r in rows}
    assert by["my-map"]["reason"].endswith("this system models space alone")
    assert by["my-map"]["rank"] < by["dlinear"]["rank"] < by["my-rule"]["rank"]
    assert by["my-rule"]["reason"] == "a baseline, not among the simple forecasts measured here"


def test_every_system_states_its_place_in_the_taxonomy() -> None:
    for system in all_systems().values():
        assert system.branch in {"baseline", "primitive", "transferred"}
        assert system.dependencies in {"temporal", "spatial", "both"}
        assert system.objective
        assert system.backbone
        assert set(system.kinds) <= {"graph", "grid", "trajectory", "event", "video"}
        assert system.tasks
        assert (system.objective == "closed form") == (system.training is None)


def test_the_command_prints_it_and_gives_it_as_data(enriched: Lake, synthetic: Dataset) -> None:
    shown = CliRunner().invoke(app, ["systems", "list", "--for", "synthetic"])
    assert shown.exit_code == 0, shown.output
    text = " ".join(shown.output.split())
    assert "synthetic: measured on train and scored on val (864 steps, 6 series); gate and test are not read" in text
    assert "season: 24 steps with strength" in text
    assert "neighbours (training edges) improve that ridge by" in text
    assert "beat this first: MAE on val" in text
    rows = json.loads(CliRunner().invoke(app, ["systems", "list", "--for", "synthetic", "--json"]).stdout)
    assert {r["name"] for r in rows} == set(all_systems())
    assert rows[0]["rank"] == 1
    assert rows[0]["measured"]["season"]["steps"] == 24
    plain = CliRunner().invoke(app, ["systems", "list"])
    assert "dependencies" in plain.output
    assert "tasks" in plain.output


def test_the_lake_passes_over_rows_outside(lake: Lake) -> None:
    stage = lake.publish("made", "raw", {"t": pl.DataFrame({"x": range(100)})}, fingerprint="f", facts={}, inputs={})
    batches = list(lake.rows(stage, "t", ["x"], 10, 90, at_once=32))
    assert max(len(frame) for _, frame in batches) <= 32
    at = np.concatenate([numbers for numbers, _ in batches])
    assert sorted(at) == list(range(10, 90))
    assert pl.concat([frame for _, frame in batches])["x"].to_list() == at.tolist()
