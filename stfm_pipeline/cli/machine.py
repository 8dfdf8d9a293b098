"""`stfm ui`, `stfm doctor`, `stfm clean`: the machine it runs on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from stfm_pipeline.cli.base import (
    Json,
    app,
    command,
    open_lake,
)
from stfm_pipeline.errors import StfmError

if TYPE_CHECKING:
    pass


@command(app)
def ui(
    port: Annotated[int, typer.Option(help="Dagster's port.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="MLflow's port.")] = 5000,
) -> None:
    """Start Dagster and MLflow together; Ctrl-C stops both."""
    import signal

    from stfm_pipeline.launch import serve_ui

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    settings, _ = open_lake()
    serve_ui(settings, port, mlflow_port, sys.stdout)


@command(app)
def doctor(as_json: Json = False) -> None:
    """Versions, device, paths, what is missing and how to mend it."""
    from stfm_pipeline.console import emit, say, table
    from stfm_pipeline.doctor import examine

    settings, _ = open_lake()
    findings = examine(settings)
    if as_json:
        emit({"findings": findings, "healthy": all(f["ok"] for f in findings)})
    else:
        rows = [
            ["ok" if f["ok"] else "MISSING" if f["needed"] else "-", f["name"], f["found"], f["fix"] or ""]
            for f in findings
        ]
        table("stfm doctor", ["", "what", "found", "fix"], rows)
        say(
            "healthy"
            if all(f["ok"] or not f["needed"] for f in findings)
            else "something is missing; see the fixes above"
        )
    if not all(f["ok"] or not f["needed"] for f in findings):
        raise typer.Exit(1)


@command(app)
def clean(
    everything: Annotated[bool, typer.Option("--all", help="Also tables, models and runs.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete what can be made again (caches, scratch folders); with --all the whole $STFM_HOME."""
    import shutil

    from stfm_pipeline.console import say

    settings, _ = open_lake()
    folders = [settings.root] if everything else [settings.cache, settings.root / "work", settings.root / "logs"]
    there = [f for f in folders if f.exists()]
    if everything and there and not (settings.root / "lake").exists() and any(settings.root.iterdir()):
        raise StfmError(f"{settings.root} does not look like an STFM_HOME", fix="delete it by hand if you mean it")
    if there and everything and not yes:
        typer.confirm(f"delete {settings.root} with every table, model and run?", abort=True)
    for folder in there:
        shutil.rmtree(folder)
    say("deleted: " + (", ".join(str(f) for f in there) or "nothing"))
