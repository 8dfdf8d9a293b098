"""A champion is made anew on what has been measured since: a new split, the systems trained again, and a decision."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from stfm_pipeline.datasets.catalog import all_datasets, get_dataset
from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.decision import CHAMPION
from stfm_pipeline.lake import Lake
from stfm_pipeline.launch import materialize
from stfm_pipeline.scoring import EVALUATED
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS
from stfm_pipeline.systems.catalog import all_systems, select_systems
from stfm_pipeline.systems.spec import System
from stfm_pipeline.tables import step_us
from stfm_pipeline.training import WARM, stage_of


def retrain(
    name: str,
    lake: Lake,
    settings: Settings,
    *,
    systems: Sequence[str] = (),
    start: str = WARM,
    budget: str = "quick",
    device: str = "auto",
) -> list[str]:
    """Bring the tables up to date with a new split, train, score and decide, as one run in Dagster; its assets.

    Without `systems`, those that were trained on the dataset before; baselines always. Cut short, another call goes on:
    what is published stays, and a split that was asked for is drawn by whatever run comes next.
    """
    spec = get_dataset(name).spec
    chosen = select_systems(list(systems), spec) if systems else _trained_before(spec, lake)
    baselines = [s for s in select_systems([], spec) if s.branch == "baseline"]
    picked = {s.name for s in (*chosen, *baselines)}
    todo = [*STEPS, *(s.key for s in all_systems().values() if s.name in picked), EVALUATED, CHAMPION]
    materialize(name, todo, {"budget": budget, "device": device, "start": start, "new_split": True}, settings)
    return todo


def _trained_before(spec: DatasetSpec, lake: Lake) -> list[System]:
    fit = select_systems([], spec)
    return [s for s in fit if s.branch != "baseline" and lake.stage(spec.name, stage_of(s.name)) is not None] or fit


def retrain_after(spec: DatasetSpec) -> timedelta:
    """How much more data ask for a retraining: as the spec says, or the longest season."""
    step = step_us(spec.retrain_after) if spec.retrain_after else max(spec.seasons) * step_us(spec.harmonize.step)
    return timedelta(microseconds=step)


def due(lake: Lake) -> dict[str, str]:
    """Datasets whose clock has grown enough since the last decision on their champion, with where it ends now."""
    found = {}
    for name, dataset in all_datasets().items():
        decided, signal = lake.stage(name, CHAMPION), lake.stage(name, "harmonized")
        if decided is None or signal is None or "until" not in decided.facts:
            continue
        now, then = (datetime.fromisoformat(end) for end in (signal.facts["end"], decided.facts["until"]))
        if now - then >= retrain_after(dataset.spec):
            found[name] = signal.facts["end"]
    return found
