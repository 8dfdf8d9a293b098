"""The data road: raw -> harmonized -> embedded -> enriched, each stage computed when its fingerprint says so."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from stfm_pipeline.alone import alone
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.datasets.spec import Dataset, DatasetSpec
from stfm_pipeline.errors import ContractError
from stfm_pipeline.fingerprint import code_version, fingerprint
from stfm_pipeline.lake import Lake, Stage, data_version
from stfm_pipeline.settings import Settings
from stfm_pipeline.stage import Result
from stfm_pipeline.tables import Check, is_dense

log = logging.getLogger("stfm")
ROAD = "road"
GROUND = ("stfm_pipeline.tables", "stfm_pipeline.stage")


@dataclass(frozen=True)
class Step:
    """One stage of the road: what it reads, which code and which part of the spec it is made from."""

    name: str
    survey: str
    description: str
    inputs: tuple[str, ...]
    modules: tuple[str, ...]
    config: Callable[[DatasetSpec], Any]
    compute: Callable[[Dataset, Lake, Settings], Result]


@dataclass(frozen=True)
class Outcome:
    """What materialising a stage came to: the published stage, whether it was reused, its checks and seconds."""

    stage: Stage | None
    reused: bool
    checks: list[Check] = field(default_factory=list)
    seconds: float = 0.0


def _raw(dataset: Dataset, lake: Lake, settings: Settings) -> Result:
    from stfm_pipeline.harmonize.run import check_raw
    from stfm_pipeline.sources import fetch, identity

    files: dict[str, Path] = {}
    for source in dataset.spec.sources:
        files |= fetch(source, settings)
    tables = dataset.read(files)
    promise = "types, keys, zones and coordinates are right"
    try:
        check_raw(dataset.spec, tables)
    except ContractError as error:
        return Result({}, {}, [Check("canonical_contract", False, promise, {"broken": str(error)})])
    observations = tables["observations"]
    facts = {
        "licence": dataset.spec.licence,
        "rows": {name: len(frame) for name, frame in tables.items()},
        "start": str(observations["time"].min()),
        "end": str(observations["time"].max()),
        "sources": [identity(s, settings) for s in dataset.spec.sources],
    }
    if is_dense(observations):
        facts["dense_observations"] = [c for c in observations.columns if c != "time"]
    return Result(
        tables, facts, [Check("canonical_contract", True, "types, keys, zones and coordinates are right", {})]
    )


def _harmonized(dataset: Dataset, lake: Lake, settings: Settings) -> Result:
    from stfm_pipeline.harmonize.run import harmonize

    earlier = lake.stage(dataset.spec.name, "harmonized")
    rule = dataset.spec.split.model_dump(mode="json")
    if rule["of"] == "windows":
        rule["windows"] = dataset.spec.task.model_dump(mode="json", include={"look_back", "horizon"})
    ratios_drawn_before = earlier is not None and earlier.facts.get("split_rule") == rule and rule["counts"] is None
    frozen = lake.read(earlier, "split") if earlier is not None and ratios_drawn_before else None
    result = harmonize(dataset.spec, _tables(lake, dataset.spec.name, "raw"), frozen)
    return Result(result.tables, {**result.facts, "split_rule": rule}, result.checks)


def _embedded(dataset: Dataset, lake: Lake, settings: Settings) -> Result:
    from stfm_pipeline.embed.run import embed

    return embed(dataset.spec, _tables(lake, dataset.spec.name, "harmonized"))


def _enriched(dataset: Dataset, lake: Lake, settings: Settings) -> Result:
    from stfm_pipeline.side_info.run import enrich

    name = dataset.spec.name
    side = tuple(j.table for j in dataset.spec.joins)
    # Without anything to join, the signal itself is not needed.
    needed = None if side else ("entities",)
    return enrich(dataset.spec, _tables(lake, name, "raw", side), _tables(lake, name, "harmonized", needed))


def _tables(lake: Lake, dataset: str, stage: str, only: tuple[str, ...] | None = None) -> dict[str, pl.DataFrame]:
    found = lake.require(dataset, stage)
    return {t: lake.read(found, t) for t in found.tables if only is None or t in only}


def _raw_config(spec: DatasetSpec) -> Any:
    """A file at hand counts by its bytes, wherever it lies; how tables are read depends on the step."""
    from stfm_pipeline.sources import identity

    sources = [identity(s, Settings()) for s in spec.sources]
    read = [spec.model_dump(mode="json")["tables"], spec.harmonize.step] if spec.tables else []
    return [_pick("name", "channels", "zone", "licence")(spec), sources, read]


def _pick(*fields: str) -> Callable[[DatasetSpec], Any]:
    return lambda spec: spec.model_dump(mode="json", include=set(fields))


STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        Step(
            "raw",
            "raw_data",
            "The source's own values, typed and in UTC. Nothing is repaired here.",
            (),
            (*GROUND, "stfm_pipeline.sources"),
            _raw_config,
            _raw,
        ),
        Step(
            "harmonized",
            "preprocessing",
            "Regular in time, in data units, with a mask instead of holes; the split is frozen and scalers are fitted "
            "on its training part.",
            ("raw",),
            (*GROUND, "stfm_pipeline.harmonize"),
            _pick("channels", "zone", "harmonize", "split", "task", "facts"),
            _harmonized,
        ),
        Step(
            "embedded",
            "embedding",
            "Temporal, spatial and frequency embeddings, each computed once.",
            ("harmonized",),
            (*GROUND, "stfm_pipeline.embed", "stfm_pipeline.harmonize.split"),
            _pick("embed", "country"),
            _embedded,
        ),
        Step(
            "enriched",
            "side_info_integration",
            "Side information joined as of the time it was known: weather, timetable, text.",
            ("raw", "harmonized", "embedded"),
            (
                *GROUND,
                "stfm_pipeline.side_info",
                "stfm_pipeline.embed.spatial",
                "stfm_pipeline.harmonize.clock",
                "stfm_pipeline.harmonize.scaler",
                "stfm_pipeline.harmonize.split",
            ),
            _pick("joins"),
            _enriched,
        ),
    )
}


def stage_code(dataset: Dataset, step: Step) -> str:
    """Code version of a stage; raw is also made from the dataset's own file."""
    return code_version(*step.modules, *((dataset.module,) if step.name == "raw" else ()))


