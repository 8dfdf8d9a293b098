"""`stfm systems`: what can be trained, and what fits."""

from __future__ import annotations

from typing import Annotated

import typer

from stfm_pipeline.cli.base import Json, command, open_lake, systems_app


@command(systems_app, "list")
def systems_list(
    dataset: Annotated[str | None, typer.Option("--for", help="Rank those that fit this dataset, and say why.")] = None,
    as_json: Json = False,
) -> None:
    """Every system with its place in the survey's taxonomy; with --for, the fit ones ranked, and why others are not."""
    from stfm_pipeline.console import emit, say, table
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.systems.catalog import all_systems

    if dataset is None:
        rows = [s.describe() for s in all_systems().values()]
        columns = ["name", "branch", "objective", "backbone", "dependencies", "kinds", "tasks", "summary"]
        if as_json:
            emit(rows)
        else:
            table("systems", columns, [[_plain(r[c]) for c in columns] for r in rows])
        return
    from stfm_pipeline.systems.advice import advise

    _, lake = open_lake()
    advice = advise(get_dataset(dataset).spec, lake)
    if as_json:
        emit(advice.rows)
        return
    for line in advice.head:
        say(f"  {line}")
    columns = ["rank", "name", "branch", "backbone", "dependencies", "reason"]
    table(f"\nsystems for {dataset}", columns, [[_plain(r[c]) for c in columns] for r in advice.rows], ["rank"])
    say(f"  order: {advice.order}")


def _plain(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


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
        table(system.title, ["", ""], [[k, _plain(v)] for k, v in facts.items()])
