"""`stfm models`: registered models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stfm_pipeline.cli.base import (
    DEFAULT_DATASET,
    Json,
    command,
    models_app,
    open_lake,
)

if TYPE_CHECKING:
    pass


@command(models_app, "list")
def models_list(dataset: Annotated[str | None, typer.Argument()] = None, as_json: Json = False) -> None:
    """Registered versions with alias, system, licence and decision."""
    from stfm_pipeline.console import emit, table
    from stfm_pipeline.registry import versions

    settings, _ = open_lake()
    rows = versions(settings, dataset)
    if as_json:
        emit(rows)
    else:
        shown = [
            [
                r["name"],
                r["version"],
                ", ".join(r["aliases"]),
                r["system"],
                r["licence"],
                (r["decision"] or {}).get("reason"),
            ]
            for r in rows
        ]
        table("models", ["name", "version", "alias", "system", "data licence", "decision"], shown)


@command(models_app, "show")
def models_show(
    name: Annotated[str, typer.Argument()] = DEFAULT_DATASET,
    version: Annotated[int | None, typer.Option()] = None,
    as_json: Json = False,
) -> None:
    """One version (default: the champion) and the decision with its numbers."""
    from stfm_pipeline.registry import show

    settings, _ = open_lake()
    _print_version(show(settings, name, version), as_json)


def _print_version(row: dict[str, Any], as_json: bool) -> None:
    from stfm_pipeline.console import emit, table

    if as_json:
        emit(row)
        return
    decision = row.pop("decision") or {}
    table(
        f"{row['name']} version {row['version']}",
        ["", ""],
        [[k, ", ".join(v) if isinstance(v, list) else v] for k, v in row.items()],
    )
    if decision:
        _print_decision(decision)


def _print_decision(decision: dict[str, Any]) -> None:
    from stfm_pipeline.console import say, table

    say(f"{_verdict(decision)} at {decision['decided_at']}: {decision['reason']}")
    if not decision["level"]:
        return
    say(
        f"decision {decision['number']}, data up to {decision['until']}: spent {decision['level']:.4%} of error, left "
        f"{decision['left']:.4%}; {decision['blocks']:.1f} blocks of {decision['block']} windows, "
        f"{decision['draws']} draws"
    )
    margins = [
        [m["rival"], f"{m['margin']:+.1%}", f"{m['low']:+.1%}", f"{m['high']:+.1%}"] for m in decision["margins"]
    ]
    table(
        "margins on gate (relative MAE, mean over channels)",
        ["rival", "margin", "low", "high"],
        margins,
        ["margin", "low", "high"],
    )


def _verdict(decision: dict[str, Any]) -> str:
    if decision["kind"] != "decided":
        return str(decision["kind"])
    return "promoted" if decision["promote"] else "refused" if decision["level"] else "not decided"


@command(models_app, "decisions")
def models_decisions(name: Annotated[str, typer.Argument()] = DEFAULT_DATASET, as_json: Json = False) -> None:
    """Every promotion, refusal and rollback with its numbers, newest first."""
    from stfm_pipeline.console import emit, table
    from stfm_pipeline.registry import decisions, show

    settings, _ = open_lake()
    rows = decisions(settings, name)
    if not rows:
        show(settings, name)
    if as_json:
        emit(rows)
        return
    shown = [
        [
            r["number"],
            r["decided_at"],
            r["version"],
            _verdict(r),
            f"{r['level']:.4%}" if r["level"] else "",
            f"{r['left']:.4%}" if r.get("left") is not None else "",
            r["reason"],
        ]
        for r in rows
    ]
    columns = ["", "at", "version", "verdict", "level spent", "left", "reason"]
    table(f"decisions on {name}", columns, shown, ["level spent", "left"])


@command(models_app, "lineage")
def models_lineage(
    name: Annotated[str, typer.Argument()] = DEFAULT_DATASET,
    version: Annotated[int | None, typer.Option()] = None,
    as_json: Json = False,
) -> None:
    """Which raw bytes, tables and code made a version."""
    import json

    from stfm_pipeline.console import emit, say
    from stfm_pipeline.registry import load_model, show

    settings, _ = open_lake()
    row = show(settings, name, version)
    lineage = load_model(row["uri"], settings).lineage
    if as_json:
        emit({"name": name, "version": row["version"], **lineage})
    else:
        say(json.dumps(lineage, indent=1))


@command(models_app, "promote")
def models_promote(name: str, version: int, as_json: Json = False) -> None:
    """Make a version champion by hand."""
    from stfm_pipeline.registry import promote

    settings, _ = open_lake()
    _print_version(promote(settings, name, version), as_json)


@command(models_app, "rollback")
def models_rollback(name: str, as_json: Json = False) -> None:
    """Give the crown back to the champion before this one."""
    from stfm_pipeline.registry import rollback

    settings, _ = open_lake()
    _print_version(rollback(settings, name), as_json)
