"""enriched -> trained systems: each published like a stage, its models logged to MLflow."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from stfm_pipeline import work
from stfm_pipeline.alone import alone
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.errors import MetricError
from stfm_pipeline.fingerprint import code_version, fingerprint
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.road import ROAD, Outcome
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import landed_of
from stfm_pipeline.systems.catalog import code_of, get_system, select_systems
from stfm_pipeline.tables import Check

if TYPE_CHECKING:
    from stfm_pipeline.systems.spec import System
    from stfm_pipeline.windows import Panel

log = logging.getLogger("stfm")
TRAINING_CODE = (
    "stfm_pipeline.windows",
    "stfm_pipeline.tasks",
    "stfm_pipeline.backbones",
    "stfm_pipeline.train",
    "stfm_pipeline.forecaster",
    "stfm_pipeline.evaluate.calibration",
)


def stage_of(system: str) -> str:
    """The stage name of a trained system."""
    return f"trained_{system.replace('-', '_')}"


@dataclass(frozen=True)
class Plan:
    """Why a step would run: its fingerprint, and the inputs it would be made from."""

    mark: str
    inputs: dict[str, str]


def training_plan(lake: Lake, name: str, system: System, budget: str) -> Plan:
    """What a training run of `system` would be made from; the budget matters only where there is training."""
    from stfm_pipeline.train import BUDGETS

    inputs = {s: lake.require(name, s).data_version for s in ("harmonized", "embedded", "enriched")}
    spec = get_dataset(name).spec
    config = {
        "system": system.name,
        "training": asdict(system.training) if system.training else None,
        "budget": asdict(BUDGETS[budget]) if system.training else None,
        "task": spec.task.model_dump(),
        "seasons": spec.seasons,
    }
    code = code_version(*TRAINING_CODE, code_of(system.name))
    return Plan(fingerprint(config, code, inputs), inputs)


def fresh(lake: Lake, name: str, stage: str, plan: Plan) -> Stage | None:
    """The published stage if it is what the plan would make again."""
    found = lake.stage(name, stage)
    return found if found is not None and found.fingerprint == plan.mark else None


def train_system(
    name: str,
    system_name: str,
    lake: Lake,
    settings: Settings,
    *,
    budget: str = "quick",
    device: str = "auto",
    progress: bool | None = None,
) -> Outcome:
    """Train a system with each of the budget's seeds, calibrate its intervals on val, log everything to MLflow.

    One process at a time trains a system on a dataset; the tables may go on meanwhile.
    """
    (system,) = select_systems([system_name], get_dataset(name).spec)
    with alone(settings.lock(name, stage_of(system.name)), f"training {system.name} on {name}"):
        return _train_system(name, system, lake, settings, budget, device, progress)


def _train_system(
    name: str, system: System, lake: Lake, settings: Settings, budget: str, device: str, progress: bool | None
) -> Outcome:
    from stfm_pipeline.train import BUDGETS
    from stfm_pipeline.windows import load_panel

    began = time.perf_counter()
    spec = get_dataset(name).spec
    stage = stage_of(system.name)
    with alone(settings.lock(name, ROAD), f"working on the tables of {name}"):
        plan = training_plan(lake, name, system, budget)
        if (found := fresh(lake, name, stage, plan)) is not None:
            log.info("%s %s: unchanged, not trained again", name, system.name)
            work.clear(settings, name, stage)
            return Outcome(found, reused=True)
        panel = load_panel(lake, name, settings.cache)
        origin = sources_of(lake, name)
    work.clear(settings, name, stage, but=plan.mark)
    seeds = range(BUDGETS[budget].seeds if system.training else 1)
    promise = "every val forecast is a finite number"
    try:
        fitted = [_train_seed(panel, system, seed, origin, settings, plan, budget, device, progress) for seed in seeds]
    except MetricError as error:
        log.error("%s %s: not published: %s", name, system.name, error)
        return Outcome(None, False, [Check("forecasts_are_finite", False, promise, {"broken": str(error)})])
    losses = [f["val_loss"] for f in fitted]
    chosen = min(seeds, key=lambda s: losses[s]) if system.training else 0
    curves = [row for f in fitted for row in f.pop("curve")]
    schema = {"seed": pl.Int64, "epoch": pl.Float64, "train_loss": pl.Float64, "val_loss": pl.Float64}
    facts = {
        "system": system.name,
        "budget": budget if system.training else None,
        "chosen": chosen,
        "seeds": fitted,
        "licence": spec.licence,
    }
    published = lake.publish(
        name,
        stage,
        {"curve": pl.DataFrame(curves, schema=schema)},
        fingerprint=plan.mark,
        facts=facts,
        inputs=plan.inputs,
    )
    work.clear(settings, name, stage)
    seconds = time.perf_counter() - began
    log.info("%s %s: trained with %d seed(s) in %.1f s", name, system.name, len(fitted), seconds)
    finite = Check("forecasts_are_finite", True, promise, {})
    return Outcome(published, False, [finite], seconds)


def _train_seed(
    panel: Panel,
    system: System,
    seed: int,
    origin: dict[str, Any],
    settings: Settings,
    plan: Plan,
    budget: str,
    device: str,
    progress: bool | None,
) -> dict[str, Any]:
    import mlflow

    from stfm_pipeline import registry
    from stfm_pipeline.evaluate.calibration import LEVELS, calibrate
    from stfm_pipeline.forecaster import Forecaster
    from stfm_pipeline.predict import frame_of
    from stfm_pipeline.train import BUDGETS, fit

    name = panel.problem.dataset
    spec = get_dataset(name).spec
    tags = {"stage": "training", "system": system.name, "licence": spec.licence, "seed": str(seed), "budget": budget}
    with registry.run(settings, name, f"{system.name} seed {seed}", tags, plan.inputs["enriched"]) as (_, run_id):
        kept = work.folder(settings, name, stage_of(system.name), plan.mark, seed) if system.training else None

        def report(row: dict[str, float]) -> None:
            scores = {k: v for k, v in row.items() if k != "epoch"}
            mlflow.log_metrics(scores, step=int(row["epoch"]))

        result = fit(
            system, panel, BUDGETS[budget], seed=seed, device=device, work=kept, report=report, progress=progress
        )
        facts = {
            "seconds": result.seconds,
            "peak_mb": result.peak_mb,
            "epochs": result.epochs,
            "val_loss": result.val_loss if result.curve else None,
            "precision": result.precision,
            "seed": seed,
            "budget": budget if system.training else None,
            "licence": spec.licence,
            "side_information": {"past": list(panel.problem.past), "ahead": list(panel.problem.ahead)},
        }
        absent = {c.name: c.absent for c in spec.channels}
        absent |= {c: j.absent for j in spec.joins if j.availability == "ahead" for c in j.columns}
        forecaster = Forecaster(
            system.name,
            panel.problem,
            result.module,
            absent,
            facts=facts,
            lineage=lineage(origin, system, seed, plan, budget),
        )
        forecaster.levels = LEVELS
        forecaster.offsets = calibrate(forecaster.module, panel, system.needs, system.name)
        if system.training:
            mlflow.log_params({**asdict(system.training), "budget": budget, "seed": seed})
        mlflow.log_metrics({"seconds": result.seconds, "peak_mb": result.peak_mb, "trainable": forecaster.trainable})
        two = panel.problem.entities[:2]
        example = frame_of(panel, panel.parts["train"].stop, two).with_columns(
            pl.col("ds").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
        )
        uri = registry.log_forecaster(forecaster, example.to_pandas())
    curve = [{"seed": seed, **row} for row in result.curve]
    return {"seed": seed, "run_id": run_id, "uri": uri, "curve": curve, **facts}


def sources_of(lake: Lake, name: str) -> dict[str, Any]:
    """Which raw bytes and which tables a dataset's current stages are."""
    stages = {s: lake.require(name, s) for s in ("raw", "harmonized", "embedded", "enriched")}
    return {
        "dataset": name,
        "licence": get_dataset(name).spec.licence,
        "sources": stages["raw"].facts["sources"],
        "landed": landed_of(lake, stages["raw"]),
        "tables": {
            s: {"stage_version": v.version, "data_version": v.data_version, "delta_versions": v.tables}
            for s, v in stages.items()
        },
        "split": {
            r["part"]: [str(r["start"]), str(r["end"])] for r in lake.read(stages["harmonized"], "split").to_dicts()
        },
        "scaler": {"per": get_dataset(name).spec.harmonize.scale_per, "fitted_on": "train"},
    }


def lineage(origin: dict[str, Any], system: System, seed: int, plan: Plan, budget: str) -> dict[str, Any]:
    """Which raw bytes, which tables and which code made a model."""
    from importlib.metadata import version

    import stfm_pipeline

    return {
        **origin,
        "system": system.name,
        "seed": seed,
        "budget": budget if system.training else None,
        "fingerprint": plan.mark,
        "stfm_pipeline": stfm_pipeline.__version__,
        "packages": {p: version(p) for p in ("torch", "polars", "numpy", "mlflow")},
    }


def stale_systems(lake: Lake, name: str, systems: Sequence[str], budget: str, data_is_stale: bool) -> list[str]:
    """The systems that a run has to train."""
    if data_is_stale:
        return list(systems)
    return [
        s for s in systems if fresh(lake, name, stage_of(s), training_plan(lake, name, get_system(s), budget)) is None
    ]
