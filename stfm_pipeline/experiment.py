"""enriched -> trained systems -> evaluation -> champion: the road's second half, each step published like a stage."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from stfm_pipeline import work
from stfm_pipeline.alone import alone
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.errors import MetricError, StfmError
from stfm_pipeline.fingerprint import code_version, fingerprint
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.road import ROAD, Outcome
from stfm_pipeline.settings import Settings
from stfm_pipeline.systems.catalog import all_systems, code_of, get_system, select_systems
from stfm_pipeline.tables import Check

if TYPE_CHECKING:
    from stfm_pipeline.evaluate.run import Entry, Evaluation
    from stfm_pipeline.forecaster import Forecaster
    from stfm_pipeline.systems.spec import System
    from stfm_pipeline.windows import Panel

log = logging.getLogger("stfm")
EVALUATED, CHAMPION = "evaluated", "champion"
Trained = list[tuple["System", Stage]]
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
        "landed": stages["raw"].facts.get("landed", []),
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


def trained_systems(lake: Lake, name: str) -> Trained:
    """Systems trained on the dataset's current enriched stage."""
    enriched = lake.require(name, "enriched")
    found = [(s, lake.stage(name, stage_of(s.name))) for s in all_systems().values()]
    return [(s, t) for s, t in found if t is not None and t.inputs.get("enriched") == enriched.data_version]


def evaluation_plan(name: str, trained: Trained) -> Plan:
    """What an evaluation would be made from: every system trained on the current data."""
    inputs = {t.name: t.data_version for _, t in trained}
    spec = get_dataset(name).spec
    code = code_version("stfm_pipeline.evaluate", "stfm_pipeline.forecaster", "stfm_pipeline.windows")
    return Plan(fingerprint({"task": spec.task.model_dump(), "title": spec.title}, code, inputs), inputs)


def entries(trained: Trained, settings: Settings) -> list[Entry]:
    """Trained systems with their seeds loaded from MLflow."""
    from stfm_pipeline.evaluate.run import Entry
    from stfm_pipeline.registry import load_model

    return [
        Entry(
            system,
            [load_model(s["uri"], settings) for s in stage.facts["seeds"]],
            [s["run_id"] for s in stage.facts["seeds"]],
            stage.facts["chosen"],
        )
        for system, stage in trained
    ]


def evaluated_already(lake: Lake, settings: Settings, name: str, plan: Plan) -> Stage | None:
    """The published evaluation if it would come out the same, which takes the champion that it met."""
    found = fresh(lake, name, EVALUATED, plan)
    return found if found is not None and _still_meets(found, settings) else None


def _still_meets(evaluated: Stage, settings: Settings) -> bool:
    """Whether the crown is where it was, or with the candidate who has won it since."""
    from stfm_pipeline import registry

    now = registry.champion_version(settings, evaluated.dataset)
    run = now.run_id if now is not None else None
    return run in (evaluated.facts.get("met"), evaluated.facts["candidate"]["run_id"])


def evaluate_dataset(name: str, lake: Lake, settings: Settings) -> Outcome:
    """Score every trained system, write the report, log both to MLflow and publish the leaderboard."""
    with alone(settings.lock(name, EVALUATED), f"scoring the systems of {name}"):
        return _evaluate_dataset(name, lake, settings)


