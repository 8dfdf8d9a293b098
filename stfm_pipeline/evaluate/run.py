"""Scoring every system of a dataset on the same windows, and everything a report tells about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from stfm_pipeline.datasets.spec import DatasetSpec, Part
from stfm_pipeline.errors import StfmError
from stfm_pipeline.evaluate.calibration import Coverage
from stfm_pipeline.evaluate.choose import CAPACITY, SHARE, Decision, decide, too_short_to_rank, val_scores
from stfm_pipeline.evaluate.metrics import Row, Sums, block_bootstrap, mean_rows, season_block
from stfm_pipeline.forecaster import Forecaster, truth
from stfm_pipeline.systems.spec import System
from stfm_pipeline.truth import OPTIMUM
from stfm_pipeline.windows import Panel, Problem, Window, drop_side_information, same_eyes

BATCH = 64
SCORED_PARTS: tuple[Part, ...] = ("val", "gate", "test")
ZERO_INFLATED = 0.5


@dataclass(frozen=True)
class Entry:
    """A system with one forecaster per seed; the one with the lowest val loss stands for it."""

    system: System
    forecasters: list[Forecaster]
    runs: list[str]
    chosen: int = 0

    @property
    def forecaster(self) -> Forecaster:
        return self.forecasters[self.chosen]


@dataclass
class Evaluation:
    """What evaluating a dataset came to. Lists of plain rows, so that report, CLI and MLflow read the same."""

    spec: DatasetSpec
    rows: list[Row]
    ranking: list[dict[str, Any]]
    candidate: str
    decision: Decision
    margins: list[dict[str, Any]]
    coverage: list[dict[str, Any]]
    fallback: list[dict[str, Any]]
    cost: list[dict[str, Any]]
    hours: dict[str, list[list[float | None]]]
    entities: list[dict[str, Any]]
    examples: list[dict[str, Any]]
    without_side: list[dict[str, Any]]
    warning: str | None
    lineage: dict[str, Any]
    parts: dict[str, list[str]]
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def score(forecaster: Forecaster, panel: Panel, part: Part, needs: tuple[str, ...], hide_side: bool = False) -> Scores:
    """Sums and interval coverage of one forecaster over all windows of a part, in time order.

    It may come from an earlier split: it is shown windows in its own standardisation and calendar, and everybody is
    scored on the panel's own targets.
    """
    p = panel.problem
    origins = panel.origins(part)
    if not len(origins):
        raise StfmError(f"{part} holds no window", expected=f"at least {p.horizon} steps")
    own = same_eyes(p, forecaster.problem)
    sums = Sums(len(origins), p.horizon, p.n, p.c, p.steps_per_day)
    zero_share = _zero_share(panel)
    groups: dict[tuple[str, str], Coverage] = {}
    for chunk, window in panel.batches(origins, BATCH, needs):
        seen = window if own else panel.gather(chunk, needs, forecaster.problem)
        forecast = forecaster.forecast(drop_side_information(seen, 1.0) if hide_side else seen)
        target, observed = truth(window, p)
        sums.add(forecast.values, target, observed, p.tensors["std"], civil_time(window, p), forecast.fallback)
        if forecast.bounds is not None:
            _cover(groups, forecast.bounds, target, observed, p.channels, zero_share)
    nominal = forecaster.levels[-1] - forecaster.levels[0] if forecaster.levels else 0.0
    rows = [g.row(part, channel, group, nominal) for (channel, group), g in groups.items()]
    return Scores(sums, rows)


def civil_time(window: Window, problem: Problem) -> Tensor:
    """Step of the civil day of every target step (b, h), in the dataset's own zone."""
    home = problem.zones.index(problem.zone) if problem.zone in problem.zones else 0
    return (window.calendar[:, problem.look_back :, home, 0] - 1).clamp(min=0)


@dataclass(frozen=True)
class Scores:
    """Error sums and coverage rows of one forecaster on one part."""

    sums: Sums
    coverage: list[dict[str, Any]]


def _zero_share(panel: Panel) -> dict[str, float]:
    train = panel.parts["train"]
    mean, std = panel.problem.tensors["mean"], panel.problem.tensors["std"]
    values, observed = panel.arrays.values[train] * std + mean, panel.arrays.observed[train]
    zero = ((values.abs() < 1e-5 * std) & observed).sum(dim=(0, 1)) / observed.sum(dim=(0, 1)).clamp(min=1)
    return dict(zip(panel.problem.channels, zero.tolist(), strict=True))


