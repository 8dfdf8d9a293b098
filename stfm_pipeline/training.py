"""enriched -> trained systems: each published like a stage, its models logged to MLflow."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
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
WARM, SCRATCH = "warm", "scratch"
TABLES = ("harmonized", "embedded", "enriched")
TRAINING_CODE = (
    "stfm_pipeline.origins",
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


def table_versions(lake: Lake, name: str) -> dict[str, str]:
    """Data versions of all the tables that models are made from: `enriched` alone holds the joined ones only."""
    return {s: lake.require(name, s).data_version for s in TABLES}


def training_plan(lake: Lake, name: str, system: System, budget: str, start: str = SCRATCH) -> Plan:
    """What a training run of `system` would be made from; budget and start matter only where there is training."""
    from stfm_pipeline.train import BUDGETS

    inputs = table_versions(lake, name)
    spec = get_dataset(name).spec
    config = {
        "system": system.name,
        "training": asdict(system.training) if system.training else None,
        "budget": asdict(BUDGETS[budget]) if system.training else None,
        "task": spec.task.model_dump(),
        "seasons": spec.seasons,
    }
    if system.training and start == WARM:
        config["start"] = WARM
    code = code_version(*TRAINING_CODE, code_of(system.name))
    return Plan(fingerprint(config, code, inputs), inputs)


def fresh(lake: Lake, name: str, stage: str, plan: Plan) -> Stage | None:
    """The published stage if it is what the plan would make again."""
    found = lake.stage(name, stage)
    return found if found is not None and found.fingerprint == plan.mark else None


def trained_already(
    lake: Lake, name: str, system: System, budget: str, start: str | None = None
) -> tuple[Plan, Stage | None]:
    """The plan of a training, and what is published of it; where the start is left open, either start will do."""
    plans = [training_plan(lake, name, system, budget, s) for s in ((start,) if start else (WARM, SCRATCH))]
    stage = stage_of(system.name)
    return next(((p, f) for p in plans if (f := fresh(lake, name, stage, p)) is not None), (plans[-1], None))


def train_system(
    name: str,
    system_name: str,
    lake: Lake,
    settings: Settings,
    *,
    budget: str = "quick",
    device: str = "auto",
    start: str | None = None,
    progress: bool | None = None,
) -> Outcome:
    """Train a system with each of the budget's seeds, calibrate its intervals on val, log everything to MLflow.

    `start` warm: from the champion's weights where it is of this system and they fit; scratch: from the seed's own.
    Left open, a model of either start is kept, and a new one starts from scratch.

    One process at a time trains a system on a dataset; the tables may go on meanwhile.
    """
    (system,) = select_systems([system_name], get_dataset(name).spec)
    with alone(settings.lock(name, stage_of(system.name)), f"training {system.name} on {name}"):
        return _train_system(name, system, lake, settings, budget, device, start, progress)


def _train_system(
    name: str,
    system: System,
    lake: Lake,
    settings: Settings,
    budget: str,
    device: str,
    start: str | None,
    progress: bool | None,
) -> Outcome:
    from stfm_pipeline.train import BUDGETS
    from stfm_pipeline.windows import load_panel

    began = time.perf_counter()
    spec = get_dataset(name).spec
    stage = stage_of(system.name)
    with alone(settings.lock(name, ROAD), f"working on the tables of {name}"):
        plan, found = trained_already(lake, name, system, budget, start)
        if found is not None:
            log.info("%s %s: unchanged, not trained again", name, system.name)
            work.clear(settings, name, stage)
            return Outcome(found, reused=True)
        panel = load_panel(lake, name, settings.cache)
        origin = sources_of(lake, name)
    work.clear(settings, name, stage, but=plan.mark)
    begin = _begin(panel, system, settings, start or SCRATCH, origin["split"])
    seeds = range(BUDGETS[budget].seeds if system.training else 1)
    promise = "every val forecast is a finite number"
    try:
        fitted = [
            _train_seed(panel, system, seed, origin, settings, plan, budget, device, begin, progress) for seed in seeds
        ]
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


@dataclass(frozen=True)
class Beginning:
    """What a training starts from: a champion's weights, or none; `facts` say which, or why none."""

    facts: dict[str, Any]
    weights: dict[str, Any] | None = None

    def __str__(self) -> str:
        if self.weights is not None:
            return f"warm, from version {self.facts['version']}"
        return f"scratch{': ' + self.facts['why'] if 'why' in self.facts else ''}"


def seen_until(lineage: dict[str, Any]) -> dict[str, datetime]:
    """Where the data end that a model, or one that it started from, learned from (train) and was chosen on (val)."""
    ends = {part: [lineage["split"][part][1]] for part in ("train", "val")}
    for part, end in lineage.get("started", {}).get("seen", {}).items():
        ends[part].append(end)
    return {part: max(map(datetime.fromisoformat, e)) for part, e in ends.items()}


