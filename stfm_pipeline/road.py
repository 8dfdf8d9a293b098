"""The data road: raw -> harmonized -> embedded -> enriched, each stage computed when its fingerprint says so."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from stfm_pipeline.alone import alone
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.datasets.spec import Dataset
from stfm_pipeline.digest import data_version
from stfm_pipeline.errors import ContractError, StfmError
from stfm_pipeline.fingerprint import code_version, fingerprint
from stfm_pipeline.lake import GoneError, Lake, Stage
from stfm_pipeline.memory import peak_mb
from stfm_pipeline.parts import digest, landed
from stfm_pipeline.settings import Settings
from stfm_pipeline.splits import ask_for_new_split
from stfm_pipeline.stage import NEVER, Extension, Result
from stfm_pipeline.steps import STEPS, Step
from stfm_pipeline.tables import Check

log = logging.getLogger("stfm")
ROAD = "road"


@dataclass(frozen=True)
class Outcome:
    """What materialising a stage came to: the published stage, whether it was reused, its checks and seconds."""

    stage: Stage | None
    reused: bool
    checks: list[Check] = field(default_factory=list)
    seconds: float = 0.0


def stage_code(dataset: Dataset, step: Step) -> str:
    """Code version of a stage; raw is also made from the dataset's own file, and what states its optimum."""
    own = [dataset.module, *(["stfm_pipeline.truth"] if dataset.truth else [])]
    return code_version(*step.modules, *(own if step.name == "raw" else ()))


def current_fingerprint(dataset: Dataset, step: Step, lake: Lake) -> tuple[str, dict[str, str]] | None:
    """Fingerprint the stage would have if computed now, with its inputs; None while an input is missing."""
    inputs = {}
    if step.name == "raw" and (parts := landed(dataset.spec.sources, Settings())):
        inputs["landed"] = digest(parts)
    for name in step.inputs:
        found = lake.stage(dataset.spec.name, name)
        if found is None:
            return None
        inputs[name] = found.data_version
    return _mark(dataset, step, inputs), inputs


def _mark(dataset: Dataset, step: Step, inputs: dict[str, str]) -> str:
    return fingerprint(step.config(dataset.spec), stage_code(dataset, step), inputs)


def stale_stages(name: str, lake: Lake, until: str = "enriched") -> list[str]:
    """Stages, in order, that a run has to compute: changed themselves, or behind one that did."""
    dataset = get_dataset(name)
    stale: list[str] = []
    for step in STEPS.values():
        published = lake.stage(name, step.name)
        wanted = current_fingerprint(dataset, step, lake)
        fresh = published is not None and wanted is not None and published.fingerprint == wanted[0]
        if not fresh or any(i in stale for i in step.inputs):
            stale.append(step.name)
        if step.name == until:
            break
    return stale


def materialize(
    name: str, stage: str, lake: Lake, settings: Settings, force: bool = False, new_split: bool = False
) -> Outcome:
    """Compute, check and publish one stage; an unchanged one is reused, one that fails a check is not published.

    One process at a time works on the tables of a dataset. `new_split` has the split drawn anew where there is more
    than it was drawn on.
    """
    with alone(settings.lock(name, ROAD), f"working on the tables of {name}"):
        if new_split and stage == "harmonized":
            published, wanted = lake.stage(name, stage), current_fingerprint(get_dataset(name), STEPS[stage], lake)
            growing = published is not None and wanted is not None and wanted[0] != published.fingerprint
            ask_for_new_split(get_dataset(name).spec, published, growing, settings)
        return _materialize(name, stage, lake, settings, force)


def _materialize(name: str, stage: str, lake: Lake, settings: Settings, force: bool) -> Outcome:
    began = time.perf_counter()
    dataset, step = get_dataset(name), STEPS[stage]
    for earlier in step.inputs:
        lake.require(name, earlier)
    published = lake.stage(name, stage)
    result: Result | Extension | None = None
    with ThreadPoolExecutor(1) as beside:
        # Hashing a large source takes seconds; what has to be computed anyway does not wait for it.
        found = beside.submit(current_fingerprint, dataset, step, lake)
        if published is not None and not force:
            if (known := found.result()) and known[0] == published.fingerprint:
                log.info("%s %s: unchanged, not run again", name, stage)
                return Outcome(published, reused=True)
            result = _more(dataset, step, lake, settings, published)
        try:
            result = result or step.compute(dataset, lake, settings)
        except MemoryError as error:
            raise StfmError(
                f"{stage} of '{name}' needs more memory than there is",
                found=str(error) or None,
                fix="check the clock's step, `start` and `end` and the number of entities; or bring more memory",
            ) from error
    wanted = found.result()
    if wanted is None or wanted != current_fingerprint(dataset, step, lake):
        raise ContractError(
            f"what {name} {stage} is made from changed while it was computed", fix="run it again; nothing was published"
        )
    mark, inputs = wanted
    if not result.passed:
        failed = [c.name for c in result.checks if not c.passed]
        log.error("%s %s: not published, failed checks: %s", name, stage, ", ".join(failed))
        return Outcome(None, False, result.checks, time.perf_counter() - began)
    since = result.since if isinstance(result, Extension) else None

    def cost() -> dict[str, float]:
        return {"seconds": round(time.perf_counter() - began, 3), "peak_mb": round(peak_mb(), 1)}

    new = lake.publish(
        name, stage, result.tables, fingerprint=mark, facts=result.facts, inputs=inputs, since=since, cost=cost
    )
    seconds = time.perf_counter() - began
    which = (
        "" if since is None else f", what is new from {since:%Y-%m-%dT%H:%MZ} on" if since < NEVER else ", as it was"
    )
    log.info("%s %s: published version %d%s in %.1f s", name, stage, new.version, which, seconds)
    return Outcome(new, False, result.checks, seconds)


def _more(dataset: Dataset, step: Step, lake: Lake, settings: Settings, published: Stage) -> Extension | None:
    """What the stage becomes if only the rows of its inputs have changed, and where that is known."""
    if _mark(dataset, step, published.inputs) != published.fingerprint or not published.blocks:
        return None
    changes = [lake.changed_since(dataset.spec.name, i, published.inputs[i]) for i in step.inputs]
    known = [c for c in changes if c is not None]
    if len(known) < len(changes):
        return None
    try:
        return step.extend(dataset, lake, settings, published, min(known, default=NEVER))
    except GoneError as error:
        log.info("%s %s: computed whole: %s", published.dataset, published.name, error.problem)
        return None


def check_dataset(name: str, lake: Lake, settings: Settings) -> list[dict[str, Any]]:
    """Checks of every stage, computed anew on the published inputs; nothing is published."""
    dataset = get_dataset(name)
    rows = []
    for step in STEPS.values():
        result = step.compute(dataset, lake, settings)
        published = lake.stage(name, step.name)
        checks = list(result.checks)
        if published is not None:
            same = data_version(result.frames, result.facts) == published.data_version
            checks.append(Check("same_again", same, "computing it again gives the published table", {}))
        rows += [
            {
                "stage": step.name,
                "check": c.name,
                "passed": c.passed,
                "description": c.description,
                "details": c.details,
            }
            for c in checks
        ]
    return rows
