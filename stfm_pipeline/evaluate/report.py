"""The evaluation as one self-contained HTML page, and as a small picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from stfm_pipeline.evaluate.metrics import Row
from stfm_pipeline.evaluate.run import Evaluation
from stfm_pipeline.pages.base import DASH as DASH
from stfm_pipeline.pages.base import finite, linkable, moment, number, numbers, source_line, templates
from stfm_pipeline.pages.base import write as write
from stfm_pipeline.truth import OPTIMUM

# Figures are plain plotly dicts: the page draws them, so that it can follow the reader's light or dark mode.
Figure = dict[str, Any]

# Every tone reads on white and on near-black; systems of the same tone differ in dash.
LEADER = "#3b82f6"
LEARNED = ("#d97706", "#0d9488", "#a855f7", "#db2777", "#65a30d")
BASELINE = ("#6b7280", "#8b93a1", "#747d8c")
DASHES = ("dot", "dash", "dashdot", "longdash", "longdashdot")
DIVERGING = [[0, "#2166ac"], [0.25, "#67a9cf"], [0.5, "#f3f4f6"], [0.75, "#ef8a62"], [1, "#b2182b"]]
EXAMPLES = 12
EDGES = 400
EXTREMES = 10


def tree(branch: Any, indent: str = "") -> Iterator[str]:
    """The lines of nested mappings and lists of mappings, drawn as a tree."""
    items = list(branch.items() if isinstance(branch, dict) else enumerate(branch, 1))
    for i, (key, value) in enumerate(items):
        last = i == len(items) - 1
        nested = (isinstance(value, dict) and value) or (
            isinstance(value, list) and isinstance((value or [0])[0], dict)
        )
        plain = ", ".join(map(str, value)) if isinstance(value, list) else value
        yield f"{indent}{'└─' if last else '├─'} {key}{'' if nested else f'  {plain}'}"
        if nested:
            yield from tree(value, indent + ("   " if last else "│  "))


def render(
    evaluation: Evaluation,
    entities: pl.DataFrame,
    edges: pl.DataFrame,
    facts: dict[str, Any],
    version: str | None = None,
) -> str:
    """The page: choice, leaderboard, errors, examples, calibration, cost, data, lineage. Loads nothing from outside."""
    from plotly.offline import get_plotlyjs

    e = evaluation
    styles = _styles(e)
    return (
        templates(Path(__file__).parent)
        .get_template("report.html.j2")
        .render(
            e=e,
            spec=e.spec,
            version=version,
            facts=facts,
            tiles=_tiles(e),
            boards=_boards(e),
            overall=_overall(e),
            bound=_bound(e),
            losses=losses(e),
            sections=[
                ("horizon", "Error by horizon", *_by_horizon(e, styles)),
                ("hour", "Error by civil hour", *_by_hour(e, styles)),
                ("entity", "Error by entity", *_by_entity(e, entities, edges)),
                ("examples", "Example forecasts", *_examples(e)),
            ],
            extremes=_extremes(e),
            rival=e.entities[0]["baseline"] if e.entities else "baseline",
            masks=sorted({m for c in e.spec.channel_names for m in facts["masked"].get(c, {})} - {"values"}),
            sources=[source_line(s.model_dump()) for s in e.spec.sources],
            linked=linkable(e.spec.homepage),
            lineage="\n".join(tree(e.lineage)),
            gate_is_val=e.parts["gate"] == e.parts["val"],
            span=lambda part: f"{moment(e.parts[part][0])} to {moment(e.parts[part][1])} UTC",
            moment=moment,
            plotly=get_plotlyjs(),
        )
    )


def picture(evaluation: Evaluation) -> bytes:
    """A small PNG: MAE on test by system and channel, the candidate highlighted."""
    from stfm_pipeline.pictures import leaderboard_picture

    rows = [{**vars(r), "horizon": str(r.horizon)} for r in evaluation.rows if r.horizon == "avg"]
    return leaderboard_picture(pl.DataFrame(rows, infer_schema_length=None), evaluation.candidate)


def losses(e: Evaluation) -> list[str]:
    """Where the candidate has a larger error than a baseline on test: one line per channel, none if nowhere."""
    rows, out = _averages(e), []
    for channel in e.spec.channel_names:
        ours, lost = rows[e.candidate, "data", channel], []
        for baseline in _baselines(e):
            theirs = rows[baseline, "data", channel]
            scores = (("MAE", ours.mae, theirs.mae), ("RMSE", ours.rmse, theirs.rmse))
            if worse := [f"{name} {number(a)} to {number(b)}" for name, a, b in scores if a > b]:
                lost.append(f"{baseline} ({', '.join(worse)})")
        if lost:
            out.append(f"{channel}, against {', '.join(lost)}")
    return out


def _averages(e: Evaluation) -> dict[tuple[str, str, str | None], Row]:
    return {(r.system, r.scale, r.channel): r for r in e.rows if r.split == "test" and r.horizon == "avg"}


def _baselines(e: Evaluation) -> list[str]:
    return [r["system"] for r in e.ranking if r["branch"] == "baseline"]


def _tiles(e: Evaluation) -> list[dict[str, Any]]:
    """Per channel, the candidate's MAE on test and how far the best baseline is from it."""
    rows, out = _averages(e), []
    for channel in e.spec.channels:
        ours = rows[e.candidate, "data", channel.name].mae
        rival = min(_baselines(e), key=lambda b: rows[b, "data", channel.name].mae)
        theirs = rows[rival, "data", channel.name].mae
        margin = 1 - ours / theirs if theirs else None
        out.append({"name": channel.name, "unit": channel.unit, "mae": ours, "rival": rival, "margin": margin})
    return out


