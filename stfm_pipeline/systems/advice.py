"""Which systems fit a dataset, the most promising first, each with the reason in numbers.

What is measured on train and val (`_measure`) meets what a system declares: side information it needs, dependencies it
models. Where every fit system has been evaluated on the current data, its val score decides instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.lake import Lake
from stfm_pipeline.systems._measure import Facts, measure
from stfm_pipeline.systems.catalog import all_systems, unfit_reason
from stfm_pipeline.systems.spec import System

# A gain below this share of the squared error, or within two standard errors of 0, decides nothing.
LEAST_GAIN = 0.02
LISTED_CHANNELS = 3
SEES = {"temporal": "time alone", "spatial": "space alone", "both": "space and time"}
CLIMATOLOGY, SEASONAL = "climatology", ("seasonal-naive",)


@dataclass(frozen=True)
class Advice:
    """Systems in order with `rank` (None: unfit), `reason`, `val_score`, `unfit`; what was measured; both in words."""

    rows: list[dict[str, Any]]
    head: list[str]
    order: str


def advise(spec: DatasetSpec, lake: Lake, task: str = "forecasting") -> Advice:
    """Every system, those that fit `spec` first and ranked, the others last with why they do not."""
    systems = list(all_systems().values())
    unfit = {s.name: unfit_reason(s, spec, task) for s in systems}
    fit = [s for s in systems if unfit[s.name] is None]
    facts, head = _facts(spec, lake) if fit else (None, [])
    scores, old = _val_scores(spec.name, lake)
    learned_first = facts is None or (facts.mean("ridge_gain") or 0.0) > LEAST_GAIN
    if fit and all(s.name in scores for s in fit):
        fit.sort(key=lambda s: scores[s.name])
        order = "by the val score measured (mean over channels of MAE / best-baseline MAE): measured beats guessed"
    elif facts is None:
        order = "declared kinds alone; nothing here is ranked by promise"
    else:
        fit.sort(key=lambda s: (_promise(s, spec, facts, learned_first), s.name))
        order = _order(spec, facts, learned_first)
        if any(s.name in scores for s in fit):
            order += "; val scores are shown, and decide once every fit system has one"
    if old:
        order += f"; val scores of older data are left out (`stfm run {spec.name}` measures anew)"
    worth = _measured(facts)
    rows = []
    for rank, system in enumerate([*fit, *(s for s in systems if unfit[s.name] is not None)], start=1):
        fits = unfit[system.name] is None
        score = scores.get(system.name) if fits else None
        reason = _reason(system, spec, facts) if fits else f"unfit: {unfit[system.name]}"
        if score is not None:
            reason = f"val score {score:.3f} measured; {reason}"
        row = {"rank": rank if fits else None, "unfit": unfit[system.name], "val_score": score, "reason": reason}
        rows.append({**system.describe(), **row, "measured": worth})
    return Advice(rows, head, order)


def _facts(spec: DatasetSpec, lake: Lake) -> tuple[Facts | None, list[str]]:
    """What was measured, with the lines that say it; None and why where nothing could be."""
    stage = lake.stage(spec.name, "harmonized")
    run = f"`stfm run {spec.name} --until harmonized` gives measurements"
    if stage is None:
        return None, [f"{spec.name} has no harmonized stage yet, so nothing is measured; {run}"]
    if "signal" not in stage.tables:
        return None, [f"{spec.name} has no dense signal; measurements are made on graphs and grids"]
    if (tuple(stage.facts["channels"]), stage.facts["step"]) != (spec.channel_names, spec.harmonize.step):
        return None, [f"the harmonized stage of {spec.name} was made from another spec; {run}"]
    facts = measure(spec, lake, stage)
    lines = [f"{spec.name}: measured on train and scored on val ({facts.sample}); gate and test are not read"]
    if facts.season is not None:
        lines.append(f"season: {_season(facts)}; 1 is a season without remainder, 0 is none")
    if not facts.ladders:
        return facts, [*lines, "too few observed windows to measure what recent values or neighbours are worth"]
    gain, noise = facts.mean("neighbour_gain"), facts.mean("neighbour_noise")
    lines.append(
        f"own recent values improve on the climatology by {_percent(facts.mean('recent_gain'))} in squared error, "
        "by a ridge forecast of the first, middle and last step of the horizon"
    )
    if gain is None or noise is None:
        lines.append(
            "too few windows to measure neighbours" if facts.neighbours else "there is one series, without neighbours"
        )
    else:
        each = _by_channel({a.channel: f"{a.neighbour_gain or 0:+.1%}" for a in facts.ladders})
        lines.append(
            f"neighbours ({facts.neighbours}) improve that ridge by {gain:+.1%}, standard error {noise:.1%}"
            + (f" ({each})" if len(facts.ladders) > 1 else "")
        )
    return facts, lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _by_channel(texts: dict[str, str]) -> str:
    shown = [f"{text} {name}" for name, text in list(texts.items())[:LISTED_CHANNELS]]
    return ", ".join(shown) + (f" and {len(texts) - len(shown)} more" if len(texts) > len(shown) else "")


def _season(facts: Facts) -> str:
    best = facts.season
    assert best is not None
    rows = [r for r in facts.seasons if r["steps"] == best["steps"]]
    each = {r["channel"]: "unknown" if r["strength"] is None else f"{r['strength']:.2f}" for r in rows}
    return f"{best['steps']} steps with strength {_by_channel(each)}"


def _val_scores(name: str, lake: Lake) -> tuple[dict[str, float], bool]:
    """Val scores of the last evaluation by system; empty, and True, where it was of older data."""
    from stfm_pipeline.training import TABLES, table_versions

    evaluated = lake.stage(name, "evaluated")
    if evaluated is None or any(lake.stage(name, s) is None for s in TABLES):
        return {}, False
    now = table_versions(lake, name)
    for trained, version in evaluated.inputs.items():
        stage = lake.stage(name, trained)
        if stage is None or stage.data_version != version or stage.inputs != now:
            return {}, True
    return {r["system"]: float(r["val_score"]) for r in evaluated.facts["ranking"]}, False


def neighbours_matter(facts: Facts) -> bool:
    """Whether neighbours are worth more than `LEAST_GAIN` and more than two standard errors."""
    gain, noise = facts.mean("neighbour_gain"), facts.mean("neighbour_noise")
    return gain is not None and noise is not None and gain > max(LEAST_GAIN, 2 * noise)


def _used(system: System, spec: DatasetSpec) -> list[str]:
    """The declared side tables that a system looks at."""
    return [j.table for j in spec.joins if j.availability in system.needs]


def _promise(system: System, spec: DatasetSpec, facts: Facts, learned_first: bool) -> tuple[float, ...]:
    """Sort key, smallest first: learned before simple or the reverse, then side information, then dependencies."""
    if system.branch == "baseline":
        return (float(learned_first), facts.simple().get(system.name, float("inf")))
    fits_space = (system.dependencies != "temporal") == neighbours_matter(facts)
    return (float(not learned_first), -float(bool(_used(system, spec))), -float(fits_space))


def _order(spec: DatasetSpec, facts: Facts, learned_first: bool) -> str:
    gain = facts.mean("ridge_gain")
    rules = []
    if gain is not None:
        over = f"a ridge is {abs(gain):.1%} {'better' if gain > 0 else 'WORSE'} than the best simple forecast (MSE)"
        rules.append(f"{'learned systems' if learned_first else 'baselines'} first, as {over}")
    else:
        rules.append("baselines first, as there is too little data to measure more")
    if any(j.timed for j in spec.joins):
        rules.append("then those that use the declared side information")
    rules.append(f"then those that model {'space' if neighbours_matter(facts) else 'time alone'}; ties by name")
    return ", ".join(rules)


def _reason(system: System, spec: DatasetSpec, facts: Facts | None) -> str:
    """One line: what was measured, and what the system makes of it."""
    sees = SEES[system.dependencies]
    if facts is None:
        return f"fits {spec.kind} data; models {sees}"
    if system.branch == "baseline":
        return _simple_reason(system, facts, spec.task.look_back)
    gain, noise = facts.mean("neighbour_gain"), facts.mean("neighbour_noise")
    spatial = system.dependencies != "temporal"
    if gain is None or noise is None:
        said = (
            "too few windows to measure neighbours" if facts.neighbours else "there is one series, without neighbours"
        )
    elif neighbours_matter(facts):
        said = f"neighbours improve a ridge forecast by {gain:.1%} on val"
    elif gain > 0:
        said = f"neighbours improve a ridge forecast by {gain:.1%} on val, too little to count"
    else:
        said = f"neighbours improve no ridge forecast on val ({gain:+.1%})"
    parts = [f"{said}; this system models {sees}"]
    if spatial and gain is None and not facts.neighbours:
        parts[0] += ", of which space is empty here"
    if timed := [j.table for j in spec.joins if j.timed]:
        used = _used(system, spec)
        unused = [t for t in timed if t not in used]
        parts += [f"uses {' and '.join(used)}"] if used else []
        parts += [f"leaves {' and '.join(unused)} unused"] if unused else []
    return "; ".join(parts)


def _simple_reason(system: System, facts: Facts, look_back: int) -> str:
    simple = facts.simple()
    if system.name not in simple:
        return "a baseline, not among the simple forecasts measured here"
    errors = {a.channel: f"{getattr(a, facts.loss)[system.name]:.3f}" for a in facts.ladders}
    best = min(simple, key=lambda s: simple[s])
    text = f"{facts.loss.upper()} on val {_by_channel(errors)} (standardised)"
    if system.name == best:
        text = f"beat this first: {text}, the lowest of the simple forecasts"
    else:
        text += f", {simple[system.name] / simple[best] - 1:.0%} above {best}"
    if (system.backbone == CLIMATOLOGY or system.name in SEASONAL) and facts.season is not None:
        text += f"; season of {facts.season['steps']} steps, strength {facts.season['strength']:.2f}"
        if system.name == "seasonal-naive" and facts.season["steps"] > look_back:
            text += f", longer than the look-back of {look_back}: it repeats the last value"
    return text


def _measured(facts: Facts | None) -> dict[str, Any] | None:
    """What was measured, as data."""
    if facts is None:
        return None
    gains = ("recent_gain", "ridge_gain", "neighbour_gain", "neighbour_noise")
    return {
        "sample": facts.sample,
        "neighbours": facts.neighbours or None,
        "season": facts.season,
        "seasons": facts.seasons,
        **{k: facts.mean(k) for k in gains},
        "simple": facts.simple(),
        "channels": [vars(ladder) for ladder in facts.ladders],
    }
