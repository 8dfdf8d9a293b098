"""Forecasts made elsewhere beside ours: the same windows and cells, paired intervals, and an audit of them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.errors import FrameError, UsageError
from stfm_pipeline.evaluate.audit import Audit, Finding
from stfm_pipeline.evaluate.choose import too_short_to_rank
from stfm_pipeline.evaluate.exchange import Asked, Predictions, WindowSet, open_file, read_predictions, window_set
from stfm_pipeline.evaluate.metrics import Row, Sums, block_bootstrap, season_block

if TYPE_CHECKING:
    from stfm_pipeline.forecaster import Forecaster
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.settings import Settings
    from stfm_pipeline.windows import Panel

BATCH = 64
CLIMATE = "historical-average"
GRAIN = 1e-3
CELLS = 1_000_000


@dataclass(frozen=True)
class Comparison:
    """Rows of every contender, the margins of each file's forecasts over the others, and the audit."""

    spec: DatasetSpec
    windows: WindowSet
    given: tuple[str, ...]
    rows: list[Row]
    margins: list[dict[str, Any]]
    findings: list[Finding]
    warning: str | None


# A batch's place in the set -> its forecast in data units, and which cells had no value of their own.
Contender = Callable[[slice], tuple[Tensor, Tensor | None]]


def compare(dataset: str, files: Sequence[Path], lake: Lake, settings: Settings, zone: str | None = None) -> Comparison:
    """Score each file beside the baselines, and beside every system trained on the dataset's current data.

    Baselines are fitted here, so nothing needs to have been trained. Raises `FrameError` on files that are not
    forecasts of one window set of the current data, and `MetricError` where a forecast is lacking for a scored cell.
    """
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.windows import load_panel

    spec = get_dataset(dataset).spec
    opened = [open_file(path) for path in files]
    asked = _one_set(files, [a for a, _ in opened])
    panel = load_panel(lake, dataset, settings.cache, horizon=asked.horizon)
    chosen = window_set(panel, asked.part, asked.every)
    if chosen.digest != asked.digest:
        raise FrameError(
            f"{files[0].name} was made for other windows",
            expected=chosen.name,
            found=f"{asked.part}-h{asked.horizon}-s{asked.every}-{asked.digest}",
            fix=f"the data, mask or split of '{dataset}' differ: `stfm benchmark windows {dataset}` writes them anew",
        )
    ours = {**_baselines(spec, panel), **_trained(spec, panel, lake, settings)}
    names = _names(files, ours)
    given = [
        read_predictions(path, panel, chosen, content, name, zone)
        for path, name, (_, content) in zip(files, names, opened, strict=True)
    ]
    return score(spec, panel, chosen, given, ours)


def _one_set(files: Sequence[Path], asked: Sequence[Asked]) -> Asked:
    if len(set(asked)) > 1:
        raise UsageError(
            "the files are forecasts of different window sets",
            offenders=[
                f"{f.name}: {a.part}-h{a.horizon}-s{a.every}-{a.digest}" for f, a in zip(files, asked, strict=True)
            ],
            fix="compare files of one set at a time",
        )
    return asked[0]


def _names(files: Sequence[Path], ours: dict[str, Any]) -> list[str]:
    names = [f.stem for f in files]
    if taken := [n for n in names if n in ours or names.count(n) > 1]:
        raise UsageError("contenders need names of their own", offenders=taken, fix="rename the files")
    return names


def _baselines(spec: DatasetSpec, panel: Panel) -> dict[str, Forecaster]:
    from stfm_pipeline.forecaster import Forecaster
    from stfm_pipeline.systems.catalog import select_systems
    from stfm_pipeline.train import BUDGETS, fit

    fit_ones = [s for s in select_systems([], spec) if s.branch == "baseline"]
    return {
        s.name: Forecaster(s.name, panel.problem, fit(s, panel, BUDGETS["quick"], progress=False).module, {})
        for s in fit_ones
    }


def _trained(spec: DatasetSpec, panel: Panel, lake: Lake, settings: Settings) -> dict[str, Forecaster]:
    """Systems trained on the current data for the same problem; the seed with the lowest val loss speaks."""
    from stfm_pipeline.scoring import entries, trained_systems

    if panel.problem.horizon != spec.task.horizon:
        return {}
    learned = [e for e in entries(trained_systems(lake, spec.name), settings) if e.system.branch != "baseline"]
    return {e.system.name: e.forecaster for e in learned}


