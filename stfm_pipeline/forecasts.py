"""The champion's forecasts from the end of the current data, for every entity, published like a stage."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import polars as pl

from stfm_pipeline.alone import alone
from stfm_pipeline.errors import StfmError
from stfm_pipeline.fingerprint import code_version, fingerprint
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import ROAD, Outcome
from stfm_pipeline.settings import Settings
from stfm_pipeline.tables import Check
from stfm_pipeline.training import table_versions

if TYPE_CHECKING:
    from stfm_pipeline.forecaster import Forecaster
    from stfm_pipeline.windows import Problem

log = logging.getLogger("stfm")
FORECASTS = "forecasts"
CODE = (__name__, "stfm_pipeline.predict", "stfm_pipeline.forecaster", "stfm_pipeline.windows")


@dataclass(frozen=True)
class Latest:
    """A forecast of every entity, its first step, and the data versions of the tables it goes on from."""

    forecast: pl.DataFrame
    origin: datetime
    tables: dict[str, str]


def latest(forecaster: Forecaster, name: str, lake: Lake, settings: Settings) -> Latest:
    """What a model forecasts after the last observation in a dataset's current tables."""
    from stfm_pipeline.predict import frame_of
    from stfm_pipeline.windows import load_panel

    p = forecaster.problem
    panel = load_panel(lake, name, settings.cache, p.look_back, p.horizon)
    origin = int(panel.seen.nonzero()[-1]) + 1
    if origin < p.look_back:
        raise StfmError(
            f"'{name}' is too short to forecast from", expected=f"{p.look_back} steps", found=f"{origin} steps"
        )
    forecast = forecaster.predict(frame_of(panel, origin))
    first: datetime = (panel.times[origin - 1].item() + timedelta(microseconds=p.step_us)).replace(tzinfo=UTC)
    return Latest(forecast, first, panel.inputs)


def score(name: str, lake: Lake, settings: Settings, alias: str = "champion") -> Outcome:
    """Publish what the version under `alias` forecasts after the current data; unchanged ones are reused.

    Table `forecasts`: entity, time, a column per channel and interval bound, in data units.
    """
    with alone(settings.lock(name, FORECASTS), f"forecasting {name}"):
        return _score(name, lake, settings, alias)


def _score(name: str, lake: Lake, settings: Settings, alias: str) -> Outcome:
    from stfm_pipeline import registry

    began = time.perf_counter()
    version = registry.champion_version(settings, name, alias)
    if version is None:
        raise StfmError(
            f"no version of '{name}' is its {alias}", fix=f"`stfm run {name}`, or `stfm models list {name}`"
        )
    with alone(settings.lock(name, ROAD), f"working on the tables of {name}"):
        inputs = {**table_versions(lake, name), "model": str(version.run_id)}
        mark = fingerprint({"version": int(version.version)}, code_version(*CODE), inputs)
        published = lake.stage(name, FORECASTS)
        if published is not None and published.fingerprint == mark:
            log.info("%s forecasts: unchanged, not made again", name)
            return Outcome(published, reused=True)
        forecaster = registry.load_model(f"models:/{name}/{version.version}", settings)
        found = latest(forecaster, name, lake, settings)
    table = found.forecast.rename({"unique_id": "entity", "ds": "time"})
    checks = _checks(table, found.origin, forecaster.problem, forecaster.levels)
    if not all(c.passed for c in checks):
        return Outcome(None, False, checks, time.perf_counter() - began)
    facts = {
        "licence": forecaster.facts.get("licence"),
        "model": name,
        "version": int(version.version),
        "run_id": str(version.run_id),
        "system": forecaster.system,
        "origin": found.origin.isoformat(),
        "end": str(table["time"].max()),
        "tables": found.tables,
        "lineage": forecaster.lineage,
    }
    stage = lake.publish(name, FORECASTS, {FORECASTS: table}, fingerprint=mark, facts=facts, inputs=inputs)
    seconds = time.perf_counter() - began
    log.info("%s forecasts: version %d of the model from %s on", name, facts["version"], facts["origin"])
    return Outcome(stage, False, checks, seconds)


def _checks(table: pl.DataFrame, origin: datetime, problem: Problem, levels: tuple[float, ...]) -> list[Check]:
    steps = table.group_by("entity").agg(pl.col("time").min().alias("first"), pl.col("time").n_unique().alias("steps"))
    whole = steps.filter((pl.col("first") == origin) & (pl.col("steps") == problem.horizon))
    numbers = table.select(pl.selectors.float().is_finite().all())
    ordered: list[Any] = [
        pl.col(f"{c}_q{low:g}") <= pl.col(f"{c}_q{high:g}")
        for c in problem.channels
        for low, high in pairwise(levels)
        if f"{c}_q{low:g}" in table.columns
    ]
    return [
        Check(
            "every_entity_and_step",
            set(whole["entity"]) == set(problem.entities) and len(table) == problem.n * problem.horizon,
            "every entity has every step after the last observation",
            {"rows": len(table), "expected": problem.n * problem.horizon},
        ),
        Check("forecasts_are_finite", all(numbers.row(0)), "every forecast and bound is a number", {}),
        Check(
            "bounds_in_order",
            table.select(pl.all_horizontal(ordered).all()).item() if ordered else True,
            "a lower bound is never above the upper one",
            {},
        ),
    ]