def _evaluate_dataset(name: str, lake: Lake, settings: Settings) -> Outcome:
    import mlflow

    from stfm_pipeline import registry
    from stfm_pipeline.evaluate import report
    from stfm_pipeline.evaluate.run import evaluate
    from stfm_pipeline.windows import load_panel

    began = time.perf_counter()
    spec = get_dataset(name).spec
    with alone(settings.lock(name, ROAD), f"working on the tables of {name}"):
        trained = trained_systems(lake, name)
        plan = evaluation_plan(name, trained)
        if (found := evaluated_already(lake, settings, name, plan)) is not None:
            log.info("%s evaluated: unchanged, not scored again", name)
            return Outcome(found, reused=True)
        panel = load_panel(lake, name, settings.cache)
        harmonized, digest = lake.require(name, "harmonized"), lake.require(name, "enriched").data_version
    contenders = entries(trained, settings)
    crowned = registry.champion_version(settings, name)
    runs = {run for e in contenders for run in e.runs}
    rival: Forecaster | None = None
    if crowned is not None and crowned.run_id not in runs:
        champion = registry.load_model(f"models:/{name}@{registry.CHAMPION}", settings)
        rival = champion if champion.problem.to_config() == panel.problem.to_config() else None
    label = f"champion (version {crowned.version})" if crowned is not None else "champion"
    evaluation = evaluate(spec, panel, contenders, rival, label, notes=_notes(spec, lake, crowned, rival, runs))
    leader = next(e for e in contenders if e.system.name == evaluation.candidate)
    run_id = leader.runs[leader.chosen]
    seeds = next(stage.facts["seeds"] for system, stage in trained if system.name == leader.system.name)
    uri = next(s["uri"] for s in seeds if s["run_id"] == run_id)
    html = report.render(
        evaluation, lake.read(harmonized, "entities"), lake.read(harmonized, "edges"), harmonized.facts
    )
    path = report.write(html, settings.root / "reports" / name / f"{plan.mark}.html")
    tags = {"stage": "evaluation", "candidate": evaluation.candidate, "licence": spec.licence}
    with registry.run(settings, name, "evaluation", tags, digest) as (_, eval_run):
        mlflow.log_artifact(str(path), "report")
        scores = {
            f"{r.split}/{r.system}/{r.channel or 'all'}/{r.scale}/mae".replace("@", "-"): r.mae
            for r in evaluation.rows
            if r.horizon == "avg"
        }
        mlflow.log_metrics(scores)
    facts = {
        "licence": spec.licence,
        "ranking": evaluation.ranking,
        "candidate": {"system": evaluation.candidate, "run_id": run_id, "uri": uri},
        "met": crowned.run_id if crowned is not None else None,
        "decision": asdict(evaluation.decision),
        "margins": evaluation.margins,
        "coverage": evaluation.coverage,
        "fallback": evaluation.fallback,
        "cost": evaluation.cost,
        "without_side": evaluation.without_side,
        "warning": evaluation.warning,
        "notes": evaluation.notes,
        "report": str(path),
        "run_id": eval_run,
    }
    rows = pl.DataFrame([{**asdict(r), "horizon": str(r.horizon)} for r in evaluation.rows], infer_schema_length=None)
    published = lake.publish(
        name, EVALUATED, {"leaderboard": rows}, fingerprint=plan.mark, facts=facts, inputs=plan.inputs
    )
    seconds = time.perf_counter() - began
    log.info(
        "%s evaluated: %s is the candidate, best on val of all but the baselines, in %.1f s",
        name,
        evaluation.candidate,
        seconds,
    )
    return Outcome(published, False, _checks(evaluation), seconds)


def _notes(spec: DatasetSpec, lake: Lake, crowned: Any, rival: Any, runs: Sequence[str] | set[str]) -> list[str]:
    notes = []
    if spec.task.look_back < min(spec.seasons):
        notes.append(
            f"no season fits into a look-back of {spec.task.look_back} steps: seasonal-naive repeats the last value"
        )
    if unseen := lake.require(spec.name, "embedded").facts["unseen_categories"]:
        notes.append(f"calendar categories that training never saw contribute nothing: {_plainly(unseen)}")
    if any(u.startswith("dow ") for u in unseen):
        notes.append("on days of the week that training never saw, historical-* fall back on the time of day alone")
    if crowned is not None and rival is None and crowned.run_id not in runs:
        notes.append(
            f"version {crowned.version} answers another problem (entities, channels or lengths) and was not met"
        )
    return notes


def _plainly(unseen: Sequence[str]) -> str:
    """`dow 1` as Tuesday; times of day are counted, not listed."""
    from calendar import day_name

    from stfm_pipeline.embed.temporal import HOLIDAY

    codes = [(feature, int(code)) for feature, code in (u.split(" ") for u in unseen)]
    words = [day_name[c] for f, c in codes if f == "dow"] + [HOLIDAY[c] for f, c in codes if f == "holiday"]
    times = sum(f == "tod" for f, _ in codes)
    return ", ".join(words + ([f"{times} times of day"] if times else []))


def _checks(evaluation: Evaluation) -> list[Check]:
    return [
        Check(
            "scored_on_identical_cells",
            len({(r.split, r.channel, r.n) for r in evaluation.rows if r.horizon == "avg" and r.scale == "data"})
            == len({(r.split, r.channel) for r in evaluation.rows if r.horizon == "avg" and r.scale == "data"}),
            "every system was scored on the same observed cells",
            {},
        )
    ]


