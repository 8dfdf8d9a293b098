"""What a dataset says about itself, in words: protocol, channels, side information; and its split."""

from __future__ import annotations

from typing import Any

import numpy as np

from stfm_pipeline.datasets.rules import Filter
from stfm_pipeline.datasets.spec import PARTS, Channel, DatasetSpec, Join
from stfm_pipeline.lake import Stage
from stfm_pipeline.origins import origins
from stfm_pipeline.pages.axis import Axis, duration
from stfm_pipeline.pages.chart import Chart
from stfm_pipeline.pages.dataset.loaded import Loaded, stamp
from stfm_pipeline.tables import step_us, times_of

TONES = {"train": "t0", "val": "t1", "gate": "t2", "test": "t3"}
SHARED = {"error": "are refused", "first": "the first counts", "last": "the last counts", "mean": "their mean counts"}

SCALES = {"zscore": "z-score", "minmax": "smallest value and range", "robust": "median and interquartile range"}


def protocol(spec: DatasetSpec) -> dict[str, str]:
    """How the dataset is read and judged, as terms with their values."""
    rule, us = spec.harmonize, step_us(spec.harmonize.step)

    def steps(count: int) -> str:
        return f"{count:,} steps ({duration(count * us)})"

    terms = {
        "Step": duration(us),
        "Look-back": steps(spec.task.look_back),
        "Horizon": steps(spec.task.horizon),
        "Loss": spec.task.loss.upper(),
        "Candidate seasons": ", ".join(steps(s) for s in spec.seasons if s > 1) or "none",
        "Civil zone": spec.zone + (f", holidays of {spec.country}" if spec.country else ""),
        "Scaled": f"{SCALES[rule.scale]} of the training part, per {rule.scale_per}",
        "Rows sharing a step": SHARED[rule.duplicates],
    }
    if spec.task.clip is not None:
        terms["Clips"] = f"{steps(spec.task.clip)} each; no window crosses from one into the next"
    if rule.outliers:
        terms["Outliers masked"] = f"beyond {rule.outliers.threshold:g} scaled MADs of the entity's training median"
    if rule.filters:
        terms["Filters"] = ", then ".join(_filter(f) for f in rule.filters)
    if rule.climatology:
        names = {"tod": "time of day", "month": "month"}
        terms["Shown to systems"] = f"less the training mean of the {' and '.join(names[p] for p in rule.climatology)}"
    if rule.coarsen:
        by = rule.coarsen.by
        terms["Made coarser"] = f"blocks of {by} x {by} cells, of which at least {rule.coarsen.at_least:.0%} observed"
    if rule.min_observed:
        terms["Series masked whole"] = f"with less than {rule.min_observed:.0%} of the training part observed"
    return terms


def _filter(rule: Filter) -> str:
    options = rule.model_dump(exclude={"kind", "channels"}, exclude_defaults=True)
    what = ", ".join(f"{k} {v}" for k, v in options.items())
    return f"{rule.kind} ({what}{'' if rule.channels is None else ' in ' + ', '.join(rule.channels)})"


def channel(c: Channel) -> dict[str, str]:
    """What a channel's values may be, and what becomes of the others."""
    low, high = ("" if v is None else f"{v:g}" for v in (c.minimum, c.maximum))
    return {
        "name": c.name,
        "unit": c.unit,
        "about": c.description,
        "range": f"{low or '−∞'} to {high or '∞'}" if low or high else "any",
        "codes": ", ".join(f"{v:g}" for v in c.missing) or "none",
        "absent": "missing" if c.absent is None else f"{c.absent:g}",
    }


def side(join: Join, enriched: Stage | None) -> dict[str, Any]:
    """One join in words, with the observed share of its columns."""
    shares = enriched.facts.get("observed_share", {}) if enriched else {}
    known = "known ahead, for the whole horizon" if join.timed else "never changes"
    if join.availability == "past":
        known = "known at the end of its step" + (
            f", {duration(lag)} later" if (lag := step_us(join.lag, zero=True)) else ""
        )
        known += "; used up to the origin" + (
            f", at most {duration(step_us(join.tolerance, zero=True))} old" if join.tolerance else ""
        )
    return {
        "table": join.table,
        "columns": {c: shares.get(c) for c in join.columns},
        "known": known,
        "whose": _whose(join),
        "absent": "missing" if join.absent is None else f"{join.absent:g}",
    }


def _whose(join: Join) -> str:
    if join.via == "place":
        who = "the nearest place" if join.nearest == 1 else f"mean of the {join.nearest} nearest places, by distance,"
        return f"{who} within {join.within_km:g} km that has a value"
    return "its own" if join.via == "entity" else "mean of linked entities, by edge weight"


def split(d: Loaded) -> list[dict[str, Any]]:
    """Per part: start, end, steps, windows with anything to forecast. A part without steps of its own is val again."""
    task, seen = d.spec.task, d.signal.observed.any(axis=(1, 2))
    until = np.concatenate([[0], np.cumsum(seen)])
    rows = []
    for part, start, end in zip(PARTS, times_of(d.split["start"]), times_of(d.split["end"]), strict=True):
        first = origins(d.parts[part], task.look_back, task.horizon, task.clip)
        rows.append(
            {
                "part": part,
                "start": str(start),
                "end": str(end),
                "steps": round(float((end - start) / np.timedelta64(d.signal.step_us, "us"))),
                "windows": int((until[first + task.horizon] > until[first]).sum()),
            }
        )
    return rows


def optimum(raw: Stage | None, spec: DatasetSpec) -> dict[str, Any] | None:
    """The stated errors of the best forecast, at some steps and on average, with what is claimed of them."""
    known = raw.facts.get("optimum") if raw else None
    if known is None:
        return None
    far = spec.task.horizon
    at = sorted({1, 2, max(1, far // 4), max(1, far // 2), far})
    rows = [
        {"channel": c, "metric": metric, "avg": scores["avg"][metric], "steps": [scores[metric][k - 1] for k in at]}
        for c, scores in known["scores"].items()
        for metric in ("mae", "rmse")
    ]
    return {"claim": known["claim"], "at": at, "rows": rows}


def split_chart(d: Loaded, rows: list[dict[str, Any]]) -> str:
    """The parts on the time axis."""
    own = [r for r in rows if r["steps"]]
    said = "; ".join(f"{r['part']} {r['start'][:10]} to {r['end'][:10]}" for r in own)
    chart = Chart("Parts, by UTC", f"Time axis with the parts: {said}.", d.time_axis, Axis(0, 1), 44)
    for r in own:
        start, end = (float(stamp(np.array([r[k]], "datetime64[us]"))[0]) for k in ("start", "end"))
        chart.boxes([start, 0, end, 1], f"area solid {TONES[r['part']]}")
        chart.note((start + end) / 2, 0.5, r["part"], "on part")
    return chart.html()
