"""`stfm retrain` and `stfm backtest`: models made anew, now and as they would have been made then."""

from __future__ import annotations

from typing import Annotated

import typer

from stfm_pipeline.cli.base import Json, app, command, joined, one_of, open_lake
from stfm_pipeline.cli.road import print_result, result_of


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
