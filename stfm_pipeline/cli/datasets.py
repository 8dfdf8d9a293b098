"""`stfm datasets`: what data there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stfm_pipeline.cli.base import (
    STAGES,
    Json,
    command,
    datasets_app,
    open_lake,
)

if TYPE_CHECKING:
    pass


@command(datasets_app, "list")
def datasets_list(as_json: Json = False) -> None:
    """Every dataset with kind, size, licence and how far down the road it is."""
    from stfm_pipeline.console import emit, say, table
    from stfm_pipeline.datasets.catalog import all_datasets, broken_datasets

    _, lake = open_lake()
    rows = [
        {
            "name": s.name,
            "kind": s.kind,
            "title": s.title,
            "licence": s.licence,
            "channels": list(s.channel_names),
            "stages": [x.name for x in lake.stages(s.name) if x.name in STAGES],
        }
        for s in (d.spec for d in all_datasets().values())
    ]
    if as_json:
        emit(rows)
        return
    shown = [[r["name"], r["kind"], r["title"], r["licence"], ", ".join(r["stages"]) or "not fetched"] for r in rows]
    table("datasets", ["name", "kind", "title", "licence", "stages"], shown)
    for error in broken_datasets().values():
        say(f"\nnot usable: {error}")


@command(datasets_app, "show")
def datasets_show(name: str, as_json: Json = False) -> None:
    """A dataset's spec, facts and stages."""
    import json

    from stfm_pipeline.console import emit, say, table
    from stfm_pipeline.datasets.catalog import get_dataset

    spec = get_dataset(name).spec
    _, lake = open_lake()
    stages = list(lake.stages(name))
    if as_json:
        facts = {s.name: {"version": s.version, "published_at": s.published_at, "facts": s.facts} for s in stages}
        emit({**spec.model_dump(mode="json"), "stages": facts})
        return
    say(f"{spec.title}\n{spec.description}\nlicence {spec.licence}, {spec.homepage}\n")
    rows = [[c.name, c.unit, c.description] for c in spec.channels]
    table("channels", ["name", "unit", "description"], rows)
    table(
        "stages",
        ["stage", "version", "published", "tables"],
        [[s.name, s.version, s.published_at, ", ".join(s.tables)] for s in stages],
    )
    if harmonized := lake.stage(name, "harmonized"):
        kept = ("steps", "entities", "start", "end", "edges", "observed_share", "zero_share", "report", "masked")
        say(json.dumps({k: harmonized.facts[k] for k in kept}, indent=1))


@command(datasets_app, "export")
def datasets_export(
    dataset: str,
    to: Annotated[Path | None, typer.Option(help="Folder for the files; default: your own datasets'.")] = None,
    name: Annotated[str | None, typer.Option(help="What the copy is called.")] = None,
    as_json: Json = False,
) -> None:
    """Write a dataset's raw tables as csv with a YAML file that reads them back."""
    from stfm_pipeline.console import emit, say
    from stfm_pipeline.datasets.catalog import folder, get_dataset
    from stfm_pipeline.datasets.export import export

    spec = get_dataset(dataset).spec
    _, lake = open_lake()
    stage = lake.require(dataset, "raw")
    tables = {t: lake.read(stage, t) for t in stage.tables}
    files = export(spec, tables, to or folder(), name or f"{dataset}-copy")
    if as_json:
        emit({"name": name or f"{dataset}-copy", "files": files})
    else:
        say("wrote " + ", ".join(map(str, files)))


@command(datasets_app, "fetch")
def datasets_fetch(names: list[str], as_json: Json = False) -> None:
    """Download and verify a dataset's files into the cache."""
    from stfm_pipeline.console import emit, say
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.sources import estimate, fetch

    settings, _ = open_lake()
    rows: list[dict[str, Any]] = []
    for name in names:
        spec = get_dataset(name).spec
        files: dict[str, str] = {}
        for source in spec.sources:
            files |= {k: str(v) for k, v in fetch(source, settings).items()}
        rows.append(
            {
                "name": name,
                "kind": spec.kind,
                "licence": spec.licence,
                "files": files,
                "disk_bytes": sum(map(estimate, spec.sources)),
            }
        )
    if as_json:
        emit(rows)
    else:
        for row in rows:
            say(f"{row['name']} ({row['licence']}): " + ", ".join(row["files"]))


@command(datasets_app, "check")
def datasets_check(name: str, as_json: Json = False) -> None:
    """Compute every data stage anew, without publishing, and say which of its promises it keeps."""
    from stfm_pipeline.console import emit, table
    from stfm_pipeline.road import check_dataset

    settings, lake = open_lake()
    rows = check_dataset(name, lake, settings)
    if as_json:
        emit({"name": name, "checks": rows, "passed": all(r["passed"] for r in rows)})
    else:
        shown = [["kept" if r["passed"] else "BROKEN", r["stage"], r["check"], r["description"]] for r in rows]
        table(f"contracts of {name}", ["", "stage", "check", "promise"], shown)
    if not all(r["passed"] for r in rows):
        raise typer.Exit(1)
