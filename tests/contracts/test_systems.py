"""Every system meets the same contract on every kind of data it claims, by being in `stfm_pipeline/systems/`."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fixtures.synthetic import make_spec
from torch import nn

from stfm_pipeline.errors import MetricError, UsageError
from stfm_pipeline.evaluate.calibration import calibrate
from stfm_pipeline.forecaster import Forecaster
from stfm_pipeline.lake import Lake
from stfm_pipeline.predict import frame_of
from stfm_pipeline.settings import Settings
from stfm_pipeline.systems.catalog import all_systems, get_system, module_names, select_systems
from stfm_pipeline.systems.spec import System, Training
from stfm_pipeline.tasks.forecasting import Inputs, hide, masked_loss
from stfm_pipeline.train import Budget, fit
from stfm_pipeline.windows import Panel, Window, load_panel

NAMES = [n.replace("_", "-") for n in module_names()]
BRIEF = Budget("brief", epochs=2, patience=2, seeds=1, stride=4)
PROBLEMS = {"graph": ("synthetic", "enriched"), "grid": ("gridded", "enriched_grid")}
CASES = [(n, kind) for n in NAMES for kind in get_system(n).kinds if kind in PROBLEMS]
LEARNED = [(n, kind) for n, kind in CASES if get_system(n).training is not None]

each_system = pytest.mark.parametrize(("name", "panel"), CASES, indirect=["panel"])
each_learned_system = pytest.mark.parametrize(("name", "panel"), LEARNED, indirect=["panel"])


@pytest.fixture
def panel(request: pytest.FixtureRequest, settings: Settings) -> Panel:
    """The panel of a problem of the wanted kind, a graph where a test does not say."""
    dataset, lake = PROBLEMS[getattr(request, "param", "graph")]
    return load_panel(request.getfixturevalue(lake), dataset, settings.cache)


def fitted(name: str, panel: Panel, seed: int = 0) -> nn.Module:
    return fit(get_system(name), panel, BRIEF, seed=seed, device="cpu", progress=False).module


def answer(module: nn.Module, window: Window, panel: Panel) -> torch.Tensor:
    with torch.inference_mode():
        out = module(hide(window, panel.problem.look_back)[0])
    return out[0] if isinstance(out, tuple) else out


def some(panel: Panel, name: str, count: int = 5) -> Window:
    return panel.arrays.gather(panel.origins("val")[:count], panel.problem, get_system(name).needs)


@each_system
def test_shape_and_finite(name: str, panel: Panel) -> None:
    out = answer(fitted(name, panel), some(panel, name), panel)
    assert out.shape == (5, panel.problem.horizon, panel.problem.n, 2)
    assert out.isfinite().all()


@each_system
def test_same_seed_same_result_and_the_global_generator_is_left_alone(name: str, panel: Panel) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = answer(fitted(name, panel), some(panel, name), panel)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, answer(fitted(name, panel), some(panel, name), panel))


@each_system
def test_saved_and_loaded_it_answers_bit_for_bit_the_same(name: str, panel: Panel, tmp_path: Path) -> None:
    forecaster = Forecaster(name, panel.problem, fitted(name, panel), {})
    loaded = Forecaster.load(forecaster.save(tmp_path / "model"))
    window = some(panel, name)
    assert torch.equal(forecaster.forecast(window).values, loaded.forecast(window).values)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "lineage.json",
        "model.safetensors",
    ]


@each_system
def test_the_future_cannot_reach_the_forecast(name: str, panel: Panel) -> None:
    module, window = fitted(name, panel), some(panel, name)
    noise = torch.randn_like(window.values)
    noise[:, : panel.problem.look_back] = 0
    flipped = window.observed.clone()
    flipped[:, panel.problem.look_back :] ^= True
    changed = dataclasses.replace(window, values=window.values + 100 * noise, observed=flipped)
    assert torch.equal(answer(module, window, panel), answer(module, changed, panel))


@each_system
def test_what_a_cell_holds_while_unobserved_changes_nothing(name: str, panel: Panel) -> None:
    module, window = fitted(name, panel), some(panel, name)
    assert not window.observed.all()
    garbage = {}
    for field in ("values", "past", "ahead"):
        seen = getattr(window, "observed" if field == "values" else f"{field}_observed")
        garbage[field] = torch.where(seen, getattr(window, field), float("nan"))
    changed = dataclasses.replace(window, **garbage)
    assert torch.equal(answer(module, window, panel), answer(module, changed, panel))


@each_system
def test_a_look_back_without_any_observation_still_gets_a_finite_forecast(name: str, panel: Panel) -> None:
    window = some(panel, name)
    blind = dataclasses.replace(window, observed=torch.zeros_like(window.observed))
    assert answer(fitted(name, panel), blind, panel).isfinite().all()


@each_learned_system
def test_gradient_reaches_every_trainable_weight(name: str, panel: Panel) -> None:
    module = get_system(name).build(panel.problem)
    inputs, target = hide(some(panel, name, 16), panel.problem.look_back)
    module.train()
    masked_loss(module(inputs), target, "mse", panel.problem.tensors["weight"]).backward()
    dead = [k for k, p in module.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert dead == []


@each_learned_system
def test_one_batch_can_be_learned_by_heart(name: str, panel: Panel) -> None:
    torch.manual_seed(0)
    module = get_system(name).build(panel.problem)
    module.eval()
    inputs, target = hide(some(panel, name, 2), panel.problem.look_back)
    weight = panel.problem.tensors["weight"]
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    first = float(masked_loss(module(inputs), target, "mae", weight).detach())
    for _ in range(300):
        optimizer.zero_grad()
        loss = masked_loss(module(inputs), target, "mae", weight)
        if float(loss.detach()) < 0.4 * first:
            return
        loss.backward()
        optimizer.step()
    raise AssertionError(f"after 300 steps the loss is {float(loss.detach()) / first:.2f} of what it was")


@pytest.mark.parametrize("name", NAMES)
def test_it_says_where_it_stands_in_the_taxonomy(name: str) -> None:
    facts = get_system(name).describe()
    assert facts["name"] == name
    assert all(facts[k] for k in ("title", "summary", "reference", "objective", "backbone", "dependencies"))
    assert facts["branch"] in ("baseline", "primitive", "transferred")


def test_baselines_come_first_and_an_unfit_or_unknown_choice_is_refused_with_the_fit_ones() -> None:
    branches = [s.branch for s in all_systems().values()]
    assert branches == sorted(branches, key=["baseline", "primitive", "transferred"].index)
    spec = make_spec(kind="trajectory")
    with pytest.raises(UsageError, match=r"'stid' does not fit 'synthetic': it is for graph, grid data"):
        select_systems(["stid"], spec)
    with pytest.raises(UsageError, match="did you mean 'stid'"):
        select_systems(["stidd"], make_spec())


class TenLines(nn.Module):
    """Inherits nothing of ours."""

    def __init__(self, problem: object) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 12)

    def forward(self, inputs: Inputs) -> torch.Tensor:
        return self.layer(inputs.x.movedim(1, -1)).movedim(-1, 1)


def plain(**changes: object) -> System:
    facts = dict.fromkeys(("title", "summary", "reference", "objective", "backbone"), "x")
    base = System(
        name="plain", branch="primitive", dependencies="temporal", build=TenLines, training=Training(1e-2), **facts
    )
    return dataclasses.replace(base, **changes)


def test_a_plain_module_joins_as_a_system(panel: Panel) -> None:
    result = fit(plain(), panel, BRIEF, device="cpu", progress=False)
    assert result.curve[-1]["train_loss"] < result.curve[0]["train_loss"]


class Nan(TenLines):
    def forward(self, inputs: Inputs) -> torch.Tensor:
        return super().forward(inputs) * float("nan")


def test_forecasts_of_nan_stop_the_training_with_a_reason(panel: Panel) -> None:
    with pytest.raises(MetricError, match="'plain' forecasts values that are not finite"):
        fit(plain(build=Nan), panel, BRIEF, device="cpu", progress=False)


def wrong_answers() -> dict[str, Callable[[torch.Tensor], object]]:
    return {
        "float32 of shape (5, 1, 6, 2)": lambda y: y[:, :1],
        "float32 of shape (5, 12, 1, 2)": lambda y: y[:, :, :1],
        "float32 of shape (12, 6, 2)": lambda y: y[0],
        "float32 of shape ()": lambda y: y.mean(),
        "complex64 of shape (5, 12, 6, 2)": lambda y: y.to(torch.complex64),
        "int64 of shape (5, 12, 6, 2)": lambda y: y.long(),
        "a tuple of (float32 of shape (5, 12, 6, 2), float32 of shape (5, 12, 6, 2))": lambda y: (y, y),
        "a tuple of (float32 of shape (5, 12, 6, 2))": lambda y: (y,),
        "None": lambda y: None,
        "an object of type dict": lambda y: {"y": y},
        "an object of type ndarray": lambda y: y.detach().numpy(),
    }


class Changed(TenLines):
    """Answers with something else than its forecast."""

    def __init__(self, problem: object, change: Callable[[torch.Tensor], object], while_training: bool = True) -> None:
        super().__init__(problem)
        self.change, self.while_training = change, while_training

    def forward(self, inputs: Inputs) -> object:
        y = super().forward(inputs)
        return y if self.training and not self.while_training else self.change(y)


@pytest.mark.parametrize("found", wrong_answers())
def test_an_answer_that_is_no_forecast_of_the_horizon_is_refused_wherever_it_enters(found: str, panel: Panel) -> None:
    module = Changed(panel.problem, wrong_answers()[found])
    with pytest.raises(MetricError, match=re.escape(f"found: {found}")) as refused:
        Forecaster("plain", panel.problem, module, {}).forecast(some(panel, "dlinear"))
    assert "'plain' does not answer with a forecast" in str(refused.value)
    assert "shape (5, 12, 6, 2): window, step, entity, channel" in str(refused.value)
    frame = frame_of(panel, panel.parts["val"].start)
    entries: dict[str, Callable[[], object]] = {
        "predict": lambda: Forecaster("plain", panel.problem, module, {}).predict(frame),
        "calibrate": lambda: calibrate(module, panel, (), "plain"),
    }
    for while_training in (True, False):
        build = functools.partial(Changed, change=wrong_answers()[found], while_training=while_training)
        entries[f"fit {while_training}"] = functools.partial(
            fit, plain(build=build), panel, BRIEF, device="cpu", progress=False
        )
    for enter in entries.values():
        with pytest.raises(MetricError, match="'plain' does not answer with a forecast"):
            enter()


def test_a_module_may_answer_with_a_forecast_and_its_fallbacks_while_it_trains_too(panel: Panel) -> None:
    build = functools.partial(Changed, change=lambda y: (y, torch.ones_like(y, dtype=torch.bool)))
    result = fit(plain(build=build), panel, BRIEF, device="cpu", progress=False)
    assert result.curve == fit(plain(), panel, BRIEF, device="cpu", progress=False).curve
    forecast = Forecaster("plain", panel.problem, result.module, {}).forecast(some(panel, "dlinear"))
    assert forecast.fallback is not None
    assert forecast.fallback.all()


def test_a_killed_training_resumes_and_ends_where_it_would_have(panel: Panel, tmp_path: Path) -> None:
    system = get_system("stid")
    four = dataclasses.replace(BRIEF, epochs=4, patience=9)
    whole = fit(system, panel, four, device="cpu", progress=False, work=tmp_path / "whole")

    def kill(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(system, panel, four, device="cpu", progress=False, work=tmp_path / "cut", report=kill)
    resumed = fit(system, panel, four, device="cpu", progress=False, work=tmp_path / "cut")
    assert [r["val_loss"] for r in resumed.curve] == [r["val_loss"] for r in whole.curve]
    window = some(panel, "stid")
    assert torch.equal(answer(resumed.module, window, panel), answer(whole.module, window, panel))
    names = {p.suffix for p in (tmp_path / "cut").rglob("*") if p.is_file()}
    assert names == {".json", ".safetensors"}


def test_a_system_that_forecasts_nan_is_not_published(
    enriched: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stfm_pipeline import training

    broken = dataclasses.replace(get_system("dlinear"), build=Nan)
    monkeypatch.setattr(training, "select_systems", lambda names, spec: [broken])
    outcome = training.train_system("synthetic", "dlinear", enriched, settings, progress=False)
    assert outcome.stage is None
    assert [(c.name, c.passed) for c in outcome.checks] == [("forecasts_are_finite", False)]
    assert enriched.stage("synthetic", "trained_dlinear") is None
