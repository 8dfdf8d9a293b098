"""trained systems -> evaluation: all that stand on the current data, and the champion, on the same windows."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import polars as pl

from stfm_pipeline.alone import alone
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.fingerprint import code_version, fingerprint
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.road import ROAD, Outcome
from stfm_pipeline.settings import Settings
from stfm_pipeline.systems.catalog import all_systems
from stfm_pipeline.tables import Check
from stfm_pipeline.training import Plan, chosen_on, fresh, seen_until, split_of, stage_of, table_versions
from stfm_pipeline.truth import OPTIMUM

if TYPE_CHECKING:
    from stfm_pipeline.evaluate.choose import Decision
    from stfm_pipeline.evaluate.run import Entry, Evaluation
    from stfm_pipeline.forecaster import Forecaster
    from stfm_pipeline.systems.spec import System

log = logging.getLogger("stfm")
EVALUATED = "evaluated"
Trained = list[tuple["System", Stage]]


def trained_systems(lake: Lake, name: str) -> Trained:
    """Systems trained on the dataset's current tables."""
    now = table_versions(lake, name)
    found = [(s, lake.stage(name, stage_of(s.name))) for s in all_systems().values()]
    return [(s, t) for s, t in found if t is not None and t.inputs == now]


def evaluation_plan(name: str, trained: Trained) -> Plan:
    """What an evaluation would be made from: every system trained on the current data."""
    inputs = {t.name: t.data_version for _, t in trained}
    spec = get_dataset(name).spec
    made_of = tuple(f"stfm_pipeline.{m}" for m in ("evaluate", "forecaster", "origins", "windows", "truth"))
    code = code_version(*made_of)
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
    return found if found is not None and still_meets(found, settings) else None


def still_meets(evaluated: Stage, settings: Settings) -> bool:
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
    from stfm_pipeline.evaluate.choose import SHARE
    from stfm_pipeline.evaluate.oracle import oracle
    from stfm_pipeline.evaluate.run import evaluate
    from stfm_pipeline.windows import load_panel

    began = time.perf_counter()
    dataset = get_dataset(name)
    spec = dataset.spec
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
    history = registry.decisions(settings, name)
    until = harmonized.facts["end"]
    available = registry.allowed(history, until)
    baselines = sorted(e.runs[0] for e in contenders if e.system.branch == "baseline")

    def evidence(system: str) -> str:
        run = next(e.runs[e.chosen] for e in contenders if e.system.name == system)
        met = crowned.run_id if rival is not None and crowned is not None else None
        return fingerprint([run, met, baselines], "", panel.inputs)

    def level_of(system: str) -> float:
        """What was decided on this evidence before is decided alike, and spends nothing more."""
        known = next((d for d in history if d.get("evidence") == evidence(system)), None)
        return float(known["level"]) if known is not None and known["level"] else SHARE * available

    label = f"champion (version {crowned.version})" if crowned is not None else "champion"
    notes = [*_notes(spec, lake, crowned, rival, runs), *_starts(trained)]
    if rival is not None and chosen_on(seen := seen_until(rival.lineage), split := split_of(lake, harmonized)):
        notes.append(
            f"{label} was trained up to {seen['train']} and chosen on data up to {seen['val']}, and gate begins at "
            f"{split['gate'][0]}: there it has an advantage over the candidate"
        )
    best = None
    if dataset.truth is not None and (best := oracle(known := dataset.truth(), panel.problem)) is not None:
        notes.append(f"{OPTIMUM} is no system but the forecast of who knows how the data were made; {known.claim}")
    evaluation = evaluate(spec, panel, contenders, rival, label, notes, level_of, best)
    leader = next(e for e in contenders if e.system.name == evaluation.candidate)
    run_id = leader.runs[leader.chosen]
    seeds = next(stage.facts["seeds"] for system, stage in trained if system.name == leader.system.name)
    uri, started = next((s["uri"], s["started"]) for s in seeds if s["run_id"] == run_id)
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
        log_decision(evaluation.decision)
    facts = {
        "licence": spec.licence,
        "ranking": evaluation.ranking,
        "candidate": {"system": evaluation.candidate, "run_id": run_id, "uri": uri, "started": started},
        "met": crowned.run_id if crowned is not None else None,
        "decision": asdict(evaluation.decision),
        "evidence": evidence(evaluation.candidate),
        "left": available - evaluation.decision.level,
        "until": until,
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


def _starts(trained: Trained) -> list[str]:
    """Which systems did not start from scratch, or were asked not to."""
    begun = [(s.name, t.facts["seeds"][0].get("started", "scratch")) for s, t in trained]
    return [f"{name} started: {begin}" for name, begin in begun if begin != "scratch"]


def log_decision(decision: Decision) -> None:
    """The decision with its numbers on the active MLflow run."""
    import mlflow

    mlflow.set_tags({"promote": str(decision.promote), "reason": decision.reason})
    mlflow.log_dict(asdict(decision), "decision.json")
    numbers = {"level": decision.level, "block": decision.block, "blocks": decision.blocks, "draws": decision.draws}
    mlflow.log_metrics({f"decision/{k}": float(v) for k, v in numbers.items()})
    for m in decision.margins:
        rival = "champion" if m["rival"].startswith("champion") else m["rival"]
        mlflow.log_metrics({f"decision/{rival}/{k}": m[k] for k in ("margin", "low", "high")})


def _plainly(unseen: Sequence[str]) -> str:
    """`dow 1` as Tuesday; times of day and weeks are counted, not listed."""
    from calendar import day_name, month_name

    from stfm_pipeline.embed.temporal import HOLIDAY

    codes = [(feature, int(code)) for feature, code in (u.split(" ") for u in unseen)]
    words = [day_name[c] for f, c in codes if f == "dow"] + [HOLIDAY[c] for f, c in codes if f == "holiday"]
    words += [month_name[c + 1] for f, c in codes if f == "month"]
    for feature, plural in (("tod", "times of day"), ("week", "weeks of the year")):
        if count := sum(f == feature for f, _ in codes):
            words.append(f"{count} {plural}")
    return ", ".join(words)


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
