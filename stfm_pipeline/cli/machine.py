"""`stfm ui`, `stfm doctor`, `stfm clean`: the machine it runs on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from stfm_pipeline.cli.base import (
    Json,
    app,
    command,
    open_lake,
)
from stfm_pipeline.errors import StfmError, UsageError


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
    old: Annotated[bool, typer.Option("--old", help="Old table versions that no registered model names.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --old: say how much, delete nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete what can be made again (caches, scratch folders); with --all the whole $STFM_HOME."""
    import shutil

    from stfm_pipeline.console import say

    settings, lake = open_lake()
    if dry_run and not old:
        raise UsageError("--dry-run belongs to --old", fix="stfm clean --old --dry-run")
    if old:
        from stfm_pipeline.sweep import sweep

        if everything or "://" in lake.uri:
            raise UsageError("--old is for a lake on local disk, and not for --all", found=lake.uri)
        root = Path(lake.uri)
        for name in sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else ():
            freed = sweep(name, lake, settings, dry_run)
            say(f"{name}: {freed / 1e6:.1f} MB {'would go' if dry_run else 'deleted'}")
        return
    folders = [settings.root] if everything else [settings.cache, settings.root / "work", settings.root / "logs"]
    there = [f for f in folders if f.exists()]
    if everything and there and not (settings.root / "lake").exists() and any(settings.root.iterdir()):
        raise StfmError(f"{settings.root} does not look like an STFM_HOME", fix="delete it by hand if you mean it")
    if there and everything and not yes:
        typer.confirm(f"delete {settings.root} with every table, model and run?", abort=True)
    for folder in there:
        shutil.rmtree(folder)
    say("deleted: " + (", ".join(str(f) for f in there) or "nothing"))
