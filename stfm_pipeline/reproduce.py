"""A dataset's published protocol run with our systems, and each of our numbers beside the published one.

The look-back is fixed in advance per row, checkpoints are chosen on val, test is scored once per seed. Nothing here is
registered or promoted. Every (system, look-back, horizon) is published as a stage of its own, so a long table can be
interrupted and goes on where it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from stfm_pipeline import work
from stfm_pipeline.alone import alone
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.datasets.spec import Benchmark, DatasetSpec
from stfm_pipeline.errors import UsageError
from stfm_pipeline.fingerprint import code_version, fingerprint
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.road import ROAD
from stfm_pipeline.settings import Settings
from stfm_pipeline.systems.catalog import select_systems
from stfm_pipeline.systems.spec import System
from stfm_pipeline.training import Plan, fresh, training_plan

log = logging.getLogger("stfm")
EVALUATION_CODE = ("stfm_pipeline.evaluate.metrics", "stfm_pipeline.evaluate.run")
Key = int | str


@dataclass(frozen=True)
class Job:
    """One row of a benchmark to be measured; lengths in steps."""

    system: System
    look_back: int
    horizon: int

    @property
    def stage(self) -> str:
        return f"benchmark_{self.system.key}_{self.look_back}_{self.horizon}"


def protocol(spec: DatasetSpec) -> Benchmark:
    """The dataset's published protocol; a `UsageError` where it has none."""
    if spec.benchmark is None:
        raise UsageError(
            f"'{spec.name}' has no published protocol", fix="add a `benchmark` section to it, or use `stfm run`"
        )
    return spec.benchmark


def jobs_of(spec: DatasetSpec, systems: Sequence[str], lengths: Sequence[int]) -> list[Job]:
    """What to measure: the systems asked for (default: those with a published row) at each published length."""
    rule = protocol(spec)
    named = [p.system for p in rule.published if p.system is not None]
    chosen = select_systems(list(systems) or sorted(set(named)), spec) if systems or named else []
    if not chosen:
        raise UsageError(f"no published row of '{spec.name}' is of a system here", fix="name some with --system")
    known = sorted({int(k) for p in rule.published for k in p.scores if k != "avg"}) if rule.at == "length" else []
    wanted = list(lengths) or known or [spec.task.horizon]
    if rule.at == "step" and list(lengths):
        raise UsageError(f"'{spec.name}' is reported at steps of one horizon", fix="leave --length out")
    out = []
    for system in chosen:
        backs = [p.look_back for p in rule.published if p.system == system.name and p.look_back is not None]
        out += [Job(system, backs[0] if backs else spec.task.look_back, h) for h in wanted]
    return out


def plan_of(lake: Lake, name: str, job: Job, budget: str) -> Plan:
    """What a row would be measured from: training as on the road, with its own lengths, and the scoring code."""
    base = training_plan(lake, name, job.system, budget)
    return Plan(fingerprint([job.look_back, job.horizon], base.mark + code_version(*EVALUATION_CODE), {}), base.inputs)


def measure(name: str, job: Job, lake: Lake, settings: Settings, budget: str, device: str = "auto") -> Stage:
    """Train a job's seeds and score them on test; reused where nothing it depends on has changed."""
    with alone(settings.lock(name, job.stage), f"measuring {job.system.name} on {name}"):
        return _measure(name, job, lake, settings, budget, device)


def _measure(name: str, job: Job, lake: Lake, settings: Settings, budget: str, device: str) -> Stage:
    import mlflow

    from stfm_pipeline import registry
    from stfm_pipeline.evaluate.run import score
    from stfm_pipeline.forecaster import Forecaster
    from stfm_pipeline.train import BUDGETS, fit
    from stfm_pipeline.windows import load_panel

    began = time.perf_counter()
    spec = get_dataset(name).spec
    rule = protocol(spec)
    with alone(settings.lock(name, ROAD), f"working on the tables of {name}"):
        plan = plan_of(lake, name, job, budget)
        if (found := fresh(lake, name, job.stage, plan)) is not None:
            work.clear(settings, name, job.stage)
            return found
        panel = load_panel(lake, name, settings.cache, job.look_back, job.horizon)
    work.clear(settings, name, job.stage, but=plan.mark)
    steps = [k for p in rule.published for k in p.scores if isinstance(k, int)] if rule.at == "step" else []
    horizons = sorted({s for s in steps if s <= job.horizon}) or [job.horizon]
    rows = []
    for seed in range(BUDGETS[budget].seeds if job.system.training else 1):
        tags = {"stage": "benchmark", "system": job.system.name, "seed": str(seed), "budget": budget}
        label = f"{job.system.name} {job.look_back} to {job.horizon} seed {seed}"
        with registry.run(settings, name, label, tags, plan.inputs["enriched"]):
            kept = work.folder(settings, name, job.stage, plan.mark, seed) if job.system.training else None
            result = fit(
                job.system,
                panel,
                BUDGETS[budget],
                seed=seed,
                device=device,
                work=kept,
            )
            sums = score(
                Forecaster(job.system.name, panel.problem, result.module, {}), panel, "test", job.system.needs
            ).sums
            scores = [
                asdict(r)
                for r in sums.rows(name, job.system.name, "test", panel.problem.channels, horizons)
                if r.scale == rule.scale and r.channel == rule.channel
            ]
            rows += [{**r, "horizon": str(r["horizon"]), "seed": seed, "seconds": result.seconds} for r in scores]
            mlflow.log_metrics({f"test/{r['horizon']}/{m}": r[m] for r in scores for m in ("mae", "mse", "rmse")})
    table = pl.DataFrame(rows, infer_schema_length=None)
    facts = {"look_back": job.look_back, "horizon": job.horizon, "budget": budget, "licence": spec.licence}
    facts |= {"system": job.system.name, "seeds": table["seed"].n_unique(), "windows": rows[0]["windows"]}
    stage = lake.publish(name, job.stage, {"rows": table}, fingerprint=plan.mark, facts=facts, inputs=plan.inputs)
    work.clear(settings, name, job.stage)
    log.info("%s %s: measured in %.0f s", name, job.stage, time.perf_counter() - began)
    return stage


