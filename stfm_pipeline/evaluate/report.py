"""The evaluation as one self-contained HTML page."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from stfm_pipeline.evaluate.run import Evaluation

if TYPE_CHECKING:
    import plotly.graph_objects as go

LEADER = "#2563eb"
LEARNED = ("#d97706", "#059669", "#9333ea", "#db2777", "#0891b2")
BASELINE = ("#6b7280", "#9ca3af", "#4b5563", "#a8a29e", "#78716c")
DASH = "\N{EN DASH}"


def number(value: float | None) -> str:
    """Four significant digits, or a dash."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.4g}"


def percent(value: float | None, sign: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:+.1%}" if sign else f"{value:.1%}"


def render(
    evaluation: Evaluation,
    entities: pl.DataFrame,
    edges: pl.DataFrame,
    facts: dict[str, Any],
    version: str | None = None,
) -> str:
    """The page: choice, leaderboard, errors, examples, calibration, cost, data, lineage. Loads nothing from outside."""
    import jinja2
    from plotly.offline import get_plotlyjs

    here = Path(__file__).parent
    template = jinja2.Environment(autoescape=True, loader=jinja2.FileSystemLoader(here)).get_template("report.html.j2")
    e = evaluation
    colours = _colours(e)
    sections = [
        ("horizon", "Error by horizon", _by_horizon(e, colours)),
        ("hour", "Error by civil hour", _by_hour(e, colours)),
        ("entity", "Error by entity", _map(e, entities, edges)),
        ("examples", "Example forecasts", _examples(e)),
    ]
    first = e.spec.channels[0].name
    return template.render(
        e=e,
        spec=e.spec,
        version=version,
        facts=facts,
        board=_board(e),
        losses=losses(e),
        sections=[(key, title, [_html(f) for f in figures]) for key, title, figures in sections],
        worst=sorted(e.entities, key=lambda r: -(r["mae"][first] or 0))[:10],
        lineage=json.dumps(e.lineage, indent=1),
        gate_is_val=e.parts["gate"] == e.parts["val"],
        span=lambda part: " to ".join(t[:16].replace("T", " ") for t in e.parts[part]),
        num=number,
        pct=percent,
        plotly=get_plotlyjs(),
    )