def chosen_on(seen: dict[str, datetime], split: dict[str, list[str]]) -> bool:
    """Whether a model was trained or chosen on data of this split's gate; where gate is val, all are chosen on it."""
    parts = ("train",) if split["gate"] == split["val"] else ("train", "val")
    return any(seen[part] > datetime.fromisoformat(split["gate"][0]) for part in parts)


def _begin(panel: Panel, system: System, settings: Settings, start: str, split: dict[str, list[str]]) -> Beginning:
    from stfm_pipeline import registry
    from stfm_pipeline.train import misfit

    if start == SCRATCH or not system.training:
        return Beginning({"start": SCRATCH})
    crowned = registry.champion_version(settings, panel.problem.dataset)
    if crowned is None:
        return Beginning({"start": SCRATCH, "why": "there is no champion"})
    champion = registry.load_model(f"models:/{panel.problem.dataset}/{crowned.version}", settings)
    if champion.system != system.name:
        return Beginning({"start": SCRATCH, "why": f"the champion is of {champion.system}"})
    weights = {k: v.detach() for k, v in champion.module.named_parameters()}
    if (why := misfit(system.module(panel.problem), weights)) is not None:
        return Beginning({"start": SCRATCH, "why": f"version {crowned.version}: {why}"})
    seen = seen_until(champion.lineage)
    if seen["train"] > datetime.fromisoformat(split["train"][1]) or chosen_on(seen, split):
        # History that lands late moves the parts back in time; such a challenger would be judged on what it knows.
        why = (
            f"version {crowned.version} was trained up to {seen['train']} and chosen on data up to {seen['val']}, "
            f"and here train ends at {split['train'][1]} and gate begins at {split['gate'][0]}"
        )
        return Beginning({"start": SCRATCH, "why": why})
    known = {part: str(end) for part, end in seen.items()}
    return Beginning({"start": WARM, "version": int(crowned.version), "run_id": crowned.run_id, "seen": known}, weights)


def _train_seed(
    panel: Panel,
    system: System,
    seed: int,
    origin: dict[str, Any],
    settings: Settings,
    plan: Plan,
    budget: str,
    device: str,
    begin: Beginning,
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
    tags["start"] = str(begin)
    with registry.run(settings, name, f"{system.name} seed {seed}", tags, plan.inputs["enriched"]) as (_, run_id):
        # A checkpoint of another beginning is not gone on from.
        which = f"{plan.mark}-{begin.facts.get('run_id', SCRATCH)}"
        kept = work.folder(settings, name, stage_of(system.name), which, seed) if system.training else None

        def report(row: dict[str, float]) -> None:
            scores = {k: v for k, v in row.items() if k != "epoch"}
            mlflow.log_metrics(scores, step=int(row["epoch"]))

        result = fit(
            system,
            panel,
            BUDGETS[budget],
            seed=seed,
            device=device,
            work=kept,
            report=report,
            progress=progress,
            weights=begin.weights,
        )
        facts = {
            "seconds": result.seconds,
            "peak_mb": result.peak_mb,
            "epochs": result.epochs,
            "val_loss": result.val_loss if result.curve else None,
            "precision": result.precision,
            "seed": seed,
            "started": str(begin),
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
            lineage=lineage(origin, system, seed, plan, budget) | {"started": begin.facts},
        )
        forecaster.levels = LEVELS
        forecaster.offsets = calibrate(forecaster.module, panel, system.needs, system.name)
        if system.training:
            mlflow.log_params({**asdict(system.training), "budget": budget, "seed": seed, "start": str(begin)})
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
    rule = get_dataset(name).spec.harmonize
    return {
        "dataset": name,
        "licence": get_dataset(name).spec.licence,
        "sources": stages["raw"].facts["sources"],
        "landed": landed_of(lake, stages["raw"]),
        "tables": {
            s: {"stage_version": v.version, "data_version": v.data_version, "delta_versions": v.tables}
            for s, v in stages.items()
        },
        "split": split_of(lake, stages["harmonized"]),
        "split_version": stages["harmonized"].facts["split_version"],
        "scaler": {"scale": rule.scale, "per": rule.scale_per, "fitted_on": "train"},
    }


def split_of(lake: Lake, harmonized: Stage) -> dict[str, list[str]]:
    """Start and end of each part."""
    return {r["part"]: [str(r["start"]), str(r["end"])] for r in lake.read(harmonized, "split").to_dicts()}


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
    return [s for s in systems if trained_already(lake, name, get_system(s), budget)[1] is None]
