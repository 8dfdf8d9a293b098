"""`stfm serve` and `stfm score`: the champion at work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stfm_pipeline.cli.base import DEFAULT_DATASET, Json, app, command, open_lake


@command(app)
def serve(
    dataset: Annotated[str, typer.Argument(help="The registered model.")] = DEFAULT_DATASET,
    host: Annotated[str, typer.Option(help="Where to listen; beyond loopback a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    alias: Annotated[str, typer.Option(help="Serve the version under this alias, wherever it moves.")] = "champion",
    token_file: Annotated[Path | None, typer.Option(help="File with the bearer token; else STFM_SERVE_TOKEN.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Forecasts at once; 0 takes one per core.")] = 0,
    queue: Annotated[int, typer.Option(min=0, help="Forecasts that may wait.")] = 64,
    body_mb: Annotated[float, typer.Option(min=0.001, help="Largest body.")] = 32,
    rows: Annotated[int, typer.Option(min=1, help="Largest frame.")] = 1_000_000,
    seconds: Annotated[float, typer.Option(min=0.1, help="For a body to arrive, and for an answer.")] = 30,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks at the alias.")] = 5,
) -> None:
    """Answer forecasts over HTTP; a version that the alias moves to takes over without a pause."""
    from stfm_pipeline.serve.run import Options
    from stfm_pipeline.serve.run import serve as run

    settings, lake = open_lake()
    options = Options(
        alias=alias,
        host=host,
        port=port,
        token_file=token_file,
        workers=workers,
        queue=queue,
        body_mb=body_mb,
        rows=rows,
        seconds=seconds,
        every=every,
    )
    run(dataset, lake, settings, options)


@command(app)
def score(
    dataset: Annotated[str, typer.Argument()] = DEFAULT_DATASET,
    alias: Annotated[str, typer.Option(help="Which version forecasts.")] = "champion",
    as_json: Json = False,
) -> None:
    """Forecast every entity from the end of the current data into the lake; unchanged ones are reused."""
    from stfm_pipeline.console import emit, say
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.errors import ContractError
    from stfm_pipeline.forecasts import score as run

    settings, lake = open_lake()
    get_dataset(dataset)
    outcome = run(dataset, lake, settings, alias)
    if outcome.stage is None:
        broken = [c for c in outcome.checks if not c.passed]
        raise ContractError("the forecasts were not published", offenders=[c.description for c in broken])
    facts = outcome.stage.facts
    if as_json:
        emit({"unchanged": outcome.reused, "stage_version": outcome.stage.version, **facts})
    else:
        say(f"{dataset}: version {facts['version']} ({facts['system']}) from {facts['origin']} to {facts['end']}")
