from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stfm_pipeline import worth
from stfm_pipeline.errors import UsageError
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.systems.catalog import get_system
from stfm_pipeline.tasks.forecasting import hide
from stfm_pipeline.train import BUDGETS, Budget
from stfm_pipeline.windows import Panel, load_panel

GROUPS = ("time", "place", "side")


@pytest.fixture
def panel(enriched: Lake, settings: Settings) -> Panel:
    return load_panel(enriched, "synthetic", settings.cache)


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_taken_away_is_gone_and_nothing_else(panel: Panel, group: str) -> None:
    blank = worth.without(panel, group)
    assert blank is not None
    hidden = {k for k, v in blank.problem.tensors.items() if not v.any()}
    changed = {k for k, v in blank.problem.tensors.items() if not torch.equal(v, panel.problem.tensors[k])}
    patches = {"patch_cell", "patch_home"} if group == "place" else set()
    assert changed <= {k for k in hidden if k.startswith(worth.TENSORS[group])} | patches
    origins = panel.origins("val")[:3]
    assert changed or group in worth.ARRAYS, "something was there"
    before, after = (p.gather(origins, ("past", "ahead")) for p in (panel, blank))
    for name, tensor in vars(after).items():
        if name in worth.ARRAYS.get(group, ()):
            assert vars(before)[name].any()
            assert not tensor.any()
        else:
            assert torch.equal(tensor, vars(before)[name])


def test_a_panel_that_knows_no_place_has_none_to_lose(panel: Panel) -> None:
    blank = worth.without(panel, "place")
    assert blank is not None
    assert worth.without(blank, "place") is None


@pytest.mark.parametrize("name", ["stid", "graph-wavenet", "patchstg"])
def test_a_blinded_module_keeps_its_weights_and_forgets_its_problem(panel: Panel, name: str) -> None:
    system = get_system(name)
    torch.manual_seed(0)
    module = system.build(panel.problem).eval()
    with torch.no_grad():
        for norm in (m for m in module.modules() if isinstance(m, torch.nn.BatchNorm1d)):
            norm.running_mean += 0.5  # type: ignore[operator]
    inputs, _ = hide(panel.gather(panel.origins("val")[:2], system.needs), panel.problem.look_back)
    same = worth.blinded(system, module, panel, panel)
    assert torch.equal(same(inputs), module(inputs))
    blank = worth.without(panel, "place")
    assert blank is not None
    other = worth.blinded(system, module, panel, blank)
    assert not torch.equal(other(inputs), module(inputs))
    far = replace(panel, problem=replace(panel.problem, tensors={**panel.problem.tensors, **_moved(panel)}))
    blind = worth.without(far, "place")
    assert blind is not None
    assert torch.equal(worth.blinded(system, module, panel, blind)(inputs), other(inputs)), "place cannot be seen"


def _moved(panel: Panel) -> dict[str, torch.Tensor]:
    tensors = panel.problem.tensors
    home = tensors["patch_home"].roll(1)
    cell = tensors["patch_cell"].flatten().index_put((home,), torch.arange(len(home)))
    patches = {"patch_cell": cell.view(tensors["patch_cell"].shape), "patch_home": home}
    return {"spatial": tensors["spatial"] + 1, "edge_weight": tensors["edge_weight"] * 3, **patches}


def test_variants_are_compared_on_the_same_windows(
    enriched: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BUDGETS, "quick", Budget("quick", epochs=2, patience=2, seeds=1, stride=2))
    stid = get_system("stid")
    stages = worth.measure("synthetic", stid, enriched, settings, "quick", 2, "cpu")
    rows = worth.compare("synthetic", stages, enriched)
    said = {(r["without"], r["when"]) for r in rows}
    whens = (worth.IN_TRAINING, worth.AT_INFERENCE)
    assert said >= {("nothing", None)} | {(worth.TITLES[g], w) for g in GROUPS for w in whens}
    by = {(r["without"], r["when"], r["channel"]): r for r in rows}
    whole, blind = by["nothing", None, "count"], by["side information", worth.AT_INFERENCE, "count"]
    assert blind["mae"] > whole["mae"]
    assert blind["low"] > 0, "the plan says when there are counts"
    assert blind["change"] == pytest.approx(blind["mae"] / whole["mae"] - 1)
    assert whole["seeds"] == 2
    again = worth.measure("synthetic", stid, enriched, settings, "quick", 2, "cpu")
    assert {g: s.version for g, s in again.items()} == {g: s.version for g, s in stages.items()}


def test_a_baseline_has_no_stages_to_lose(enriched: Lake, settings: Settings) -> None:
    with pytest.raises(UsageError, match="is not trained"):
        worth.measure("synthetic", get_system("last-value"), enriched, settings, "quick", 1, "cpu")
