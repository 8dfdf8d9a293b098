"""`stfm systems`: what can be trained, and what fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from stfm_pipeline.cli.base import (
    Json,
    command,
    systems_app,
)

if TYPE_CHECKING:
    pass


@command(systems_app, "list")
def systems_list(
    dataset: Annotated[str | None, typer.Option("--for", help="Only those that fit this dataset.")] = None,
    as_json: Json = False,
) -> None:
    """Every system with its place in the survey's taxonomy; with --for, which fit and why not."""
    from stfm_pipeline.console import emit, table
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.systems.catalog import all_systems, unfit_reason

    rows = [s.describe() for s in all_systems().values()]
    if dataset is not None:
        spec = get_dataset(dataset).spec
        for row, system in zip(rows, all_systems().values(), strict=True):
            row["unfit"] = unfit_reason(system, spec)
    if as_json:
        emit(rows)
    else:
        columns = [
            "name",
            "branch",
            "objective",
            "backbone",
            "dependencies",
            "summary",
            *(["unfit"] if dataset else []),
        ]
        table("systems", columns, [[r[c] for c in columns] for r in rows])


@command(systems_app, "show")
def systems_show(name: str, as_json: Json = False) -> None:
    """One system: what it is, what it looks at, how it is trained."""
    from dataclasses import asdict

    from stfm_pipeline.console import emit, table
    from stfm_pipeline.systems.catalog import get_system

    system = get_system(name)
    facts = {**system.describe(), "training": asdict(system.training) if system.training else "closed form"}
    if as_json:
        emit(facts)
    else:
        table(
            system.title,
            ["", ""],
            [
                [k, v if isinstance(v, str) else ", ".join(map(str, v)) if isinstance(v, list) else v]
                for k, v in facts.items()
            ],
        )