def _cover(
    groups: dict[tuple[str, str], Coverage],
    bounds: Tensor,
    target: Tensor,
    observed: Tensor,
    channels: tuple[str, ...],
    zero_share: Mapping[str, float],
) -> None:
    slack = 1e-4
    for k, channel in enumerate(channels):
        low, high, y, seen = bounds[0, ..., k], bounds[-1, ..., k], target[..., k], observed[..., k]
        inside, width = (y >= low - slack) & (y <= high + slack), high - low
        cells = {"all": seen}
        if zero_share[channel] > ZERO_INFLATED:
            cells |= {"target is 0": seen & (y == 0), "target is not 0": seen & (y != 0)}
        for group, which in cells.items():
            groups.setdefault((channel, group), Coverage()).add(inside, width, which)


def evaluate(
    spec: DatasetSpec,
    panel: Panel,
    entries: list[Entry],
    champion: Forecaster | None = None,
    champion_name: str = "champion",
    notes: list[str] | None = None,
    level_of: Callable[[str], float] = lambda _: SHARE * CAPACITY,
    best: Forecaster | None = None,
) -> Evaluation:
    """Score all entries on val, gate and test. Val ranks, gate decides on promotion, test only judges.

    `level_of` a candidate is the chance of error that a decision about it may spend. `best` is the oracle of data whose
    truth is known: it has rows, and is otherwise nobody.
    """
    began = time.perf_counter()
    baselines = {e.system.name for e in entries if e.system.branch == "baseline"}
    learned = [e for e in entries if e.system.name not in baselines]
    if not baselines or not learned:
        raise StfmError(
            "an evaluation needs at least one baseline and one other system",
            found=", ".join(e.system.name for e in entries) or "none that was trained on the current tables",
            fix="leave `--system` out, or name a baseline and a learned system",
        )
    parts = [p for p in SCORED_PARTS if p != "gate" or panel.parts["gate"] != panel.parts["val"]]
    scores = {
        (e.system.name, part): [score(f, panel, part, e.system.needs) for f in e.forecasters]
        for e in entries
        for part in parts
    }
    if "gate" not in parts:
        scores |= {(e.system.name, "gate"): scores[e.system.name, "val"] for e in entries}
    chosen = {(e.system.name, part): scores[e.system.name, part][e.chosen] for e in entries for part in SCORED_PARTS}
    mae = {e.system.name: np.mean([s.sums.mae() for s in scores[e.system.name, "val"]], axis=0) for e in entries}
    ranked = val_scores(mae, baselines)
    candidate = min((e.system.name for e in learned), key=lambda name: ranked[name])
    by_name = {e.system.name: e for e in entries}
    p = panel.problem
    horizons = list(range(1, p.horizon + 1))
    rows = [
        row
        for e in entries
        for part in parts
        for row in mean_rows(
            [s.sums.rows(spec.name, e.system.name, part, p.channels, horizons) for s in scores[e.system.name, part]]
        )
    ]
    known = {part: score(best, panel, part, ("past", "ahead")).sums for part in parts} if best is not None else {}
    rows += [row for part, s in known.items() for row in s.rows(spec.name, OPTIMUM, part, p.channels, horizons)]
    block = season_block(p.horizon, spec.seasons)
    rivals = {b: chosen[b, "gate"].sums for b in sorted(baselines)}
    if champion is not None:
        needs = next((e.system.needs for e in entries if e.system.name == champion.system), ("past", "ahead"))
        rivals[champion_name] = score(champion, panel, "gate", needs).sums
    decision = decide(chosen[candidate, "gate"].sums, rivals, block, level_of(candidate))
    ours = chosen[candidate, "test"].sums
    margins = [
        {"rival": b, "channel": name, "split": "test", "margin": m, "low": lo, "high": hi}
        for b in sorted(baselines)
        for k, name in enumerate(p.channels)
        for m, lo, hi in [block_bootstrap(ours, chosen[b, "test"].sums, block, k)]
    ]
    leader = by_name[candidate]
    without = []
    if leader.system.needs and (p.past or p.ahead):
        bare = score(leader.forecaster, panel, "test", leader.system.needs, hide_side=True).sums.mae()
        without = [
            {"channel": c, "with": float(ours.mae()[k]), "without": float(bare[k])} for k, c in enumerate(p.channels)
        ]
    test = panel.parts["test"]
    return Evaluation(
        spec=spec,
        rows=rows,
        ranking=[
            {
                "system": name,
                "val_score": ranked[name],
                "branch": by_name[name].system.branch,
                "title": by_name[name].system.title,
            }
            for name in sorted(ranked, key=lambda name: ranked[name])
        ],
        candidate=candidate,
        decision=decision,
        margins=margins,
        coverage=[row for part in ("gate", "test") for row in chosen[candidate, part].coverage],
        fallback=[
            {"system": e.system.name, "channel": c, "share": float(share)}
            for e in entries
            for c, share in zip(p.channels, chosen[e.system.name, "test"].sums.fallback_share(), strict=True)
        ],
        cost=[
            {
                "system": e.system.name,
                "seconds": sum(f.facts.get("seconds", 0.0) for f in e.forecasters),
                "peak_mb": max(f.facts.get("peak_mb", 0.0) for f in e.forecasters),
                "trainable": e.forecaster.trainable,
                "epochs": e.forecaster.facts.get("epochs", 0),
                "seeds": len(e.forecasters),
            }
            for e in entries
        ],
        hours={e.system.name: _ratio(chosen[e.system.name, "test"].sums, "hour") for e in entries}
        | ({OPTIMUM: _ratio(known["test"], "hour")} if known else {}),
        entities=_entities(panel, ours, min(baselines, key=lambda b: ranked[b]), chosen),
        examples=_examples(leader.forecaster, panel, leader.system.needs),
        without_side=without,
        warning=too_short_to_rank(
            test.stop - test.start, p.horizon, p.n * p.c, max(spec.seasons), len(panel.times), p.steps_per_day
        ),
        lineage=leader.forecaster.lineage,
        parts={name: [str(panel.times[s.start]), str(panel.times[s.stop - 1])] for name, s in panel.parts.items()},
        seconds=time.perf_counter() - began,
        notes=notes or [],
    )


