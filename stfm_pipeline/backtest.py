"""Rolling origins: what a system would have been worth, had it been trained at earlier moments (Tashman, 2000).

At each origin the raw tables are cut where the stretch to be judged ends, and come down the road again into a lake of
the fold's own: train, val and gate lie before the origin, the stretch is test. Whatever is learned (scalers, edges,
embeddings, weights, intervals) is learned from the parts before the origin.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.datasets.spec import DatasetSpec, Facts, Split
from stfm_pipeline.errors import UsageError
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.systems.catalog import select_systems
from stfm_pipeline.tables import step_us

if TYPE_CHECKING:
    from stfm_pipeline.evaluate.metrics import Row, Sums
    from stfm_pipeline.forecaster import Forecaster
    from stfm_pipeline.systems.spec import System
    from stfm_pipeline.windows import Panel

log = logging.getLogger("stfm")
FIRST = 0.6


@dataclass(frozen=True)
class Fold:
    """One origin with the stretch that follows, the models that were trained before it, and how they did."""

    origin: datetime
    end: datetime
    models: dict[str, Forecaster]
    sums: dict[str, Sums]


@dataclass(frozen=True)
class Backtest:
    """Rows of each fold and of their mean, and the margin over each baseline with its interval over folds."""

    dataset: str
    system: str
    folds: list[dict[str, str]]
    rows: list[Row]
    margins: list[dict[str, Any]]


def origins_of(start: datetime, end: datetime, step: timedelta, folds: int, first: datetime | None) -> list[datetime]:
    """The origins, and the end: equal stretches of whole steps from `first` on (default: three fifths of the clock)."""
    if folds < 2:
        raise UsageError("an interval over folds needs at least two", expected="--folds 2 or more", found=str(folds))
    begin = first or start + FIRST * (end - start)
    if not start < begin < end:
        raise UsageError(
            "the first origin is outside the data", expected=f"between {start} and {end}", found=str(begin)
        )
    return [start + step * round((begin - start + k * (end - begin) / folds) / step) for k in range(folds + 1)]


def cut(spec: DatasetSpec, raw: dict[str, pl.DataFrame], origin: datetime, end: datetime, lake: Lake) -> Panel:
    """Publish the raw tables up to `end` in this lake, harmonized and enriched with a split before the origin."""
    from stfm_pipeline.embed.run import embed
    from stfm_pipeline.harmonize import split
    from stfm_pipeline.harmonize.more import clock
    from stfm_pipeline.harmonize.run import harmonize
    from stfm_pipeline.side_info.run import enrich
    from stfm_pipeline.windows import load_panel

    planned = {j.table for j in spec.joins if j.availability == "ahead"}
    tables = {
        name: frame
        if "time" not in frame.columns or name in planned
        else frame.filter(pl.col("time").is_null() | (pl.col("time") < end))
        for name, frame in raw.items()
    }
    begin = spec.harmonize.start or tables["observations"]["time"].min()
    step = timedelta(microseconds=step_us(spec.harmonize.step))
    assert isinstance(begin, datetime)
    times = clock(begin, origin, spec.harmonize.step)
    before = split.draw(times, Split(ratios=_before(spec.split)), spec.task)
    stretch = pl.DataFrame({"part": ["test"], "start": [origin], "end": [end]}, schema=before.schema)
    frozen = pl.concat([before.filter(pl.col("part") != "test"), stretch])
    rule = spec.harmonize.model_copy(update={"start": begin, "end": end})
    spec = spec.model_copy(update={"harmonize": rule, "end": None, "facts": Facts()})
    split.check_lengths(split.parts_of(frozen, clock(begin, end, spec.harmonize.step)), spec.task)
    log.info("%s: %d steps up to %s, judged on %d", spec.name, len(times), origin, (end - origin) // step)
    harmonized = harmonize(spec, tables, frozen)
    embedded = embed(spec, harmonized.tables)
    enriched = enrich(spec, {t: f for t, f in tables.items() if t in spec.side_tables}, harmonized.tables)
    inputs: dict[str, str] = {}
    for name, result in (("harmonized", harmonized), ("embedded", embedded), ("enriched", enriched)):
        found = lake.publish(
            spec.name, name, result.tables, fingerprint=name, facts=result.facts, inputs=dict(inputs), since=None
        )
        inputs[name] = found.data_version
    return load_panel(lake, spec.name, Path(lake.uri) / "cache")


def _before(rule: Split) -> tuple[float, float, float, float]:
    """Shares of train, val and gate in what lies before the origin: as in the dataset's split without its test."""
    shares = np.array((rule.counts or rule.ratios or ())[:3], dtype=float)
    train, val, gate = (float(s) for s in shares / shares.sum())
    return train, val, gate, 0.0


