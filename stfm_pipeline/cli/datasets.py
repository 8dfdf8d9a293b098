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
    from stfm_pipeline.datasets.spec import DatasetSpec
    from stfm_pipeline.lake import Stage


@command(datasets_app, "list")
def datasets_list(as_json: Json = False) -> None:
    """Every dataset with kind, licence and how far down the road it is."""
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
            "stages": sorted((x.name for x in lake.stages(s.name) if x.name in STAGES), key=STAGES.index),
        }
        for s in (d.spec for d in all_datasets().values())
    ]
    if as_json:
        emit(rows)
        return
    shown = [[r["name"], r["kind"], r["title"], r["licence"], ", ".join(r["stages"]) or "none yet"] for r in rows]
    table("datasets", ["name", "kind", "title", "licence", "stages"], shown)
    for error in broken_datasets().values():
        say(f"\nnot usable: {error}")


@command(datasets_app, "show")
def datasets_show(name: str, as_json: Json = False) -> None:
    """What a dataset is, how much of it there is and how seasonal it is; and all of it as an HTML page."""
    from stfm_pipeline.console import emit, say, table
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.pages.base import write
    from stfm_pipeline.pages.dataset import dataset_page
    from stfm_pipeline.steps import STEPS

    spec = get_dataset(name).spec
    settings, lake = open_lake()
    page = dataset_page(spec, lake)
    path = write(page.html, settings.root / "reports" / name / "dataset.html")
    stages = sorted(lake.stages(name), key=lambda s: (s.published_at, [*STEPS, s.name].index(s.name)))
    if as_json:
        facts = {s.name: {"version": s.version, "published_at": s.published_at, "facts": s.facts} for s in stages}
        emit({**spec.model_dump(mode="json"), "stages": facts, "measured": page.numbers, "page": path})
        return
    say("\n".join(filter(None, (spec.title, spec.description, f"licence {spec.licence}", spec.homepage))) + "\n")
    _show_spec(spec, page.numbers["protocol"], stages)
    if best := page.numbers.get("optimum"):
        columns = ["channel", "error", "on average", *(f"step {k}" for k in best["at"])]
        lines = [
            [r["channel"], r["metric"].upper(), *(f"{v:.4g}" for v in (r["avg"], *r["steps"]))] for r in best["rows"]
        ]
        table("\nthe best that any forecast can do", columns, lines, columns[2:])
        say(best["claim"])
    if "missing" in page.numbers:
        _show_measured(page.numbers)
    else:
        say(f"\nnot materialised yet: `stfm run {name} --until enriched`")
    say(f"page {path}")


def _show_spec(spec: DatasetSpec, protocol: dict[str, str], stages: list[Stage]) -> None:
    from stfm_pipeline.console import table
    from stfm_pipeline.pages.dataset.facts import channel

    rows = [[c[k] for k in ("name", "unit", "about", "range", "codes", "absent")] for c in map(channel, spec.channels)]
    table("channels", ["name", "unit", "what it is", "range kept", "codes for missing", "no row means"], rows)
    table("\nprotocol", ["term", "value"], list(protocol.items()))
    if stages:
        shown = [[s.name, s.version, s.published_at, ", ".join(s.tables)] for s in stages]
        table("\nstages", ["stage", "version", "published", "tables"], shown)


def _show_measured(numbers: dict[str, Any]) -> None:
    from stfm_pipeline.console import say, table
    from stfm_pipeline.pages.base import moment, percent
    from stfm_pipeline.pages.dataset.seasons import standing_out

    parts = ["all", "train", "val", "gate", "test"]
    shares = [[r["channel"], *(percent(r[p]) for p in parts)] for r in numbers["missing"]]
    table("\nmissing", ["channel", *parts], shares, parts)
    seasons = [
        [
            r["channel"],
            r["season"],
            *("–" if q is None else f"{q[1]:.2f}" for q in (r["strength"], r["trend"])),
            r["series"],
        ]
        for r in numbers["seasons"]
    ]
    columns = ["channel", "season", "strength", "trend", "series"]
    table("\nseasonal strength, median of entities", columns, seasons, columns[2:])
    say("")
    for entry in numbers["spectrum"]:
        say(f"spectrum of {entry['channel']}: {standing_out(entry)}")
    for gap in numbers["gaps"][:1]:
        where = f"{gap['entity']}, {gap['channel']}, {gap['length']}"
        say(f"longest gap: {where}, {moment(gap['start'])} to {moment(gap['end'])} UTC")


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
    """Compute every data stage anew, without publishing, and say which promises it keeps; then look for leaks.

    The stages are also made from the same data with noise after the training part, with other side information than
    was known, and cut off at some moments: what was there before has to come out the same.
    """
    from stfm_pipeline.console import emit, say, table
    from stfm_pipeline.leaks import audit
    from stfm_pipeline.road import check_dataset

    settings, lake = open_lake()
    rows = check_dataset(name, lake, settings)
    leaks = audit(name, lake, settings)
    rows += leaks
    if as_json:
        emit({"name": name, "checks": rows, "passed": all(r["passed"] for r in rows)})
    else:
        shown = [["kept" if r["passed"] else "BROKEN", r["stage"], r["check"], r["description"]] for r in rows]
        table(f"contracts of {name}", ["", "stage", "check", "promise"], shown)
        for row in leaks:
            say(f"\n{row['check']}")
            for what, found in row["details"].items():
                say(f"  {what}: {found}")
    if not all(r["passed"] for r in rows):
        raise typer.Exit(1)