def current_fingerprint(dataset: Dataset, step: Step, lake: Lake) -> tuple[str, dict[str, str]] | None:
    """Fingerprint the stage would have if computed now, with its inputs; None while an input is missing."""
    inputs = {}
    for name in step.inputs:
        found = lake.stage(dataset.spec.name, name)
        if found is None:
            return None
        inputs[name] = found.data_version
    return fingerprint(step.config(dataset.spec), stage_code(dataset, step), inputs), inputs


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


def materialize(name: str, stage: str, lake: Lake, settings: Settings, force: bool = False) -> Outcome:
    """Compute, check and publish one stage; an unchanged one is reused, one that fails a check is not published.

    One process at a time works on the tables of a dataset.
    """
    with alone(settings.lock(name, ROAD), f"working on the tables of {name}"):
        return _materialize(name, stage, lake, settings, force)


def _materialize(name: str, stage: str, lake: Lake, settings: Settings, force: bool) -> Outcome:
    began = time.perf_counter()
    dataset, step = get_dataset(name), STEPS[stage]
    for earlier in step.inputs:
        lake.require(name, earlier)
    published = lake.stage(name, stage)
    with ThreadPoolExecutor(1) as beside:
        # Hashing a large source takes seconds; what has to be computed anyway does not wait for it.
        found = beside.submit(current_fingerprint, dataset, step, lake)
        if published is not None and not force and (known := found.result()) and known[0] == published.fingerprint:
            log.info("%s %s: unchanged, not run again", name, stage)
            return Outcome(published, reused=True)
        result = step.compute(dataset, lake, settings)
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
    new = lake.publish(name, stage, result.tables, fingerprint=mark, facts=result.facts, inputs=inputs)
    seconds = time.perf_counter() - began
    log.info("%s %s: published version %d in %.1f s", name, stage, new.version, seconds)
    return Outcome(new, False, result.checks, seconds)


def check_dataset(name: str, lake: Lake, settings: Settings) -> list[dict[str, Any]]:
    """Checks of every stage, computed anew on the published inputs; nothing is published."""
    dataset = get_dataset(name)
    rows = []
    for step in STEPS.values():
        result = step.compute(dataset, lake, settings)
        published = lake.stage(name, step.name)
        checks = list(result.checks)
        if published is not None:
            same = data_version(result.tables, result.facts) == published.data_version
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