def score(
    spec: DatasetSpec,
    panel: Panel,
    chosen: WindowSet,
    given: Sequence[Predictions],
    ours: dict[str, Forecaster],
) -> Comparison:
    """Every contender on the windows of the set, batch by batch, so that all see the same truth and mask."""
    from stfm_pipeline.evaluate.run import civil_time
    from stfm_pipeline.forecaster import truth
    from stfm_pipeline.systems.catalog import get_system

    p, w = panel.problem, len(chosen.origins)
    mean, std = p.tensors["mean"], p.tensors["std"]
    contenders: dict[str, Contender] = {g.name: _foreign(g) for g in given}
    contenders |= {n: _own(f, panel, chosen, get_system(n).needs) for n, f in ours.items()}
    sums = {n: Sums(w, p.horizon, p.n, p.c, p.steps_per_day) for n in contenders}
    audits = {n: Audit(w, p.horizon, p.c) for n in contenders}
    common, at = _common(panel), 0
    for _, window in panel.batches(chosen.origins, BATCH):
        rows = slice(at, at + len(window.values))
        at = rows.stop
        target, observed = truth(window, p)
        hour, scaled = civil_time(window, p), (target - mean) / std
        climate = (contenders[CLIMATE](rows)[0] - mean) / std
        rare = observed & ~((target - common).abs() < GRAIN * std)
        for name, forecast_of in contenders.items():
            forecast, fallback = forecast_of(rows)
            sums[name].add(forecast, target, observed, std, hour, fallback)
            audits[name].add((forecast - mean) / std, scaled, observed, climate, rare)
    block = -(-season_block(p.horizon, spec.seasons) // chosen.every)
    foreign = tuple(g.name for g in given)
    horizons = range(1, p.horizon + 1)
    usual_hits = np.max([audits[n].exact() for n in ours if get_system(n).branch == "baseline"], axis=0)
    span = panel.parts[chosen.part]
    warnings = [
        too_short_to_rank(
            span.stop - span.start, p.horizon, p.n * p.c, max(spec.seasons), len(panel.times), p.steps_per_day
        ),
        f"{w} windows are fewer than two blocks of {block}: no interval can be given" if w < 2 * block else None,
    ]
    return Comparison(
        spec,
        chosen,
        foreign,
        [row for n, s in sums.items() for row in s.rows(spec.name, n, chosen.part, p.channels, horizons)],
        [
            {"system": g, "rival": n, "channel": channel, "margin": m, "low": lo, "high": hi}
            for g in foreign
            for n in sums
            if n != g
            for k, channel in enumerate(p.channels)
            for m, lo, hi in [block_bootstrap(sums[g], sums[n], block, k)]
        ],
        [audit.finding(n, block, usual_hits) for n, audit in audits.items()],
        "; ".join(filter(None, warnings)) or None,
    )


def _foreign(given: Predictions) -> Contender:
    return lambda rows: (given.values[rows], None)


def _own(forecaster: Forecaster, panel: Panel, chosen: WindowSet, needs: tuple[str, ...]) -> Contender:
    def forecast(rows: slice) -> tuple[Tensor, Tensor | None]:
        made = forecaster.forecast(panel.gather(chosen.origins[rows], needs, forecaster.problem))
        return made.values, made.fallback

    return forecast


def _common(panel: Panel) -> Tensor:
    """The value (c,) seen most often in each channel of the training part, in data units; NaN where none repeats."""
    train, p = panel.parts["train"], panel.problem
    mean, std = p.tensors["mean"], p.tensors["std"]
    every = max(1, (train.stop - train.start) * p.n // CELLS)
    values, observed = panel.arrays.values[train][::every] * std + mean, panel.arrays.observed[train][::every]
    out = torch.full((p.c,), torch.nan)
    for k in range(p.c):
        grain = GRAIN * float(std[:, k].mean())
        value, count = torch.unique((values[..., k][observed[..., k]] / grain).round(), return_counts=True)
        if len(count) and count.max() > 1:
            out[k] = value[count.argmax()] * grain
    return out
