"""What the command line prints: tables for people, one JSON object for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from stfm_pipeline.truth import OPTIMUM

MAX_CHANNELS = 3


def emit(data: Any) -> None:
    """One JSON object on standard output; not-a-number becomes null."""
    sys.stdout.write(json.dumps(_clean(data), default=str) + "\n")


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], numeric: Sequence[str] = ()) -> None:
    """A table on standard output; numbers are aligned right."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.markup import escape
    from rich.measure import Measurement
    from rich.table import Table

    view = Table(title=escape(title), title_justify="left", header_style="bold", box=None, padding=(0, 2, 0, 0))
    cells = [["" if v is None else str(v) for v in row] for row in rows]
    for i, column in enumerate(columns):
        right = column in numeric
        # rich would cut names and digits off to make a row fit a narrow terminal.
        whole = max(map(cell_len, (column, *(row[i] for row in cells)))) if right or i == 0 else None
        side: Any = "right" if right else "left"
        view.add_column(escape(column), justify=side, overflow="fold", no_wrap=whole is not None, min_width=whole)
    for row in cells:
        view.add_row(*map(escape, row))
    console = Console(width=None if sys.stdout.isatty() else 140)
    least = Measurement.get(console, console.options.update(width=10_000), view).minimum
    console.width = max(console.width, least)
    console.print(view)


def say(text: str) -> None:
    from rich.console import Console

    Console(soft_wrap=True, highlight=False).print(text, markup=False)


def error(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(text, style="red", markup=False)


def leaderboard(rows: Sequence[dict[str, Any]], facts: dict[str, Any], units: dict[str, str]) -> None:
    """The test leaderboard with MAE and RMSE per channel, margins of the leader, and what is lost."""
    channels = list(dict.fromkeys(r["channel"] for r in rows if r["channel"] is not None))
    average = [r for r in rows if r["split"] == "test" and r["horizon"] == "avg"]
    by = {(r["system"], r["scale"], r["channel"]): r for r in average}
    order = [r["system"] for r in facts["ranking"]]
    bound = [OPTIMUM] if (OPTIMUM, "standardised", None) in by else []
    fallback = {(f["system"], f["channel"]): f["share"] for f in facts["fallback"]}
    shown = channels if len(channels) <= MAX_CHANNELS else []
    columns = [
        "system",
        "val rank",
        *(f"{c} {m}" for c in shown for m in ("MAE", "RMSE")),
        "all MSE*",
        "all MAE*",
        "fallback",
        "seeds",
    ]
    lines = []
    for rank, system in enumerate([*order, *bound], start=1):
        cells = [by[system, "data", c] for c in shown]
        whole = by[system, "standardised", None]
        share = max(fallback.get((system, c), 0) for c in channels)
        mark = " <" if system == facts["candidate"]["system"] else ""
        lines.append(
            [
                f"{system}{mark}",
                "–" if system == OPTIMUM else rank,
                *(f"{r[m]:.4g}" for r in cells for m in ("mae", "rmse")),
                *(f"{whole['mse']:.4f}", f"{whole['mae']:.4f}", f"{share:.1%}", whole["seeds"]),
            ]
        )
    windows, cells_n = average[0]["windows"], {c: by[order[0], "data", c]["n"] for c in channels}
    if facts["warning"]:
        say(f"! {facts['warning']}")
    title = f"test: {windows} windows; cells " + ", ".join(f"{c} {n}" for c, n in cells_n.items())
    table(title, columns, lines, columns[1:])
    where = "; ".join(f"{c} in {units[c]}" for c in shown) or "the report has each channel in its own unit"
    say(f"  <: the candidate, best on val of the systems that are no baselines. * all channels, standardised. {where}")
    _margins(facts, by, channels)


def _margins(facts: dict[str, Any], by: dict[tuple[str, str, str | None], dict[str, Any]], channels: list[str]) -> None:
    leader = facts["candidate"]["system"]
    baselines = [r["system"] for r in facts["ranking"] if r["branch"] == "baseline"]
    for channel in channels:
        best = min(baselines, key=lambda b: float(by[b, "data", channel]["mae"]))
        m = next(m for m in facts["margins"] if m["rival"] == best and m["channel"] == channel)
        say(
            f"  {channel}: MAE of {leader} is {abs(m['margin']):.1%} {'lower' if m['margin'] > 0 else 'HIGHER'} than "
            f"that of the best baseline, {best}; 95 % interval of the gain {m['low']:+.1%} to {m['high']:+.1%}"
        )
    lost = [
        f"{metric.upper()} of {channel} against {b}"
        for b in baselines
        for channel in channels
        for metric in ("mae", "rmse")
        if by[leader, "data", channel][metric] >= by[b, "data", channel][metric]
    ]
    say(f"  {leader} loses on: {', '.join(lost)}" if lost else f"  {leader} loses to no baseline on MAE or RMSE")
    for note in facts["notes"]:
        say(f"  note: {note}")


def reproduction(compared: Sequence[dict[str, Any]]) -> None:
    """Our numbers beside the published ones of the same systems."""
    lines = [
        [
            c["system"],
            c["at"],
            c["metric"].upper(),
            f"{c['published']:g}",
            f"{c['measured']:.4g}" + (f" ± {c['deviation']:.2g}" if c["deviation"] else ""),
            f"{c['difference']:+.1%}",
            f"{c['tolerance']:.0%}",
            c["verdict"],
        ]
        for c in compared
    ]
    if lines:
        columns = ["system", "at", "metric", "published", "measured", "difference", "tolerance", "reproduced"]
        table(
            "\nreproduction (green: within the tolerance of the published number)",
            columns,
            lines,
            columns[3:7],
        )
