"""`stfm retrain` and `stfm backtest`: models made anew, now and as they would have been made then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stfm_pipeline.cli.base import Json, app, command, joined, moment, one_of, open_lake
from stfm_pipeline.cli.road import print_result, result_of

if TYPE_CHECKING:
    from stfm_pipeline.backtest import Backtest


@command(app)
def retrain(
    dataset: str,
    system: Annotated[list[str] | None, typer.Option(help="Only these (default: those trained before).")] = None,
    start: Annotated[str, typer.Option(help="warm: from the champion's weights; scratch.")] = "warm",
    budget: Annotated[str, typer.Option(help="quick, standard (three seeds) or full.")] = "quick",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Draw a new split on all there is by now, train again, and let the new model meet the champion."""
    from stfm_pipeline.console import emit
    from stfm_pipeline.launch import require_root
    from stfm_pipeline.retrain import retrain as again

    one_of("start", start, ("warm", "scratch"))
    one_of("budget", budget, ("quick", "standard", "full"))
    one_of("device", device, ("auto", "cpu", "cuda", "mps"))
    require_root()
    settings, lake = open_lake()
    names = [joined(s) for s in system or []]
    ran = again(dataset, lake, settings, systems=names, start=start, budget=budget, device=device)
    result = {**result_of(dataset, lake, settings), "ran": ran}
    if as_json:
        emit(result)
    else:
        print_result(result, lake)


@command(app)
def backtest(
    dataset: str,
    system: Annotated[str, typer.Option(help="The system to try; baselines always.")],
    folds: Annotated[int, typer.Option(help="How many origins.")] = 4,
    start: Annotated[str | None, typer.Option(help="The first origin (default: after three fifths).")] = None,
    budget: Annotated[str, typer.Option(help="quick, standard or full; one seed.")] = "quick",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """What a system would have been worth at earlier moments, trained each time on what was known by then."""
    from dataclasses import asdict
    from datetime import UTC

    from stfm_pipeline.backtest import backtest as run
    from stfm_pipeline.console import emit

    one_of("budget", budget, ("quick", "standard", "full"))
    one_of("device", device, ("auto", "cpu", "cuda", "mps"))
    first = moment(start) if start else None
    if first is not None and first.tzinfo is None:
        first = first.replace(tzinfo=UTC)
    settings, lake = open_lake()
    found, _ = run(dataset, joined(system), lake, settings, folds=folds, start=first, budget=budget, device=device)
    if as_json:
        emit(asdict(found))
    else:
        _print_backtest(found)


def _print_backtest(found: Backtest) -> None:
    from stfm_pipeline.console import table

    rows = [r for r in found.rows if (r.scale, r.horizon) == ("data", "avg") and r.channel]
    splits = list(dict.fromkeys(r.split for r in rows))
    for channel in dict.fromkeys(r.channel for r in rows):
        by = {(r.system, r.split): r.mae for r in rows if r.channel == channel}
        systems = sorted({s for s, _ in by}, key=lambda s: by[s, "all folds"])
        lines = [[s, *(f"{by[s, k]:.4g}" for k in splits)] for s in systems]
        table(f"{channel}, MAE", ["system", *splits], lines, splits)
    for k, fold in enumerate(found.folds, start=1):
        typer.echo(f"  fold {k}: trained up to {fold['origin']}, judged up to {fold['end']}")
    lines = [[m["rival"], *(f"{m[k]:+.1%}" for k in ("margin", "low", "high"))] for m in found.margins]
    table(f"margin of {found.system}, 95 % interval over folds", ["over", "margin", "low", "high"], lines)
