"""How much of what can be learned our systems learn: generated data, the best forecast of which is known exactly.

Per system, the share of the distance from the best baseline's MAE to the optimum's that is closed on test: same
windows, budget and seed. The optimum is that of the oracle on these very windows. `graph-wavenet` also meets the same
graph with its entities exchanged, and works without the edges that it learns itself. What can be closed
at most without side information, and by looking at each series alone, is printed beside it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.child import line
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.evaluate.oracle import oracle
from stfm_pipeline.evaluate.run import score
from stfm_pipeline.forecaster import Forecaster
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS
from stfm_pipeline.systems.catalog import get_system
from stfm_pipeline.systems.graph_wavenet import GraphWaveNet
from stfm_pipeline.systems.spec import System
from stfm_pipeline.train import BUDGETS, Budget, fit
from stfm_pipeline.truth import MEAN_ABS, LinearGaussian
from stfm_pipeline.windows import Panel, load_panel

BASELINES = ("last-value", "seasonal-naive", "historical-average", "historical-median", "constant")
GOAL = 0.8


@dataclass(frozen=True)
class Contender:
    """A system as it is trained here; `goal` says whether it is meant to close most of the distance, or not to."""

    system: System
    said: str = ""
    exchanged: bool = False
    goal: bool | None = None

    @property
    def name(self) -> str:
        return f"{self.system.name}{', ' if self.said else ''}{self.said}"


def contenders() -> dict[str, tuple[Contender, ...]]:
    """Who is trained on which dataset."""
    net = get_system("graph-wavenet")
    given = replace(net, build=partial(GraphWaveNet, adaptive=False))
    return {
        "advected-field": (
            Contender(get_system("simvp"), goal=True),
            Contender(get_system("stid")),
            Contender(get_system("dlinear")),
        ),
        "diffusing-graph": (
            Contender(net, goal=True),
            Contender(given, "given edges alone", goal=True),
            Contender(net, "entities of the edges exchanged", exchanged=True, goal=False),
            Contender(given, "given edges alone, exchanged", exchanged=True, goal=False),
            Contender(get_system("stid")),
            Contender(get_system("dlinear")),
        ),
    }


def exchanged(panel: Panel) -> Panel:
    """The same graph between other entities: every edge keeps its weight and loses its meaning."""
    order = torch.randperm(panel.problem.n, generator=torch.Generator().manual_seed(0))
    edges = order[panel.problem.tensors["edge_index"]]
    return replace(panel, problem=replace(panel.problem, tensors=panel.problem.tensors | {"edge_index": edges}))


def measured(forecaster: Forecaster, panel: Panel, needs: tuple[str, ...]) -> NDArray[np.float64]:
    """MAE on test (horizon + 1, c), the average first."""
    count, size = score(forecaster, panel, "test", needs).sums.cells["data"][:2]
    return np.concatenate([size.sum(0, keepdims=True) / count.sum(0), size / count])


def trained(panel: Panel, contender: Contender, budget: Budget) -> NDArray[np.float64]:
    system = contender.system
    shown = exchanged(panel) if contender.exchanged else panel
    fitted = fit(system, shown, budget, progress=False)
    return measured(Forecaster(system.name, shown.problem, fitted.module, {}), shown, system.needs)


def rows(name: str, field: tuple[Contender, ...], home: Path, budget: Budget) -> Iterator[tuple[Contender, float]]:
    """Print a line per system; yield the share that each closes, mean over channels."""
    settings = Settings(home=home)
    lake = Lake(str(home / "lake"))
    for stage in STEPS:
        materialize(name, stage, lake, settings)
    panel = load_panel(lake, name, settings.cache)
    p, dataset = panel.problem, get_dataset(name)
    assert dataset.truth is not None
    truth = dataset.truth()
    best = oracle(truth, p)
    assert best is not None
    assert isinstance(truth, LinearGaussian)
    floor = measured(best, panel, ("past", "ahead"))
    stated, blind = (truth.optimum(p.horizon, side=s)[truth.channel]["avg"]["mae"] for s in (True, False))
    alone = MEAN_ABS * truth.alone(p.horizon, p.look_back).mean()
    base = {b: trained(panel, Contender(get_system(b)), budget) for b in BASELINES}
    first = min(base, key=lambda b: float((base[b][0] / floor[0]).mean()))
    # Near steps and far ones have a best baseline each.
    lowest = np.min(list(base.values()), axis=0)
    reach, own = (100 * float((lowest[0] - e)[0] / (lowest[0] - stated)[0]) for e in (blind, alone))
    print(
        f"     {name}: {len(panel.origins('test'))} windows of test; MAE of the best baseline, {first}: "
        f"{_each(lowest[0])}; of the optimum: {_each(floor[0])}, stated {stated:.4f}; a system can close "
        f"{reach:.0f} % at most without side information, {own:.0f} % with each series alone"
    )
    steps = [0, 1, 2, 3, *sorted({min(k, p.horizon) for k in (6, p.horizon)} - {1, 2, 3})]
    print(f"     {'system':50} MAE      closed on average, and at steps {', '.join(map(str, steps[1:]))}")
    for contender in field:
        began = time.perf_counter()
        mae = trained(panel, contender, budget)
        closed = (lowest - mae) / (lowest - floor)
        shares = "  ".join(_each(100 * closed[k], "{:4.0f} %") for k in steps)
        print(f"     {contender.name:50} {_each(mae[0])}  {shares}  {time.perf_counter() - began:.0f} s", flush=True)
        yield contender, float(closed[0].mean())


def _each(values: NDArray[np.float64], form: str = "{:.4f}") -> str:
    return " / ".join(form.format(float(v)) for v in values)


def main(quick: bool) -> None:
    budget = BUDGETS["quick" if quick else "standard"]
    with tempfile.TemporaryDirectory(prefix="stfm-oracle-") as folder:
        for name, field in contenders().items():
            for contender, share in list(rows(name, field, Path(folder), budget)):
                if contender.goal is not None:
                    line(
                        f"{name}, {contender.name}: share of the distance to the optimum that is closed",
                        f"{100 * share:.0f} %",
                        f"{'at least' if contender.goal else 'below'} {100 * GOAL:.0f} %",
                        (share >= GOAL) == contender.goal,
                    )
