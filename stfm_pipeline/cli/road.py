"""`stfm run`: down the road, and what came of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any, get_args

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
from stfm_pipeline.errors import StfmError, UsageError

if TYPE_CHECKING:
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.settings import Settings


@command(app)
def run(
    datasets: Annotated[list[str] | None, typer.Argument(help=f"Default: {DEFAULT_DATASET}.")] = None,
    system: Annotated[
        list[str] | None, typer.Option(help="Only these systems, or a file with a torch module (baselines always run).")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="All datasets of this kind whose files are at hand, or can be had.")
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
    from stfm_pipeline.launch import require_root

    one_of("stage", until, STAGES)
    one_of("budget", budget, ("quick", "standard", "full"))
    one_of("device", device, ("auto", "cpu", "cuda", "mps"))
    settings, lake = open_lake()
    names, absent = _of_kinds(kind, settings) if kind else ([], {})
    if kind and not names:
        raise UsageError(
            f"no dataset of kind {' or '.join(kind)} can be had",
            offenders=[f"{n} lacks {f[0]}" for n, f in absent.items()],
        )
    names = list(dict.fromkeys([*(datasets or ([] if kind else [DEFAULT_DATASET])), *names]))
    for name in names:
        get_dataset(name)
    system = [joined(s) for s in system or []]
    require_root()
    if until_date is not None:
        for name in names:
            stop_at(name, None if until_date == "none" else moment(until_date))
    results: list[dict[str, Any]] = []
    failed: dict[str, StfmError] = {}
    for name in names:
        try:
            results.append(_down(name, lake, settings, list(system), until, {"budget": budget, "device": device}))
        except StfmError as error:
            if len(names) == 1:
                raise
            failed[name] = error
    if as_json:
        left = {"failed": {n: str(e) for n, e in failed.items()}, "absent": absent}
        emit(_merged(results, len(names) == 1) | {k: v for k, v in left.items() if v})
    else:
        _say(results, lake, until)
        for name, files in absent.items():
            say(f"  {name}: left out, no file {', '.join(files)} (STFM_DATA names the folder that holds them)")
    if failed:
        said = [f"{n}: {e.problem}" for n, e in failed.items()]
        raise StfmError(f"{len(failed)} of {len(names)} datasets failed", offenders=said)


def _say(results: list[dict[str, Any]], lake: Lake, until: str) -> None:
    from stfm_pipeline.console import say

    if until in DATA_STAGES:
        print_costs(results)
    for result in results if until not in DATA_STAGES else ():
        if "leaderboard" in result:
            print_result(result, lake)
        else:
            say(f"{result['dataset']}: {', '.join(result['ran']) or 'nothing to do'}")


def _of_kinds(kinds: list[str], settings: Settings) -> tuple[list[str], dict[str, list[str]]]:
    """Datasets of these kinds, and of those that cannot be had the files they lack."""
    from stfm_pipeline.datasets.catalog import all_datasets, lacking
    from stfm_pipeline.datasets.spec import Kind

    for kind in kinds:
        one_of("kind", kind, get_args(Kind))
    specs = [d.spec for d in all_datasets().values() if d.spec.kind in kinds]
    files = {s.name: lacking(s, settings) for s in specs}
    return [n for n, f in files.items() if not f], {n: f for n, f in files.items() if f}


def _down(
    name: str, lake: Lake, settings: Settings, systems: list[str], until: str, compute: dict[str, str]
) -> dict[str, Any]:
    from stfm_pipeline.launch import materialize

    todo = _todo(name, lake, settings, systems, until, compute["budget"])
    if todo:
        logging.getLogger("stfm").info("%s: to do: %s", name, ", ".join(todo))
        materialize(name, todo, dict(compute), settings)
    else:
        logging.getLogger("stfm").info("%s: nothing changed, nothing to do", name)
    if until in DATA_STAGES:
        return {"dataset": name, "ran": todo, "stages": costs_of(name, lake, todo, until)}
    found = result_of(name, lake, settings) if until in ("evaluated", "champion") else {"dataset": name}
    return found | {"ran": todo}


def costs_of(name: str, lake: Lake, ran: list[str], until: str) -> list[dict[str, Any]]:
    """Rows in and out of each data stage, all its tables together, and what making it took."""
    from stfm_pipeline.steps import STEPS

    rows: dict[str, dict[str, int]] = {}
    out: list[dict[str, Any]] = []
    for stage in DATA_STAGES[: DATA_STAGES.index(until) + 1]:
        found = lake.require(name, stage)
        rows[stage] = {table: blocks.rows for table, blocks in found.blocks.items()}
        came = sum(n for i in STEPS[stage].inputs for n in rows[i].values())
        cost = {k: found.cost.get(k) for k in ("seconds", "peak_mb")}
        row = {"stage": stage, "in": came, "out": sum(rows[stage].values()), "rows": rows[stage]}
        out.append({**row, "ran": stage in ran, **cost})
    return out


def print_costs(results: list[dict[str, Any]]) -> None:
    """A line per dataset and stage; memory is the most that the dataset's own process had taken by then."""
    from stfm_pipeline.console import table

    heads = ["dataset", "stage", "rows in", "rows out", "seconds", "peak MB", ""]
    shown = [
        [
            r["dataset"],
            s["stage"],
            f"{s['in']:,}" if s["in"] else "",
            f"{s['out']:,}",
            *("-" if s[k] is None else f"{s[k]:,.1f}" for k in ("seconds", "peak_mb")),
            "" if s["ran"] else "nothing to do",
        ]
        for r in results
        for s in r["stages"]
    ]
    table("down the road", heads, shown, heads[2:6])


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


def _merged(results: list[dict[str, Any]], one: bool) -> dict[str, Any]:
    """One dataset: its result. Several: their rows together, champions and reports by dataset."""
    scored = [r for r in results if "leaderboard" in r]
    if one or not scored:
        return results[0] if one else {"results": results}
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