def _ratio(sums: Sums, axis: str) -> list[list[float | None]]:
    size, count = getattr(sums, f"{axis}_abs"), getattr(sums, f"{axis}_count")
    return [
        [float(a / k) if k else None for a, k in zip(row, counts, strict=True)]
        for row, counts in zip(size, count, strict=True)
    ]


def _entities(panel: Panel, ours: Sums, rival: str, chosen: Mapping[tuple[str, Part], Scores]) -> list[dict[str, Any]]:
    mine, theirs = _ratio(ours, "entity"), _ratio(chosen[rival, "test"].sums, "entity")
    return [
        {
            "entity": entity,
            "mae": dict(zip(panel.problem.channels, mine[i], strict=True)),
            "baseline": rival,
            "baseline_mae": dict(zip(panel.problem.channels, theirs[i], strict=True)),
        }
        for i, entity in enumerate(panel.problem.entities)
    ]


def _examples(forecaster: Forecaster, panel: Panel, needs: tuple[str, ...], count: int = 3) -> list[dict[str, Any]]:
    """Forecasts of the busiest entities at evenly spaced test origins, with history, truth and interval."""
    p = panel.problem
    origins = panel.origins("test")
    picked = origins[np.linspace(0, len(origins) - 1, count + 2).astype(int)[1:-1].tolist()]
    window = panel.arrays.gather(picked, p, needs)
    forecast = forecaster.forecast(window)
    target, observed = truth(window, p)
    mean, std = p.tensors["mean"], p.tensors["std"]
    shown = min(p.look_back, 2 * p.horizon)
    history = window.values[:, p.look_back - shown : p.look_back] * std + mean
    seen = window.observed[:, p.look_back - shown : p.look_back]
    train = panel.parts["train"]
    busiest = (panel.arrays.observed[train].float().mean(dim=(0, 2)) * mean[:, 0].abs()).topk(min(3, p.n)).indices
    out = []
    for i, origin in enumerate(picked.tolist()):
        for node in busiest.tolist():
            for k, channel in enumerate(p.channels):
                at = (i, slice(None), node, k)
                out.append(
                    {
                        "entity": p.entities[node],
                        "channel": channel,
                        "ds": [str(t) for t in panel.times[origin - shown : origin + p.horizon]],
                        "history": [
                            v if o else None for v, o in zip(history[at].tolist(), seen[at].tolist(), strict=True)
                        ],
                        "truth": [
                            v if o else None for v, o in zip(target[at].tolist(), observed[at].tolist(), strict=True)
                        ],
                        "forecast": forecast.values[at].tolist(),
                        "low": None if forecast.bounds is None else forecast.bounds[0][at].tolist(),
                        "high": None if forecast.bounds is None else forecast.bounds[-1][at].tolist(),
                    }
                )
    return out
