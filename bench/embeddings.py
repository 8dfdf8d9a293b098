"""Training on stored embeddings, beside training that makes them anew, on the same windows and with the same seed.

`stid` on `nyc-airports`, with the pretrained location encoder beside coordinates and eigenvectors. Anew means: the
calendar of every batch from its time stamps, and what is known of entities (places, spectral density) once an epoch,
into the module's own buffer. Both have to end in the same numbers, bit for bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.child import line
from stfm_pipeline.datasets.catalog import get_dataset, register
from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.embed import frequency, places, temporal
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS
from stfm_pipeline.systems.catalog import get_system
from stfm_pipeline.systems.spec import System
from stfm_pipeline.tables import Signal
from stfm_pipeline.train import Budget, fit
from stfm_pipeline.windows import CALENDAR, Panel, Problem, Window, code_categories, load_panel

NAME, EPOCHS, ROUNDS = "nyc-airports", 2, 2


@dataclass(frozen=True)
class Made:
    """What embeddings are made from, the module that takes them, and the largest change that making them anew made."""

    spec: DatasetSpec
    tables: dict[str, Any]
    signal: Signal
    settings: Settings
    modules: list[nn.Module]

    def module(self, problem: Problem) -> nn.Module:
        self.modules.append(get_system("stid").build(problem))
        return self.modules[-1]

    def of_entities(self, problem: Problem) -> None:
        """Overwrite what the module knows of entities by what is made now."""
        rule, entities = self.spec.embed, self.tables["entities"]
        table, _ = places.place_table(entities, self.tables["edges"], rule, self.settings)
        train = slice(0, self.tables["until"])
        swing = frequency.density(self.signal, train, rule.bands, max(self.spec.seasons))
        tensors = problem.tensors | {
            "spatial": torch.from_numpy(places.features(table)),
            "frequency": torch.from_numpy(frequency.standardised(swing, problem.n)),
        }
        buffer: Tensor = self.modules[-1].get_buffer("places")
        buffer.copy_(replace(problem, tensors=tensors).places)


@dataclass(frozen=True)
class Anew(Panel):
    """A panel without stored embeddings."""

    made: Made | None = None

    def batches(
        self, origins: Tensor, size: int, needs: tuple[str, ...] = (), eyes: Problem | None = None
    ) -> Iterator[tuple[Tensor, Window]]:
        assert self.made is not None
        if self.made.modules and int(origins.min()) < self.parts["val"].start:
            self.made.of_entities(self.problem)
        for chunk, window in super().batches(origins, size, needs, eyes):
            yield chunk, replace(window, calendar=self.calendar(chunk))

    def calendar(self, origins: Tensor) -> Tensor:
        """Codes (b, t, z, k) of the windows around `origins`, from their time stamps."""
        p = self.problem
        steps = origins[:, None] + torch.arange(-p.look_back, p.horizon)
        times, at = np.unique(self.times[steps.numpy()], return_inverse=True)
        table = temporal.calendar(times.astype("datetime64[us]"), p.zones, p.step_us, p.countries)
        codes = table.select(CALENDAR).to_numpy().reshape(len(times), len(p.zones), len(CALENDAR))
        known = [p.tensors[f"seen_{f}"].numpy() for f in CALENDAR]
        return torch.from_numpy(code_categories(codes[at.reshape(steps.shape)].astype(np.int64), known))


def prepare(home: Path) -> tuple[Panel, Anew]:
    """The panel of a fresh road, and one that makes its embeddings anew."""
    dataset = get_dataset(NAME)
    embed = dataset.spec.embed
    wider = embed.model_copy(update={"spatial": (*embed.spatial, "geoclip")})
    dataset = dataset.model_copy(update={"spec": dataset.spec.model_copy(update={"embed": wider})})
    register(dataset)
    settings = Settings(home=home)
    lake = Lake(str(home / "lake"))
    for stage in STEPS:
        materialize(NAME, stage, lake, settings)
    panel = load_panel(lake, NAME, settings.cache)
    harmonized = lake.require(NAME, "harmonized")
    tables = {name: lake.read(harmonized, name) for name in ("entities", "edges")}
    signal = Signal.from_frame(lake.read(harmonized, "signal"), list(panel.problem.entities), panel.problem.channels)
    tables["until"] = panel.parts["train"].stop
    return panel, Anew(**vars(panel), made=Made(dataset.spec, tables, signal, settings, []))


def trained(panel: Panel, system: System, budget: Budget) -> tuple[float, dict[str, Tensor], list[float]]:
    """Seconds per epoch with its validation, the weights, and the losses of each epoch."""
    fitted = fit(system, panel, budget, device="cpu", progress=False)
    losses = [row[k] for row in fitted.curve for k in sorted(row) if k.endswith("loss")]
    return fitted.seconds / fitted.epochs, fitted.module.state_dict(), losses


def main(quick: bool) -> None:
    budget = Budget("bench", epochs=EPOCHS, patience=EPOCHS, seeds=1, stride=24 if quick else 4)
    with tempfile.TemporaryDirectory(prefix="stfm-embeddings-") as home:
        stored, anew = prepare(Path(home))
        assert anew.made is not None
        system = get_system("stid")
        live = replace(system, build=anew.made.module)
        runs = [(trained(stored, system, budget), trained(anew, live, budget)) for _ in range(ROUNDS)]
    kept, made = (min(run[k][0] for run in runs) for k in (0, 1))
    samples = len(stored.origins("train")[:: budget.stride])
    print(
        f"     stid on {NAME}, {samples} windows an epoch, {stored.problem.places.shape[1]} numbers per entity: "
        f"{kept:.2f} s an epoch with stored embeddings, {made:.2f} s with embeddings made anew"
    )
    line("an epoch with embeddings made anew / with stored ones", f"{made / kept:.1f}", "above 1", made > kept)
    same = all(
        a[2] == b[2] and a[1].keys() == b[1].keys() and all(torch.equal(a[1][k], b[1][k]) for k in a[1])
        for a, b in runs
    )
    line("losses and weights of both", "equal" if same else "differ", "equal, bit for bit", same)