def scores_of(rule: Benchmark, stage: Stage, lake: Lake) -> dict[Key, dict[str, tuple[float, float]]]:
    """Measured (mean over seeds, deviation) per metric at each step or length, MAPE in percent."""
    table = lake.read(stage, "rows")
    out: dict[Key, dict[str, tuple[float, float]]] = {}
    for (horizon,), rows in table.group_by("horizon", maintain_order=True):
        key: Key = "avg" if horizon == "avg" else int(str(horizon))
        if rule.at == "length":
            if key != "avg":
                continue
            key = int(stage.facts["horizon"])
            rows = table.filter(pl.col("horizon") == "avg")
        out[key] = {}
        for metric in rule.metrics:
            values = rows[metric].drop_nulls() * (100 if metric == "mape" else 1)
            if len(values):
                spread = float(values.std()) if len(values) > 1 else 0.0  # type: ignore[arg-type]
                out[key][metric] = (float(values.mean()), spread)  # type: ignore[arg-type]
    return out


def verdict(gap: float, tolerance: float) -> str:
    """Green within the tolerance, better or RED beyond it; far better asks whether it is the same data at all."""
    if gap > tolerance:
        return "RED"
    if gap >= -tolerance:
        return "green"
    return "better" if gap > -10 * tolerance else "far better: the same data?"


def reproduction(spec: DatasetSpec, system: str, look_back: int, ours: dict[Key, Any]) -> list[dict[str, Any]]:
    """Our numbers beside the published ones of the same system: `ok` where ours is within the tolerance, or better.

    `ours` maps a step, a length or "avg" to metric values, or to (value, deviation over seeds).
    """
    rule = protocol(spec)
    out: list[dict[str, Any]] = []
    for row in rule.published:
        if row.system != system or (row.look_back or spec.task.look_back) != look_back:
            continue
        for key, published in row.scores.items():
            for metric, theirs in zip(rule.metrics, published, strict=True):
                mine = ours.get(key, {}).get(metric)
                if theirs is None or mine is None:
                    continue
                value = mine[0] if isinstance(mine, tuple) else mine
                gap = value / theirs - 1
                out.append(
                    {
                        "system": system,
                        "model": row.model,
                        "source": row.source,
                        "at": key,
                        "metric": metric,
                        "published": theirs,
                        "measured": value,
                        "deviation": mine[1] if isinstance(mine, tuple) else None,
                        "difference": gap,
                        "tolerance": rule.tolerance,
                        "ok": gap <= rule.tolerance,
                        "verdict": verdict(gap, rule.tolerance),
                    }
                )
    return out


def from_leaderboard(spec: DatasetSpec, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The reproduction table of an ordinary evaluation, where the dataset's task is one that was published."""
    if spec.benchmark is None:
        return []
    rule, out = spec.benchmark, []
    wanted = ("test", rule.scale, rule.channel)
    mine = [r for r in rows if (r["split"], r["scale"], r["channel"]) == wanted]
    for system in dict.fromkeys(r["system"] for r in mine):
        scores: dict[Key, Any] = {}
        for row in (r for r in mine if r["system"] == system):
            values = {m: row[m] * (100 if m == "mape" else 1) for m in rule.metrics if row[m] is not None}
            if rule.at == "length":
                if row["horizon"] == "avg":
                    scores[spec.task.horizon] = values
            else:
                scores[row["horizon"]] = values
        out += reproduction(spec, system, spec.task.look_back, scores)
    return out