def _cells(values: list[float], systems: Sequence[str]) -> list[dict[str, Any]]:
    best = min(v for v, s in zip(values, systems, strict=True) if s != OPTIMUM)
    texts = zip(values, systems, numbers(values), strict=True)
    return [{"text": t, "best": v == best and s != OPTIMUM} for v, s, t in texts]


def _bound(e: Evaluation) -> list[dict[str, Any]]:
    """The oracle as the last line of a table, where the dataset has one."""
    there = any(r.system == OPTIMUM for r in e.rows)
    return [{"system": OPTIMUM, "branch": "known truth"}] if there else []


def _boards(e: Evaluation) -> list[dict[str, Any]]:
    """Per channel, the systems by MAE on test, with the candidate's margin over each baseline."""
    rows = _averages(e)
    margins = {(m["rival"], m["channel"]): m for m in e.margins}
    fallback = {(f["system"], f["channel"]): f["share"] for f in e.fallback}
    boards = []
    for channel in e.spec.channels:
        order = sorted((r["system"] for r in e.ranking), key=lambda s: rows[s, "data", channel.name].mae)
        order += [r["system"] for r in _bound(e)]
        mae, rmse = (_cells([getattr(rows[s, "data", channel.name], m) for s in order], order) for m in ("mae", "rmse"))
        lines = [
            {"system": s, "cells": cells, "margin": margins.get((s, channel.name)), "fallback": fallback.get(key)}
            for s, *cells in zip(order, mae, rmse, strict=True)
            for key in [(s, channel.name)]
        ]
        boards.append({"channel": channel, "lines": lines})
    return boards


def _overall(e: Evaluation) -> list[dict[str, Any]]:
    """All channels together in standardised form, in the order of val."""
    rows, lines = _averages(e), [*e.ranking, *_bound(e)]
    order = [r["system"] for r in lines]
    scores = [_cells([getattr(rows[s, "standardised", None], m) for s in order], order) for m in ("mae", "rmse", "mse")]
    return [
        {**ranked, "cells": cells, "seeds": rows[ranked["system"], "standardised", None].seeds}
        for ranked, *cells in zip(lines, *scores, strict=True)
    ]


def _extremes(e: Evaluation) -> list[dict[str, Any]]:
    """The entities by MAE over the baseline's, mean over channels: all of them, or ten best and ten worst."""

    def mean_ratio(row: dict[str, Any]) -> float:
        known = [r for c in e.spec.channel_names if (r := _ratio(row, c)) is not None]
        return float(np.mean(known)) if known else math.inf

    ordered = sorted(e.entities, key=mean_ratio)
    if len(ordered) > 2 * EXTREMES:
        known = [row for row in ordered if mean_ratio(row) < math.inf]
        ordered = known[:EXTREMES] + known[max(EXTREMES, len(known) - EXTREMES) :]
    return [{**row, "ratio": {c: _ratio(row, c) for c in e.spec.channel_names}} for row in ordered]


def _ratio(row: dict[str, Any], channel: str) -> float | None:
    ours, theirs = finite(row["mae"][channel]), finite(row["baseline_mae"][channel])
    return None if ours is None or not theirs else ours / theirs


