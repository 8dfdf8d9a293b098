"""The drift page: where and since when, from the published tables alone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.pages.axis import dates, linear
from stfm_pipeline.pages.base import count, number, percent, templates
from stfm_pipeline.pages.chart import Chart
from stfm_pipeline.pages.dataset.places import map_axes

DRAWN, LISTED = 12, 40
RED, GREEN = "--h:0", "--h:160"
ABOUT = {
    "level": "values lie higher or lower than usual for the hour",
    "scale": "values swing more or less around the usual",
    "distribution": "values are spread otherwise",
    "phase": "the daily rhythm comes earlier or later",
    "missing": "more or fewer values are missing",
    "errors rose": "the champion errs more than on val and gate",
    "errors changed": "the champion errs more or less than on val and gate",
}


def drift_page(stage: Stage, lake: Lake) -> str:
    """The page of a published drift stage as HTML."""
    spec = get_dataset(stage.dataset).spec
    found, series = lake.read(stage, "findings"), lake.read(stage, "series")
    units = {c.name: c.unit for c in spec.channels}
    rows = [{**r, "said": said(r)} for r in found.to_dicts()]
    kinds = [k for k in ABOUT if k in series["kind"].unique().to_list()]
    return (
        templates(Path(__file__).parent)
        .get_template("page.html.j2")
        .render(
            spec=spec,
            stage=stage,
            rows=rows,
            kinds=kinds,
            about=ABOUT,
            group=lambda g: group_name(g, stage.facts["groups"]),
            matrices=[_matrix(c.name, kinds, found, series, stage) for c in spec.channels] if kinds else [],
            map=_map(stage, lake, found),
            charts=[_chart(r, series, found, units, stage) for r in _worth_drawing(found, series)],
            drawn=DRAWN,
            listed=LISTED,
        )
    )


def group_name(group: str, groups: dict[str, list[str]]) -> str:
    """A group with who is in it: patches have numbers, which say nothing."""
    names = groups[group]
    if group == "all":
        return "all entities"
    return f"patch {group}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def said(row: dict[str, Any]) -> str:
    """What a finding says in plain units."""
    kind, usual, now, change = row["kind"], row["usual"], row["now"], row["change"]
    if kind == "missing":
        return f"{percent(now)} missing, usually {percent(usual)}"
    if kind == "level":
        return f"{'+' if change > 0 else ''}{number(change, 3)} {row['unit']}"
    if kind == "phase":
        return f"{abs(now - usual):.1f} h {'later' if change > 0 else 'earlier'}"
    if kind == "distribution":
        return f"distance {now:.2f}, usually {usual:.2f}"
    return f"{change:.2f} times the usual"


def _matrix(channel: str, kinds: list[str], found: pl.DataFrame, series: pl.DataFrame, stage: Stage) -> dict[str, Any]:
    """Groups by kinds of one channel: when what is an alarm began, and what could not be judged."""
    since = {(r["group"], r["kind"]): r["since"] for r in found.filter(channel=channel).to_dicts()}
    last = series.filter(pl.col("channel") == channel, pl.col("time") == pl.col("time").max())
    judged = {(r["group"], r["kind"]) for r in last.filter(pl.col("p").is_not_null()).to_dicts()}
    groups = sorted(stage.facts["groups"], key=lambda g: (g != "all", -sum(k[0] == g for k in since)))
    rows = [{"group": g, "cells": [(since.get((g, k)), (g, k) in judged) for k in kinds]} for g in groups[:LISTED]]
    return {"channel": channel, "rows": rows, "more": len(groups) - len(rows)}


def _map(stage: Stage, lake: Lake, found: pl.DataFrame) -> str | None:
    harmonized = lake.as_made_of(stage.dataset, "harmonized", stage.inputs["harmonized"])
    if harmonized is None:
        return None
    entities = lake.read(harmonized, "entities").drop_nulls(["lon", "lat"])
    if entities.is_empty():
        return None
    x, y = (entities[c].cast(pl.Float64).to_numpy() for c in ("lon", "lat"))
    hit = {g for g in found["group"].unique().to_list() if g != "all"}
    away = {e: g for g in hit for e in stage.facts["groups"][g]}
    names = entities["entity"].to_list()
    which = np.array([e in away for e in names])
    across, up, aspect = map_axes(x, y, degrees=True)
    title = f"{count(int(which.sum()))} of {count(len(names))} entities are in a patch that drifts"
    chart = Chart(title, f"Map: {title}. The tables give the patches.", across, up, aspect)
    for tone, some in ((GREEN, ~which), (RED, which)):
        texts = [f"{names[i]}{', patch ' + away[names[i]] if names[i] in away else ''}" for i in np.flatnonzero(some)]
        chart.dots(x[some], y[some], tone, 9 if len(names) <= 200 else 5, texts if len(names) <= 400 else ())
    return chart.html()


def _worth_drawing(found: pl.DataFrame, series: pl.DataFrame) -> list[dict[str, Any]]:
    """What drifts, the surest first; where nothing does, what comes nearest to it."""
    if len(found):
        return found.head(DRAWN).to_dicts()
    last = series.filter(pl.col("time") == pl.col("time").max(), pl.col("p").is_not_null())
    return (
        last.sort("p", "kind", "channel", "group")
        .unique(["kind", "channel"], keep="first", maintain_order=True)
        .head(6)
        .to_dicts()
    )


def _chart(row: dict[str, Any], series: pl.DataFrame, found: pl.DataFrame, units: dict[str, str], stage: Stage) -> str:
    mine = series.filter(*(pl.col(k) == row[k] for k in ("kind", "channel", "group"))).sort("time")
    at, value = _micros(mine["time"]), mine["value"].cast(pl.Float64).fill_null(np.nan).to_numpy()
    low, high = (float(mine[c].drop_nulls()[0]) for c in ("low", "high"))
    end = datetime.fromisoformat(stage.facts["until"] + "Z").timestamp() * 1e6
    step = float(at[1] - at[0]) if len(at) > 1 else 1.0
    if row["kind"] not in ("level", "phase"):
        low = max(low, 0.0)
    ends = np.array([low, high, *value[np.isfinite(value)]])
    pad = 0.06 * max(float(np.ptp(ends)), 1e-9)
    title = f"{row['kind'].capitalize()} of {row['channel']}, {group_name(row['group'], stage.facts['groups'])}"
    unit = {"level": f"{units[row['channel']]} from the usual", "phase": "hours later", "missing": "share missing"}
    up = linear(float(ends.min()) - pad, float(ends.max()) + pad, unit.get(row["kind"], _measure(row["kind"])))
    alarm = mine["alarm"].to_numpy()
    alt = f"{title}: blocks over time beside the range of the reference. {int(alarm.sum())} blocks are alarms."
    chart = Chart(title, alt, dates(float(at[0]), end), up, 180)
    chart.boxes([[float(at[0]), low, end, high]], "area t4 band")
    reference = mine.filter(part="reference")["time"]
    if len(reference):
        chart.rule(float(_micros(reference)[-1]) + step, "judged from here")
    chart.line(at + step / 2, value, "t0")
    chart.dots((at + step / 2)[alarm], value[alarm], RED, 7)
    if row.get("since") is not None:
        since = row["since"].timestamp() * 1e6
        side = "left" if since > (float(at[0]) + end) / 2 else "right"
        chart.rule(since)
        chart.note(since, up.low + 2 * pad, f"since {row['since'].day} {row['since']:%b}", f"{side} since")
    return chart.html()


def _measure(kind: str) -> str:
    return {"scale": "times the usual swing", "distribution": "distance from the usual, 0 to 1"}.get(
        kind, "mean absolute error, in deviations"
    )


def _micros(times: pl.Series) -> Any:
    return times.cast(pl.Int64).to_numpy().astype(np.float64)