def train_and_score(panel: Panel, systems: Sequence[System], budget: str, device: str) -> tuple[dict[str, Any], ...]:
    """Forecasters by system, trained before the origin, and their error sums on the stretch after it."""
    from stfm_pipeline.evaluate.calibration import LEVELS, calibrate
    from stfm_pipeline.evaluate.run import score
    from stfm_pipeline.forecaster import Forecaster
    from stfm_pipeline.train import BUDGETS, fit

    models = {}
    for system in systems:
        module = fit(system, panel, BUDGETS[budget], device=device, progress=False).module
        offsets = calibrate(module, panel, system.needs, system.name)
        models[system.name] = Forecaster(system.name, panel.problem, module, {}, LEVELS, offsets)
    needs = {s.name: s.needs for s in systems}
    return models, {n: score(m, panel, "test", needs[n]).sums for n, m in models.items()}


def backtest(
    name: str,
    system: str,
    lake: Lake,
    settings: Settings,
    *,
    folds: int = 4,
    start: datetime | None = None,
    budget: str = "quick",
    device: str = "auto",
) -> tuple[Backtest, list[Fold]]:
    """Train a system and the baselines at each origin on the past alone, and score them on what followed."""
    from stfm_pipeline.harmonize.more import edges_of

    spec = get_dataset(name).spec
    chosen = select_systems([system], spec)
    systems = [*chosen, *(s for s in select_systems([], spec) if s.branch == "baseline" and s not in chosen)]
    published = lake.require(name, "raw")
    raw = {t: lake.read(published, t) for t in published.tables}
    begin, end = edges_of(lake.require(name, "harmonized").facts)
    step = timedelta(microseconds=step_us(spec.harmonize.step))
    moments = origins_of(begin, end, step, folds, start)
    spec = spec.model_copy(update={"harmonize": spec.harmonize.model_copy(update={"start": begin})})
    done = []
    for origin, until in pairwise(moments):
        with tempfile.TemporaryDirectory(prefix="stfm-backtest-") as folder:
            panel = cut(spec, raw, origin, until, Lake(folder))
            done.append(Fold(origin, until, *train_and_score(panel, systems, budget, device)))
    found = summary(spec, chosen[0].name, done)
    _log(found, settings, budget)
    return found, done


def summary(spec: DatasetSpec, system: str, folds: Sequence[Fold]) -> Backtest:
    """Rows per fold and over folds (mean), and margins over each baseline: mean over folds, Student's t interval."""
    from scipy.stats import t

    from stfm_pipeline.evaluate.metrics import mean_rows

    names, steps = list(folds[0].sums), range(1, spec.task.horizon + 1)
    per = [
        {n: f.sums[n].rows(spec.name, n, f"fold {k}", spec.channel_names, steps) for n in names}
        for k, f in enumerate(folds, start=1)
    ]
    rows = [row for fold in per for n in names for row in fold[n]]
    for n in names:
        for mean, *same in zip(mean_rows([fold[n] for fold in per]), *(fold[n] for fold in per), strict=True):
            counts = {"n": sum(r.n for r in same), "windows": sum(r.windows for r in same)}
            rows.append(replace(mean, split="all folds", seeds=1, **counts))
    margins = []
    for rival in (n for n in names if n != system):
        each = [1 - float((f.sums[system].mae() / f.sums[rival].mae()).mean()) for f in folds]
        margin, error = float(np.mean(each)), float(np.std(each, ddof=1)) / len(each) ** 0.5
        reach = float(t.ppf(0.975, len(each) - 1)) * error
        margins.append({"rival": rival, "margin": margin, "low": margin - reach, "high": margin + reach, "folds": each})
    spans = [{"origin": str(f.origin), "end": str(f.end)} for f in folds]
    return Backtest(spec.name, system, spans, rows, margins)


def _log(found: Backtest, settings: Settings, budget: str) -> None:
    import mlflow

    from stfm_pipeline import registry

    tags = {"stage": "backtest", "system": found.system, "budget": budget}
    with registry.run(settings, found.dataset, f"backtest {found.system}", tags):
        mlflow.log_dict(asdict(found), "backtest.json")
        mlflow.log_metrics({f"margin/{m['rival']}": m["margin"] for m in found.margins})
        mlflow.log_metrics(
            {
                f"{r.split}/{r.system}/{r.channel or 'all'}/{r.scale}/mae": r.mae
                for r in found.rows
                if r.horizon == "avg"
            }
        )
