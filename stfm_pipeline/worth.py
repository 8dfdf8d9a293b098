"""What the stages of the road are worth to a system: its scores without time, place, frequency or side information.

Each is taken away twice: in training, so that a system makes do without it, and from a system that was trained with it,
so that it is absent only where forecasts are made. What a system learns by itself about an entity, such as an embedding
per node, stays. Test is scored, and nothing is chosen by it; every variant is published as a stage of its own.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from stfm_pipeline import work
from stfm_pipeline.alone import alone
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.errors import UsageError
from stfm_pipeline.evaluate.metrics import Sums, observed_blocks, paired_bootstrap, season_block
from stfm_pipeline.evaluate.run import score
from stfm_pipeline.fingerprint import code_version, fingerprint
from stfm_pipeline.forecaster import Forecaster
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.reproduce import EVALUATION_CODE
from stfm_pipeline.road import ROAD
from stfm_pipeline.settings import Settings
from stfm_pipeline.systems.spec import System
from stfm_pipeline.train import BUDGETS, fit
from stfm_pipeline.training import Plan, fresh, training_plan
from stfm_pipeline.windows import Arrays, Panel, load_panel

log = logging.getLogger("stfm")
WHOLE = "whole"
TENSORS = {
    "time": ("seen_", "climatology"),
    "place": ("spatial", "edge_"),
    "frequency": ("frequency",),
    "side": ("static", "text"),
}
ARRAYS = {"time": ("calendar",), "side": ("past", "past_observed", "ahead", "ahead_observed")}
TITLES = {"time": "time", "place": "place", "frequency": "frequency", "side": "side information"}
IN_TRAINING, AT_INFERENCE = "removed in training", "absent at inference"


def without(panel: Panel, group: str) -> Panel | None:
    """The panel as it is to somebody who does not know one group of TENSORS and ARRAYS; None if it has none of it.

    Shapes stay, so that a system is as large as with it: edges lead from the first entity to itself and weigh nothing,
    and patches hold entities in the order of their index. A grid stays one to a system that works on frames.
    """
    p, known = panel.problem, False
    tensors: dict[str, Tensor] = dict(p.tensors)
    for name, tensor in p.tensors.items():
        if name.startswith(TENSORS[group]):
            known |= bool(tensor.any())
            tensors[name] = torch.zeros_like(tensor)
    if group == "place" and "patch_cell" in p.tensors:
        cell, home = p.tensors["patch_cell"], torch.arange(p.n)
        in_order = torch.arange(cell.numel()).clamp(max=p.n - 1).view(cell.shape)
        tensors |= {"patch_cell": in_order.to(cell.dtype), "patch_home": home.to(p.tensors["patch_home"].dtype)}
        known |= not torch.equal(in_order, cell)
    arrays = {k: getattr(panel.arrays, k) for k in ARRAYS.get(group, ())}
    known |= any(bool(a.numel()) and bool(a.any()) for a in arrays.values())
    if not known:
        return None
    blank: Arrays = replace(panel.arrays, **{k: torch.zeros_like(a) for k, a in arrays.items()})
    return replace(panel, problem=replace(p, tensors=tensors), arrays=blank)


def blinded(system: System, trained: nn.Module, panel: Panel, blank: Panel) -> nn.Module:
    """A trained module that sees what `blank` knows: its weights stay, what it keeps of its problem is the blank's."""
    before, other = system.module(panel.problem).state_dict(), system.module(blank.problem)
    learned = dict(trained.named_parameters())
    state = other.state_dict()
    for name, tensor in trained.state_dict().items():
        # A buffer that training has changed, such as a running mean, is learned as well.
        if name in learned or not torch.equal(before[name], tensor):
            state[name] = tensor
    other.load_state_dict(state)
    return other.eval()


@dataclass(frozen=True)
class Variant:
    """A system trained without one group, or with the whole."""

    system: System
    group: str

    @property
    def stage(self) -> str:
        return f"worth_{self.system.key}_{self.group}"


def measure(name: str, system: System, lake: Lake, settings: Settings, budget: str, seeds: int, device: str) -> Stages:
    """Train and score every variant that there is; what is unchanged since is not measured again.

    Raises `UsageError` for a system that is not trained.
    """
    if system.training is None:
        raise UsageError(f"'{system.name}' is not trained: it has no use for embeddings", fix="name a learned system")
    found = {}
    for group in (WHOLE, *TENSORS):
        variant = Variant(system, group)
        with alone(settings.lock(name, variant.stage), f"measuring {system.name} on {name}"):
            stage = _measure(name, variant, lake, settings, budget, seeds, device)
        if stage is not None:
            found[group] = stage
    return found