def champion_plan(lake: Lake, name: str) -> Plan:
    """What the decision about a champion would be made from."""
    inputs = {EVALUATED: lake.require(name, EVALUATED).data_version}
    return Plan(fingerprint({}, code_version("stfm_pipeline.registry"), inputs), inputs)


def champion_is_stale(lake: Lake, name: str) -> bool:
    return fresh(lake, name, CHAMPION, champion_plan(lake, name)) is None


def crown(name: str, lake: Lake, settings: Settings) -> Outcome:
    """Register the candidate and promote or refuse it, as the evaluation decided on gate."""
    with alone(settings.lock(name, CHAMPION), f"deciding on the champion of {name}"):
        return _crown(name, lake, settings)


def _crown(name: str, lake: Lake, settings: Settings) -> Outcome:
    from stfm_pipeline import registry
    from stfm_pipeline.evaluate.choose import Decision

    began = time.perf_counter()
    spec = get_dataset(name).spec
    evaluated, plan = lake.require(name, EVALUATED), champion_plan(lake, name)
    found = fresh(lake, name, CHAMPION, plan)
    if found is not None:
        log.info("%s champion: unchanged, no new decision", name)
        return Outcome(found, reused=True)
    if not _still_meets(evaluated, settings):
        raise StfmError(
            f"the champion of '{name}' has changed since the candidate met it", fix="run it again: they will meet anew"
        )
    candidate, decision = evaluated.facts["candidate"], Decision(**evaluated.facts["decision"])
    tags = {"system": candidate["system"], "licence": spec.licence, "homepage": spec.homepage}
    number = registry.register(settings, name, candidate["uri"], candidate["run_id"], tags)
    registry.apply_decision(settings, name, number, decision)
    facts = {
        "name": name,
        "version": number,
        "uri": f"models:/{name}/{number}",
        "system": candidate["system"],
        "promoted": decision.promote,
        "reason": decision.reason,
        "licence": spec.licence,
    }
    row = pl.DataFrame([{k: json.dumps(v) for k, v in facts.items()}])
    published = lake.publish(name, CHAMPION, {"decision": row}, fingerprint=plan.mark, facts=facts, inputs=plan.inputs)
    log.info(
        "%s version %d (%s): %s, %s",
        name,
        number,
        candidate["system"],
        "promoted" if decision.promote else "refused",
        decision.reason,
    )
    return Outcome(published, False, [], time.perf_counter() - began)


def stale_systems(lake: Lake, name: str, systems: Sequence[str], budget: str, data_is_stale: bool) -> list[str]:
    """The systems that a run has to train."""
    if data_is_stale:
        return list(systems)
    return [
        s for s in systems if fresh(lake, name, stage_of(s), training_plan(lake, name, get_system(s), budget)) is None
    ]


def sweep(name: str, lake: Lake, settings: Settings, dry_run: bool = False) -> int:
    """Delete table versions of a dataset that no current stage and no registered model is made from; bytes freed.

    Waits for whoever works on the dataset. Raises before anything goes if a model cannot say what it is made from.
    """
    from stfm_pipeline import registry

    with ExitStack() as held:
        # The tables' own comes last, as everywhere; a training may yet register what it is made from.
        for lock in sorted(settings.root.glob(f"locks/{name}.*"), key=lambda p: (p.name == f"{name}.{ROAD}", p.name)):
            held.enter_context(alone(lock, f"working on {name}"))
        made_from = [lineage["tables"] for lineage in registry.lineages(settings, name)]
        used = _in_use(name, lake)
        freed = 0
        for folder in sorted(Path(lake.uri, name).iterdir()):
            stage = folder.name
            keep = [tables[stage]["delta_versions"] for tables in made_from if stage in tables]
            freed += lake.sweep(name, stage, [*keep, *(s.tables for s in used if s.name == stage)], dry_run)
    return freed


def _in_use(name: str, lake: Lake) -> list[Stage]:
    """The current stages of a dataset, and what they were made from, back to the raw tables."""
    used: list[Stage] = []
    waiting = list(lake.stages(name))
    while waiting:
        stage = waiting.pop()
        if stage not in used:
            used.append(stage)
            made_from = stage.inputs.items()
            waiting += [s for i, version in made_from for s in lake.history(name, i) if s.data_version == version]
    return used
