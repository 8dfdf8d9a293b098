"""`stfm drift`: whether recent data, and the champion's errors on them, are still as they were."""

from __future__ import annotations

from typing import Annotated

import typer

from stfm_pipeline.cli.base import DEFAULT_DATASET, Json, app, command, open_lake


@command(app)
def drift(dataset: Annotated[str, typer.Argument()] = DEFAULT_DATASET, as_json: Json = False) -> None:
    """Compare recent blocks with the training part, and the champion's errors with those on val and gate."""
    from stfm_pipeline.console import emit, say, table
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.drift import measure_drift
    from stfm_pipeline.drift.page import group_name, said
    from stfm_pipeline.drift.run import write_page
    from stfm_pipeline.errors import ContractError

    get_dataset(dataset)
    settings, lake = open_lake()
    outcome = measure_drift(dataset, lake, settings)
    if outcome.stage is None:
        raise ContractError(
            f"the drift of '{dataset}' was not published, a promise is broken",
            offenders=[f"{c.name}: {c.description}" for c in outcome.checks if not c.passed],
        )
    path = write_page(outcome.stage, lake, settings)
    rows, facts = lake.read(outcome.stage, "findings").to_dicts(), outcome.stage.facts
    if as_json:
        emit({**facts, "findings": rows, "page": path})
        return
    for note in facts["notes"]:
        say(note)
    if rows:
        cells = [
            [
                r["kind"],
                r["channel"],
                group_name(r["group"], facts["groups"]),
                f"{r['since']:%Y-%m-%d}",
                f"{r['alarmed_at']:%Y-%m-%d}",
                said(r),
                f"{r['p']:.1g}",
            ]
            for r in rows
        ]
        names = ["kind", "channel", "group", "since", "alarm at", "how much", "by chance, a year"]
        table(f"{dataset}: what has drifted by {facts['until'][:10]}", names, cells)
    elif facts["compared"]:
        say(f"{dataset}: nothing has drifted by {facts['until'][:10]}")
    say(f"page {path}")
