"""`stfm evaluate`: what was trained here, and forecasts made elsewhere, under one contract."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stfm_pipeline.cli.base import DEFAULT_DATASET, Json, app, command, open_lake
from stfm_pipeline.cli.road import print_result, result_of
from stfm_pipeline.errors import StfmError, UsageError

if TYPE_CHECKING:
    from stfm_pipeline.evaluate.compare import Comparison


@command(app)
def evaluate(
    dataset: Annotated[str, typer.Argument()] = DEFAULT_DATASET,
    system: Annotated[list[str] | None, typer.Option(help="Show only these systems.")] = None,
    predictions: Annotated[
        list[Path] | None, typer.Option(help="Forecasts made elsewhere, for the windows of `stfm benchmark windows`.")
    ] = None,
    zone: Annotated[str | None, typer.Option(help="Zone of naive times in --predictions, e.g. UTC.")] = None,
    export: Annotated[Path | None, typer.Option(help="Also write the table: FILE.csv or FILE.tex.")] = None,
    as_json: Json = False,
) -> None:
    """Score every system trained on a dataset's current data, or forecasts made elsewhere beside them."""
    from stfm_pipeline.evaluate.export import check_suffix

    if export is not None:
        check_suffix(export)
    if predictions:
        if system:
            raise UsageError("--system and --predictions do not go together", fix="leave --system out")
        _foreign(dataset, predictions, zone, export, as_json)
    else:
        _trained(dataset, system or [], export, as_json)


def _trained(dataset: str, system: list[str], export: Path | None, as_json: bool) -> None:
    from stfm_pipeline.console import emit, say
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.evaluate.export import write_leaderboard
    from stfm_pipeline.scoring import evaluate_dataset
    from stfm_pipeline.systems.catalog import get_system

    spec = get_dataset(dataset).spec
    for name in system:
        get_system(name)
    settings, lake = open_lake()
    evaluate_dataset(dataset, lake, settings)
    result = result_of(dataset, lake, settings)
    if system:
        result["leaderboard"] = [r for r in result["leaderboard"] if r["system"] in system]
        known = {r["system"] for r in result["leaderboard"]}
        if missing := [s for s in system if s not in known]:
            raise StfmError(
                f"not trained on the current data of '{dataset}': {', '.join(missing)}", fix=f"`stfm run {dataset}`"
            )
    if export is not None:
        write_leaderboard(result["leaderboard"], result["facts"], spec, export)
    if as_json:
        emit({k: v for k, v in result.items() if k != "facts"})
        return
    if system:
        _print_rows(result["leaderboard"])
    else:
        print_result(result, lake)
    if export is not None:
        say(f"  table   {export}")


def _foreign(dataset: str, files: list[Path], zone: str | None, export: Path | None, as_json: bool) -> None:
    from dataclasses import asdict

    from stfm_pipeline.console import emit, say
    from stfm_pipeline.evaluate.compare import compare

    settings, lake = open_lake()
    found = compare(dataset, files, lake, settings, zone)
    if export is not None:
        _write(found, export)
    if as_json:
        audit = [{**asdict(f), "suspect": f.suspect} for f in found.findings]
        facts = {"dataset": dataset, "windows": found.windows.name, "count": len(found.windows.origins)}
        rows = [vars(r) for r in found.rows]
        emit({**facts, "warning": found.warning, "leaderboard": rows, "margins": found.margins, "audit": audit})
        return
    _print_comparison(found)
    if export is not None:
        say(f"  table   {export}")


def _write(found: Comparison, path: Path) -> None:
    from stfm_pipeline.evaluate.export import write_leaderboard

    notes = [found.warning] if found.warning else []
    write_leaderboard([vars(r) for r in found.rows], None, found.spec, path, part=found.windows.part, notes=notes)


def _print_comparison(found: Comparison) -> None:
    from stfm_pipeline.console import say, table

    spec, given = found.spec, set(found.given)
    by = {(r.system, r.channel): r for r in found.rows if r.scale == "data" and r.horizon == "avg"}
    margins = {(m["system"], m["rival"], m["channel"]): m for m in found.margins}
    say(f"\n{spec.title} ({spec.licence})")
    if found.warning:
        say(f"! {found.warning}")
    say(f"{len(found.windows.origins)} windows of {found.windows.horizon} steps, {found.windows.name}")
    for channel in spec.channels:
        order = sorted({s for s, _ in by}, key=lambda s: by[s, channel.name].mae)
        gains = [f"gain of {g}" for g in found.given]
        lines = []
        for s in order:
            row = by[s, channel.name]
            cells = [_gain(margins.get((g, s, channel.name))) for g in found.given]
            lines.append([f"{s} <" if s in given else s, f"{row.mae:.4g}", f"{row.rmse:.4g}", *cells])
        cells_n = by[order[0], channel.name].n
        unit = "" if channel.unit == "unstated" else f" in {channel.unit}"
        title = f"\n{channel.name}{unit}, {found.windows.part}: {cells_n} cells each (<: made elsewhere)"
        table(title, ["forecast", "MAE", "RMSE", *gains], lines, ["MAE", "RMSE", *gains])
    say("  gain: how much lower the MAE is than that of the row, with the 95 % interval of a paired block bootstrap")
    _print_audit(found)


def _gain(margin: dict[str, Any] | None) -> str:
    if margin is None:
        return ""
    known = isfinite(margin["low"])
    return f"{margin['margin']:+.1%} " + (f"[{margin['low']:+.1%}, {margin['high']:+.1%}]" if known else "[unknown]")


def _print_audit(found: Comparison) -> None:
    from stfm_pipeline.console import say, table

    def share(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    lines = [
        [
            f.name,
            share(f.shift, "+d"),
            "-" if f.gain is None else _gain({"margin": f.gain, "low": f.low, "high": f.high}),
            share(f.surprises, ".2f"),
            share(f.exact, ".1%"),
            "LOOK" if f.suspect else "nothing",
        ]
        for f in sorted(found.findings, key=lambda f: f.name not in found.given)
    ]
    columns = ["forecast", "read as step", "fits better by", "surprises", "exact", "found"]
    table("\naudit: what a forecast cannot know", columns, lines, columns[1:5])
    for f in found.findings:
        for suspicion in f.suspicions:
            say(f"  LOOK AT {f.name}: {suspicion}")
    say(
        "  read as step, fits better by: the best other reading of its steps, and how much lower its error is then; "
        "surprises: correlation with the truth's steps away from the time-of-week mean; exact: targets hit exactly, at "
        "the worst step"
    )


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from stfm_pipeline.console import table

    columns = ["system", "split", "scale", "channel", "mse", "mae", "rmse", "windows", "seeds"]
    shown = [r for r in rows if r["horizon"] == "avg"]
    cells = [[f"{r[c]:.4f}" if c in ("mse", "mae", "rmse") else r[c] for c in columns] for r in shown]
    table("average over the horizon; channel empty = all, standardised", columns, cells, columns[4:])