def write(html: str, path: Path) -> Path:
    """Write atomically; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(html, encoding="utf-8")
    os.replace(scratch, path)
    return path


def losses(e: Evaluation) -> str:
    """Where the candidate is no better than a baseline on test, in one sentence."""
    rows = {(r.system, r.channel): r for r in e.rows if r.split == "test" and r.horizon == "avg" and r.scale == "data"}
    baselines = [r["system"] for r in e.ranking if r["branch"] == "baseline"]
    lost = [
        f"{metric.upper()} of {c.name} against {b} ({number(ours)} to {number(theirs)})"
        for b in baselines
        for c in e.spec.channels
        for metric in ("mae", "rmse")
        for ours, theirs in [(getattr(rows[e.candidate, c.name], metric), getattr(rows[b, c.name], metric))]
        if ours >= theirs
    ]
    if not lost:
        return f"{e.candidate} loses to no baseline on MAE or RMSE of any channel."
    return f"{e.candidate} does not beat every baseline: it loses on {'; '.join(lost)}."


def _board(e: Evaluation) -> list[dict[str, Any]]:
    test = [r for r in e.rows if r.split == "test" and r.horizon == "avg"]
    by = {(r.system, r.scale, r.channel): r for r in test}
    keys: list[tuple[str, str | None, str]] = [("data", c.name, m) for c in e.spec.channels for m in ("mae", "rmse")]
    keys += [("standardised", None, "mse"), ("standardised", None, "mae")]
    order = [r["system"] for r in e.ranking]
    best = {k: min(getattr(by[s, k[0], k[1]], k[2]) for s in order) for k in keys}
    fallback: dict[str, float] = {}
    for row in e.fallback:
        fallback[row["system"]] = max(fallback.get(row["system"], 0.0), row["share"])
    return [
        {
            "system": s,
            "cells": [{"value": v, "best": v <= best[k]} for k in keys for v in [getattr(by[s, k[0], k[1]], k[2])]],
            "fallback": fallback.get(s, 0.0),
            "seeds": by[s, "data", e.spec.channels[0].name].seeds,
        }
        for s in order
    ]


def _colours(e: Evaluation) -> dict[str, str]:
    baselines = sorted(r["system"] for r in e.ranking if r["branch"] == "baseline")
    learned = sorted(r["system"] for r in e.ranking if r["branch"] != "baseline" and r["system"] != e.candidate)
    found = {s: BASELINE[i % len(BASELINE)] for i, s in enumerate(baselines)}
    return found | {s: LEARNED[i % len(LEARNED)] for i, s in enumerate(learned)} | {e.candidate: LEADER}


def _figure(title: str, x: str, y: str) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        title={"text": title, "font": {"size": 14}},
        template="plotly_white",
        height=340,
        margin={"l": 60, "r": 20, "t": 45, "b": 45},
        legend={"font": {"size": 11}},
    )
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return figure


def _html(figure: go.Figure) -> str:
    return str(
        figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
    )


def _line(figure: go.Figure, name: str, x: Any, y: Any, colour: str, strong: bool) -> None:
    width, dash = (3, "solid") if strong else (1.5, "dot")
    figure.add_scatter(x=x, y=y, name=name, mode="lines", line={"color": colour, "width": width, "dash": dash})


def _by_horizon(e: Evaluation, colours: dict[str, str]) -> list[go.Figure]:
    figures = []
    for channel in e.spec.channels:
        figure = _figure(f"MAE of {channel.name} on test", f"steps ahead ({e.spec.harmonize.step})", channel.unit)
        for system, colour in colours.items():
            rows = [
                r
                for r in e.rows
                if r.split == "test"
                and r.scale == "data"
                and r.channel == channel.name
                and r.system == system
                and r.horizon != "avg"
            ]
            _line(figure, system, [r.horizon for r in rows], [r.mae for r in rows], colour, system == e.candidate)
        figures.append(figure)
    return figures


def _by_hour(e: Evaluation, colours: dict[str, str]) -> list[go.Figure]:
    if len(next(iter(e.hours.values()))) < 2:
        return []
    figures = []
    for k, channel in enumerate(e.spec.channels):
        figure = _figure(f"MAE of {channel.name} on test", f"step of the civil day in {e.spec.zone}", channel.unit)
        for system, colour in colours.items():
            values = [row[k] for row in e.hours[system]]
            _line(figure, system, list(range(len(values))), values, colour, system == e.candidate)
        figures.append(figure)
    return figures


def _map(e: Evaluation, entities: pl.DataFrame, edges: pl.DataFrame) -> list[go.Figure]:
    places = {
        r["entity"]: (r["lon"], r["lat"]) for r in entities.to_dicts() if r["lon"] is not None and r["lat"] is not None
    }
    if not places:
        return []
    lines: dict[str, list[float | None]] = {"lon": [], "lat": []}
    for r in edges.sort("weight", descending=True).head(400).to_dicts():
        if r["source"] in places and r["target"] in places:
            (a, b), (c, d) = places[r["source"]], places[r["target"]]
            lines["lon"] += [a, c, None]
            lines["lat"] += [b, d, None]
    figures = []
    for channel in e.spec.channels:
        figure = _figure(
            f"{e.candidate} over {e.entities[0]['baseline']}, MAE ratio of {channel.name}", "longitude", "latitude"
        )
        scored = [(r, _ratio(r["mae"][channel.name], r["baseline_mae"][channel.name])) for r in e.entities]
        rows = [r for r, ratio in scored if ratio is not None and r["entity"] in places]
        ratio = [ratio for r, ratio in scored if ratio is not None and r["entity"] in places]
        figure.add_scatter(
            x=lines["lon"],
            y=lines["lat"],
            mode="lines",
            line={"color": "#d1d5db", "width": 0.5},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=[places[r["entity"]][0] for r in rows],
            y=[places[r["entity"]][1] for r in rows],
            mode="markers",
            showlegend=False,
            text=[
                f"{r['entity']}: {number(r['mae'][channel.name])} against {number(r['baseline_mae'][channel.name])}"
                for r in rows
            ],
            hoverinfo="text",
            marker={
                "size": 11,
                "color": ratio,
                "colorscale": "RdBu_r",
                "cmin": 0.5,
                "cmax": 1.5,
                "colorbar": {"title": "ratio"},
                "line": {"color": "#374151", "width": 0.5},
            },
        )
        figure.update_layout(height=420)
        figures.append(figure)
    return figures


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or not theirs else ours / theirs


def _examples(e: Evaluation) -> list[go.Figure]:
    units = {c.name: c.unit for c in e.spec.channels}
    figures = []
    for x in e.examples[:12]:
        figure = _figure(f"{x['entity']}: {x['channel']}", "UTC", units[x["channel"]])
        past, ahead = x["ds"][: len(x["history"])], x["ds"][len(x["history"]) :]
        if x["low"] is not None:
            figure.add_scatter(
                x=ahead, y=x["high"], mode="lines", line={"width": 0}, showlegend=False, hoverinfo="skip"
            )
            figure.add_scatter(
                x=ahead,
                y=x["low"],
                mode="lines",
                line={"width": 0},
                fill="tonexty",
                fillcolor="rgba(37,99,235,0.18)",
                name="interval",
            )
        figure.add_scatter(
            x=past, y=x["history"], mode="lines+markers", marker={"size": 3}, line={"color": "#6b7280"}, name="history"
        )
        figure.add_scatter(
            x=ahead, y=x["truth"], mode="lines+markers", marker={"size": 4}, line={"color": "#111827"}, name="truth"
        )
        figure.add_scatter(x=ahead, y=x["forecast"], mode="lines", line={"color": LEADER, "width": 3}, name="forecast")
        figure.update_layout(height=280)
        figures.append(figure)
    return figures