def _styles(e: Evaluation) -> dict[str, dict[str, Any]]:
    """One line style per system for the whole page; the candidate comes last, to be drawn on top."""
    baselines = sorted(_baselines(e))
    learned = sorted(r["system"] for r in e.ranking if r["system"] not in {*baselines, e.candidate})
    styles: dict[str, dict[str, Any]] = {
        s: {"color": BASELINE[i % len(BASELINE)], "dash": DASHES[i % len(DASHES)], "width": 1.5}
        for i, s in enumerate(baselines)
    }
    for i, s in enumerate(learned):
        dash = ("solid", *DASHES)[i // len(LEARNED) % 6]
        styles[s] = {"color": LEARNED[i % len(LEARNED)], "dash": dash, "width": 2}
    bound: dict[str, dict[str, Any]] = {r["system"]: {"dash": "dot", "width": 2.5} for r in _bound(e)}
    return styles | bound | {e.candidate: {"color": LEADER, "dash": "solid", "width": 3.5}}


def _figure(title: str, x: dict[str, Any], y: str, data: list[dict[str, Any]], height: int = 380) -> Figure:
    layout = {
        "title": {"text": escape(title), "font": {"size": 14}, "x": 0, "xref": "paper", "xanchor": "left"},
        "height": height,
        "margin": {"l": 60, "r": 16, "t": 40, "b": 40},
        "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "traceorder": "reversed"},
        "xaxis": {"automargin": True, "ticklabelstandoff": 3, **x},
        "yaxis": {"title": {"text": escape(y), "standoff": 8}, "automargin": True, "rangemode": "tozero"},
        "hovermode": "x unified",
    }
    return {"data": data, "layout": layout}


def _line(name: str, x: Sequence[Any], y: Sequence[float | None], **more: Any) -> dict[str, Any]:
    known = [finite(v) for v in y]
    return {"type": "scatter", "mode": "lines", "name": escape(name), "x": list(x), "y": known, **more}


def _by_horizon(e: Evaluation, styles: dict[str, dict[str, Any]]) -> tuple[str, list[Figure]]:
    series: dict[tuple[str, str | None], list[Row]] = {}
    for r in e.rows:
        if r.split == "test" and r.scale == "data" and r.horizon != "avg":
            series.setdefault((r.system, r.channel), []).append(r)
    figures = []
    for channel in e.spec.channels:
        found = [(s, style, series.get((s, channel.name), [])) for s, style in styles.items()]
        data = [_line(s, [r.horizon for r in rows], [r.mae for r in rows], line=style) for s, style, rows in found]
        x = {"title": {"text": f"steps ahead, {escape(e.spec.harmonize.step)} each", "standoff": 8}}
        figures.append(_figure(f"MAE of {channel.name} on test", x, channel.unit, data))
    return "", figures


def _by_hour(e: Evaluation, styles: dict[str, dict[str, Any]]) -> tuple[str, list[Figure]]:
    steps = max(map(len, e.hours.values()), default=0)
    if steps < 2:
        return "One step a day or longer, so no profile over the day.", []
    x: dict[str, Any] = {"title": {"text": f"time of day, {escape(e.spec.zone)}", "standoff": 8}, "range": [0, 24]}
    x |= {"tickvals": list(range(0, 25, 3)), "ticktext": [f"{h:02d}:00" for h in range(0, 25, 3)], "zeroline": False}
    at = [24 * i / steps for i in range(steps)]
    return "By the civil time of the step that was forecast.", [
        _figure(
            f"MAE of {channel.name} on test",
            x,
            channel.unit,
            [_line(s, at, [row[k] for row in e.hours[s]], line=style) for s, style in styles.items() if s in e.hours],
        )
        for k, channel in enumerate(e.spec.channels)
    ]


def _by_entity(e: Evaluation, entities: pl.DataFrame, edges: pl.DataFrame) -> tuple[str, list[Figure]]:
    rival = e.entities[0]["baseline"] if e.entities else "baseline"
    ratios = {c: [r for row in e.entities if (r := _ratio(row, c)) is not None] for c in e.spec.channel_names}
    won = [f"{sum(r < 1 for r in found)} of {len(found)} entities on {c}" for c, found in ratios.items()]
    lead = f"MAE of {e.candidate} over that of {rival}; below 1 is better. It is better at {', '.join(won)}."
    located = entities.drop_nulls(["lon", "lat"])
    places = dict(zip(located["entity"], zip(located["lon"], located["lat"], strict=True), strict=True))
    rows = [row for row in e.entities if row["entity"] in places]
    if not rows:
        return f"{lead} No coordinates, so no map.", []
    strongest = edges.filter(pl.col("source").is_in(list(places)) & pl.col("target").is_in(list(places)))
    ends = [
        (*places[r["source"]], *places[r["target"]])
        for r in strongest.sort("weight", descending=True).head(EDGES).iter_rows(named=True)
    ]
    lines = {
        "type": "scatter",
        "mode": "lines",
        "x": [v for a, _, c, _ in ends for v in (a, c, None)],
        "y": [v for _, b, _, d in ends for v in (b, d, None)],
        "line": {"color": "rgba(128,136,150,0.35)", "width": 0.7},
        "hoverinfo": "skip",
    }
    figures = [
        _map(channel.name, channel.unit, rows, places, lines, (e.candidate, rival)) for channel in e.spec.channels
    ]
    if len(strongest) > EDGES:
        lead += f" The maps show the {EDGES} strongest of {len(strongest):,} edges."
    return lead, figures


def _map(
    channel: str,
    unit: str,
    rows: list[dict[str, Any]],
    places: dict[str, tuple[float, float]],
    lines: dict[str, Any],
    names: tuple[str, str],
) -> Figure:
    ratios = [_ratio(row, channel) for row in rows]
    known = [r for r in ratios if r is not None]
    # A span that a few extreme entities cannot stretch, so that the colours still tell the others apart.
    span = min(1.0, max(0.1, float(np.quantile(np.abs(np.array(known) - 1), 0.9)))) if known else 1.0
    texts = [
        f"{escape(row['entity'])}<br>{escape(names[0])} {number(row['mae'][channel])} {escape(unit)}"
        f"<br>{escape(names[1])} {number(row['baseline_mae'][channel])} {escape(unit)}<br>ratio {number(ratio)}"
        for row, ratio in zip(rows, ratios, strict=True)
    ]
    x, y = ([places[row["entity"]][axis] for row in rows] for axis in (0, 1))

    def dots(which: list[int], marker: dict[str, Any]) -> dict[str, Any]:
        edge = {"color": "#6b7280", "width": 0.8}
        return {
            "type": "scatter",
            "mode": "markers",
            "x": [x[i] for i in which],
            "y": [y[i] for i in which],
            "hovertext": [texts[i] for i in which],
            "hoverinfo": "text",
            "marker": {"size": 10 if len(rows) < 300 else 6, "line": edge, **marker},
        }

    bar = {"title": {"text": "ratio", "side": "top"}, "thickness": 12, "outlinewidth": 0, "len": 0.9}
    colour = {"colorscale": DIVERGING, "cmin": 1 - span, "cmax": 1 + span, "colorbar": bar}
    scored = [i for i, r in enumerate(ratios) if r is not None]
    unscored = [i for i, r in enumerate(ratios) if r is None]
    data = [
        lines,
        dots(unscored, {"symbol": "circle-open", "color": "#8b93a1"}),
        dots(scored, {"color": [ratios[i] for i in scored], **colour}),
    ]
    figure = _figure(channel, {"title": {"text": "longitude"}, "zeroline": False}, "latitude", data, height=460)
    stretch = 1 / max(0.1, math.cos(math.radians(float(np.mean(y)))))
    axis = {"scaleanchor": "x", "scaleratio": stretch, "constrain": "domain", "rangemode": "normal", "zeroline": False}
    figure["layout"]["yaxis"] |= axis
    return {**figure, "layout": {**figure["layout"], "showlegend": False, "hovermode": "closest"}}


def _examples(e: Evaluation) -> tuple[str, list[Figure]]:
    figures = []
    for channel in e.spec.channels:
        found = [x for x in e.examples if x["channel"] == channel.name]
        share = max(1, EXAMPLES // len(e.spec.channels))
        shown = np.linspace(0, len(found) - 1, min(share, len(found))).astype(int).tolist()
        figures += [_example(found[i], channel.unit) for i in shown]
    if not figures:
        return "No examples.", []
    return f"{len(figures)} of {len(e.examples)}: evenly spaced test windows of the busiest entities, in UTC.", figures


def _example(x: dict[str, Any], unit: str) -> Figure:
    shown = len(x["history"])
    past, ahead = x["ds"][:shown], x["ds"][shown:]
    data = []
    if x["low"] is not None:
        edge = {"line": {"width": 0}, "hoverinfo": "skip"}
        data += [
            _line("upper bound", ahead, x["high"], showlegend=False, **edge),
            _line("interval", ahead, x["low"], fill="tonexty", fillcolor="rgba(59,130,246,0.22)", **edge),
        ]
    dots = {"mode": "lines+markers", "marker": {"size": 4}}
    data += [
        _line("history", past, x["history"], line={"color": BASELINE[1], "width": 1.5}, **dots),
        # Without a colour the truth takes the page's ink.
        _line("truth", ahead, x["truth"], line={"width": 1.5}, **dots),
        _line("forecast", ahead, x["forecast"], line={"color": LEADER, "width": 3}),
    ]
    figure = _figure(f"{x['entity']}: {x['channel']}, {moment(ahead[0])}", {"type": "date"}, unit, data, height=320)
    figure["layout"]["legend"]["traceorder"] = "normal"
    return figure
