"""`stfm run`: down the road, and what came of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stfm_pipeline.cli.base import (
    DATA_STAGES,
    DEFAULT_DATASET,
    STAGES,
    Json,
    app,
    command,
    joined,
    moment,
    one_of,
    open_lake,
)

if TYPE_CHECKING:
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.settings import Settings


@command(app)
def run(
    datasets: Annotated[list[str] | None, typer.Argument(help=f"Default: {DEFAULT_DATASET}.")] = None,
    system: Annotated[
        list[str] | None, typer.Option(help="Only these systems, or a file with a torch module (baselines always run).")
    ] = None,
    until: Annotated[str, typer.Option(help=f"Stop after: {', '.join(STAGES)}.")] = "champion",
    budget: Annotated[str, typer.Option(help="quick, standard (three seeds) or full.")] = "quick",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    until_date: Annotated[
        str | None,
        typer.Option(help="From now on the archive counts up to this date, the rest lands; `none` takes that back."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Take datasets down the whole road: raw data to a registered champion. Unchanged stages are not run again."""
    from stfm_pipeline.console import emit, say
    from stfm_pipeline.datasets.catalog import get_dataset, stop_at
    from stfm_pipeline.launch import materialize, require_root

    one_of("stage", until, STAGES)
    one_of("budget", budget, ("quick", "standard", "full"))
    one_of("device", device, ("auto", "cpu", "cuda", "mps"))
    names = datasets or [DEFAULT_DATASET]
    for name in names:
        get_dataset(name)
    system = [joined(s) for s in system or []]
    require_root()
    if until_date is not None:
        for name in names:
            stop_at(name, None if until_date == "none" else moment(until_date))
    settings, lake = open_lake()
    results = []
    for name in names:
        todo = _todo(name, lake, settings, list(system or []), until, budget)
        if todo:
            logging.getLogger("stfm").info("%s: to do: %s", name, ", ".join(todo))
            materialize(name, todo, {"budget": budget, "device": device}, settings)
        else:
            logging.getLogger("stfm").info("%s: nothing changed, nothing to do", name)
        results.append(
            result_of(name, lake, settings) if until in ("evaluated", "champion") else {"dataset": name, "ran": todo}
        )
        results[-1]["ran"] = todo
    if as_json:
        emit(_merged(results))
        return
    for result in results:
        if "leaderboard" in result:
            print_result(result, lake)
        else:
            say(f"{result['dataset']}: {', '.join(result['ran']) or 'nothing to do'}")


def _todo(name: str, lake: Lake, settings: Settings, chosen: list[str], until: str, budget: str) -> list[str]:
    """Assets to materialise, in order."""
    from stfm_pipeline.road import stale_stages

    todo = stale_stages(name, lake, until if until in DATA_STAGES else "enriched")
    if until in DATA_STAGES:
        return todo
    from stfm_pipeline import decision, scoring, training
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.systems.catalog import all_systems, select_systems

    spec = get_dataset(name).spec
    picked = {s.name for s in select_systems(chosen, spec)}
    picked |= {s.name for s in select_systems([], spec) if s.branch == "baseline"}
    ordered = [s for s in all_systems() if s in picked]
    stale = training.stale_systems(lake, name, ordered, budget, data_is_stale=bool(todo))
    todo += [s.replace("-", "_") for s in stale]
    if until == "trained":
        return todo
    plan = scoring.evaluation_plan(name, scoring.trained_systems(lake, name)) if not todo else None
    if plan is None or scoring.evaluated_already(lake, settings, name, plan) is None:
        todo.append("evaluated")
    if until == "champion" and (todo or decision.champion_is_stale(lake, name)):
        todo.append("champion")
    return todo


def result_of(name: str, lake: Lake, settings: Settings) -> dict[str, Any]:
    evaluated = lake.require(name, "evaluated")
    rows = lake.read(evaluated, "leaderboard").to_dicts()
    for row in rows:
        row["horizon"] = row["horizon"] if row["horizon"] == "avg" else int(row["horizon"])
    crowned = lake.stage(name, "champion")
    decided = crowned.facts if crowned is not None else None
    return {
        "dataset": name,
        "leaderboard": rows,
        "champion": _champion(name, settings),
        "decision": decided,
        "report": evaluated.facts["report"],
        "facts": evaluated.facts,
    }


def _champion(name: str, settings: Settings) -> dict[str, Any] | None:
    from stfm_pipeline import registry

    version = registry.champion_version(settings, name)
    if version is None:
        return None
    number = int(version.version)
    return {"name": name, "version": number, "uri": f"models:/{name}@champion", "system": version.tags.get("system")}


def _merged(results: list[dict[str, Any]]) -> dict[str, Any]:
    """One dataset: its result. Several: their rows together, champions and reports by dataset."""
    scored = [r for r in results if "leaderboard" in r]
    if len(results) == 1 or not scored:
        return results[0] if len(results) == 1 else {"results": results}
    return {
        "leaderboard": [row for r in scored for row in r["leaderboard"]],
        "champion": {r["dataset"]: r["champion"] for r in scored},
        "report": {r["dataset"]: r["report"] for r in scored},
        "results": [{k: r[k] for k in ("dataset", "ran", "decision") if k in r} for r in results],
    }


def print_result(result: dict[str, Any], lake: Lake) -> None:
    from stfm_pipeline.console import leaderboard, reproduction, say
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.reproduce import from_leaderboard

    spec = get_dataset(result["dataset"]).spec
    say(f"\n{spec.title} ({spec.licence})")
    leaderboard(result["leaderboard"], result["facts"], {c.name: c.unit for c in spec.channels})
    reproduction(from_leaderboard(spec, result["leaderboard"]))
    if decision := result["decision"]:
        again = "not promoted again" if decision["decision"]["promote"] else "refused, stays challenger"
        verdict = "promoted" if decision["promoted"] else again
        named = f"{decision['name']} version {decision['version']} ({decision['system']})"
        say(f"  {named}: {verdict}: {decision['reason']}")
    if champion := result["champion"]:
        say(f"  model   {champion['uri']} (version {champion['version']}, {champion['system']}, data {spec.licence})")
    say(f"  report  {result['report']}")