Stages = dict[str, Stage]


def _measure(
    name: str, variant: Variant, lake: Lake, settings: Settings, budget: str, seeds: int, device: str
) -> Stage | None:
    began = time.perf_counter()
    system = variant.system
    with alone(settings.lock(name, ROAD), f"working on the tables of {name}"):
        plan = _plan(lake, name, variant, budget, seeds)
        if (found := fresh(lake, name, variant.stage, plan)) is not None:
            work.clear(settings, name, variant.stage)
            return found
        panel = load_panel(lake, name, settings.cache)
    blanks = {g: b for g in TENSORS if (b := without(panel, g)) is not None}
    if variant.group != WHOLE:
        if variant.group not in blanks:
            return None
        panel, blanks = blanks[variant.group], {}
    work.clear(settings, name, variant.stage, but=plan.mark)
    rows: list[pl.DataFrame] = []
    for seed in range(seeds):
        kept = work.folder(settings, name, variant.stage, plan.mark, seed)
        module = fit(system, panel, BUDGETS[budget], seed=seed, device=device, work=kept).module
        seen = {WHOLE: (module, panel)} | {g: (blinded(system, module, panel, b), b) for g, b in blanks.items()}
        for group, (eyes, data) in seen.items():
            sums = score(Forecaster(system.name, data.problem, eyes, {}), data, "test", system.needs).sums
            rows.append(_windows(sums, panel.problem.channels).with_columns(seed=pl.lit(seed), unseen=pl.lit(group)))
    facts = {"system": system.name, "group": variant.group, "budget": budget, "seeds": seeds}
    stage = lake.publish(
        name, variant.stage, {"windows": pl.concat(rows)}, fingerprint=plan.mark, facts=facts, inputs=plan.inputs
    )
    work.clear(settings, name, variant.stage)
    log.info("%s %s: measured in %.0f s", name, variant.stage, time.perf_counter() - began)
    return stage


def _plan(lake: Lake, name: str, variant: Variant, budget: str, seeds: int) -> Plan:
    base = training_plan(lake, name, variant.system, budget)
    code = code_version(__name__, *EVALUATION_CODE)
    return Plan(fingerprint([variant.group, seeds, asdict(BUDGETS[budget])], base.mark + code, {}), base.inputs)


def _windows(sums: Sums, channels: tuple[str, ...]) -> pl.DataFrame:
    windows, c = sums.window_abs.shape
    return pl.DataFrame(
        {
            "window": np.repeat(np.arange(windows), c),
            "channel": np.tile(np.array(channels), windows),
            "error": sums.window_abs.ravel(),
            "cells": sums.window_count.ravel(),
        }
    )


def compare(name: str, stages: Stages, lake: Lake) -> list[dict[str, Any]]:
    """Test MAE of every variant per channel: mean and deviation over seeds, and the change against the whole system.

    The change is that of the error summed over seeds, positive where the variant is worse, with its 95 % interval by
    the paired block bootstrap over windows.
    """
    spec = get_dataset(name).spec
    block = season_block(spec.task.horizon, spec.seasons)
    rows = []
    for label, when, table in _variants(stages, lake):
        for channel in spec.channel_names:
            ours = table.filter(channel=channel)
            whole = lake.read(stages[WHOLE], "windows").filter(channel=channel, unseen=WHOLE)
            each = ours.group_by("seed").agg(mae=pl.col("error").sum() / pl.col("cells").sum()).sort("seed")["mae"]
            row = {"without": label, "when": when, "channel": channel, "mae": each.mean()}
            row |= {"deviation": each.std() if len(each) > 1 else None, "seeds": len(each)}
            if when is not None:
                a, b = (t.group_by("window").agg(pl.col("error", "cells").sum()).sort("window") for t in (whole, ours))
                blocks = observed_blocks(a["cells"].to_numpy()[:, None], block)
                mine, theirs = (t["error"].to_numpy()[:, None] for t in (b, a))
                margin, low, high = paired_bootstrap(mine, theirs, block, blocks=blocks)
                row |= {"change": -margin, "low": -high, "high": -low}
            rows.append(row)
    return rows


def _variants(stages: Stages, lake: Lake) -> Iterator[tuple[str, str | None, pl.DataFrame]]:
    whole = lake.read(stages[WHOLE], "windows")
    yield "nothing", None, whole.filter(unseen=WHOLE)
    for group, title in TITLES.items():
        if group in stages:
            yield title, IN_TRAINING, lake.read(stages[group], "windows")
        absent = whole.filter(unseen=group)
        if len(absent):
            yield title, AT_INFERENCE, absent
