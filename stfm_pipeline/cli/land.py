"""`stfm land`: new files of a dataset's source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stfm_pipeline.cli.base import Json, app, command, open_lake


@command(app)
def land(
    dataset: Annotated[str | None, typer.Argument(help="The dataset whose source goes on.")] = None,
    files: Annotated[list[Path] | None, typer.Argument(help="Files named like the ones they continue.")] = None,
    as_json: Json = False,
) -> None:
    """Take in new files of a source, and whatever else has landed; without files, show where they are dropped."""
    from dataclasses import asdict

    from stfm_pipeline.console import emit, say, table
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.landing import put, readers, take_in
    from stfm_pipeline.parts import accepted, folder, members, name_of

    settings, lake = open_lake()
    dropped = {p.name for p in put(dataset, files, settings)} if dataset and files else set()
    taken = take_in(lake, settings)
    if dataset:
        sources = {name_of(s): s for s in get_dataset(dataset).spec.sources}
    else:
        sources = {name: s for name, (s, _) in readers().items() if folder(name, settings).is_dir()}
    for name in sources if dataset else ():
        folder(name, settings).mkdir(parents=True, exist_ok=True)
    places = {n: {"folder": str(folder(n, settings)), "members": list(members(s))} for n, s in sources.items()}
    if as_json:
        emit({"taken": [asdict(t) for t in taken], "folders": places})
    else:
        for t in taken:
            say(f"{t.source}: {t.name} {'taken' if t.accepted else 'not taken'}: {t.reason}")
        if not files and not places:
            say("nothing has landed yet; `stfm land DATASET` makes the folder of its source and names it")
        elif not files:
            rows = [
                [name, ", ".join(p["members"]), len(accepted(name, settings)), p["folder"]]
                for name, p in places.items()
            ]
            title = f"where files of {dataset} land" if dataset else "where files land"
            table(title, ["source", "members", "taken", "folder"], rows)
        if any(t.accepted for t in taken):
            behind = sorted({d for t in taken if t.accepted for d in t.datasets})
            say(f"`stfm run --until enriched {' '.join(behind)}` goes on from here; a running UI does so by itself")
    if any(not t.accepted and t.name in dropped for t in taken):
        raise typer.Exit(1)
