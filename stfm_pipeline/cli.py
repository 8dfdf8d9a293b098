"""`stfm`: the pipeline from the command line. Heavy libraries are imported by the commands that need them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stfm_pipeline.errors import StfmError, UsageError

if TYPE_CHECKING:
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
datasets_app = typer.Typer(no_args_is_help=True, help="What data there is.")
systems_app = typer.Typer(no_args_is_help=True, help="What can be trained, and what fits.")
models_app = typer.Typer(no_args_is_help=True, help="Registered models.")
app.add_typer(datasets_app, name="datasets")
app.add_typer(systems_app, name="systems")
app.add_typer(models_app, name="models")

DEFAULT_DATASET = "nyc-airports"
DATA_STAGES = ("raw", "harmonized", "embedded", "enriched")
STAGES = (*DATA_STAGES, "trained", "evaluated", "champion")
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output; logs on standard error.")]


def command(group: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose failures become exit codes: 1 failed, 2 wrong use; a traceback only with `--debug`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except UsageError as error:
                _fail(error, 2)
            except StfmError as error:
                _fail(error, 1)
            except KeyboardInterrupt:
                raise typer.Exit(130) from None
            except Exception as error:
                _fail(error, 1)

        group.command(name)(wrapped)
        return wrapped

    return decorate


def _fail(error: Exception, code: int) -> None:
    if os.environ.get("STFM_DEBUG"):
        raise error
    from stfm_pipeline.console import error as show

    text = (
        str(error) if isinstance(error, StfmError) else f"{type(error).__name__}: {error}\n  fix: --debug shows where"
    )
    show(text)
    raise typer.Exit(code) from None


def _version(asked: bool) -> None:
    if asked:
        import stfm_pipeline

        typer.echo(f"stfm-pipeline {stfm_pipeline.__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    if debug:
        os.environ["STFM_DEBUG"] = "1"
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("stfm").setLevel(logging.INFO)


def _open() -> tuple[Settings, Lake]:
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.settings import Settings

    settings = Settings()
    return settings, Lake(settings.lake_uri)


@command(app)
def run(
    datasets: Annotated[list[str] | None, typer.Argument(help=f"Default: {DEFAULT_DATASET}.")] = None,
    system: Annotated[list[str] | None, typer.Option(help="Only these systems (baselines always run).")] = None,
    until: Annotated[str, typer.Option(help=f"Stop after: {', '.join(STAGES)}.")] = "champion",
    budget: Annotated[str, typer.Option(help="quick, standard (three seeds) or full.")] = "quick",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Take datasets down the whole road: raw data to a registered champion. Unchanged stages are not run again."""
    from stfm_pipeline.console import emit, say
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.launch import materialize, require_root

    _one_of("stage", until, STAGES)
    _one_of("budget", budget, ("quick", "standard", "full"))
    _one_of("device", device, ("auto", "cpu", "cuda", "mps"))
    names = datasets or [DEFAULT_DATASET]
    for name in names:
        get_dataset(name)
    require_root()
    settings, lake = _open()
    results = []
    for name in names:
        todo = _todo(name, lake, list(system or []), until, budget)
        if todo:
            logging.getLogger("stfm").info("%s: to do: %s", name, ", ".join(todo))
            materialize(name, todo, {"budget": budget, "device": device}, settings)
        else:
            logging.getLogger("stfm").info("%s: nothing changed, nothing to do", name)
        results.append(
            _result(name, lake, settings) if until in ("evaluated", "champion") else {"dataset": name, "ran": todo}
        )
        results[-1]["ran"] = todo
    if as_json:
        emit(_merged(results))
        return
    for result in results:
        if "leaderboard" in result:
            _print_result(result, lake)
        else:
            say(f"{result['dataset']}: {', '.join(result['ran']) or 'nothing to do'}")


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"no {what} is called '{value}'", expected=f"one of: {', '.join(allowed)}")


def _todo(name: str, lake: Lake, chosen: list[str], until: str, budget: str) -> list[str]:
    """Assets to materialise, in order."""
    from stfm_pipeline.road import stale_stages

    todo = stale_stages(name, lake, until if until in DATA_STAGES else "enriched")
    if until in DATA_STAGES:
        return todo
    from stfm_pipeline import experiment
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.systems.catalog import all_systems, select_systems

    spec = get_dataset(name).spec
    picked = {s.name for s in select_systems(chosen, spec)}
    picked |= {s.name for s in select_systems([], spec) if s.branch == "baseline"}
    ordered = [s for s in all_systems() if s in picked]
    stale = experiment.stale_systems(lake, name, ordered, budget, data_is_stale=bool(todo))
    todo += [s.replace("-", "_") for s in stale]
    if until == "trained":
        return todo
    if todo or experiment.fresh(lake, name, "evaluated", experiment.evaluation_plan(lake, name)) is None:
        todo.append("evaluated")
    if until == "champion" and (todo or experiment.champion_is_stale(lake, name)):
        todo.append("champion")
    return todo


def _result(name: str, lake: Lake, settings: Settings) -> dict[str, Any]:
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


def _print_result(result: dict[str, Any], lake: Lake) -> None:
    from stfm_pipeline.console import leaderboard, say
    from stfm_pipeline.datasets.catalog import get_dataset

    spec = get_dataset(result["dataset"]).spec
    say(f"\n{spec.title} ({spec.licence})")
    leaderboard(result["leaderboard"], result["facts"], {c.name: c.unit for c in spec.channels})
    if decision := result["decision"]:
        verdict = "promoted" if decision["promoted"] else "refused, stays challenger"
        named = f"{decision['name']} version {decision['version']} ({decision['system']})"
        say(f"  {named}: {verdict}: {decision['reason']}")
    if champion := result["champion"]:
        say(f"  model   {champion['uri']} (version {champion['version']}, {champion['system']}, data {spec.licence})")
    say(f"  report  {result['report']}")


@command(app)
def evaluate(
    dataset: Annotated[str, typer.Argument()] = DEFAULT_DATASET,
    system: Annotated[list[str] | None, typer.Option(help="Show only these systems.")] = None,
    as_json: Json = False,
) -> None:
    """Score every system trained on a dataset's current data; the leaderboard and the report."""
    from stfm_pipeline.console import emit
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.experiment import evaluate_dataset
    from stfm_pipeline.systems.catalog import get_system

    get_dataset(dataset)
    for name in system or []:
        get_system(name)
    settings, lake = _open()
    evaluate_dataset(dataset, lake, settings)
    result = _result(dataset, lake, settings)
    if system:
        result["leaderboard"] = [r for r in result["leaderboard"] if r["system"] in system]
        known = {r["system"] for r in result["leaderboard"]}
        if missing := [s for s in system if s not in known]:
            raise StfmError(
                f"not trained on the current data of '{dataset}': {', '.join(missing)}", fix=f"`stfm run {dataset}`"
            )
    if as_json:
        emit({k: v for k, v in result.items() if k != "facts"})
    elif system:
        _print_rows(result["leaderboard"])
    else:
        _print_result(result, lake)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from stfm_pipeline.console import table

    columns = ["system", "split", "scale", "channel", "mse", "mae", "rmse", "windows", "seeds"]
    shown = [r for r in rows if r["horizon"] == "avg"]
    cells = [[f"{r[c]:.4f}" if c in ("mse", "mae", "rmse") else r[c] for c in columns] for r in shown]
    table("average over the horizon; channel empty = all, standardised", columns, cells, columns[4:])


@command(app)
def predict(
    model: Annotated[str, typer.Argument(help="A dataset's name (its champion) or a models:/ URI.")] = DEFAULT_DATASET,
    source: Annotated[Path | None, typer.Option("--input", "-i", help="Long frame: csv, json or parquet.")] = None,
    target: Annotated[
        Path | None, typer.Option("--output", "-o", help="csv, json or parquet; default: csv on standard output.")
    ] = None,
    zone: Annotated[str | None, typer.Option(help="Zone of naive times, e.g. UTC.")] = None,
    example: Annotated[
        Path | None, typer.Option(help="Write a frame of recent observations to try with, and stop.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Forecast from a long frame `unique_id, ds, <channels>`; intervals come along."""
    from stfm_pipeline.console import emit
    from stfm_pipeline.registry import load_model

    settings, lake = _open()
    if example is not None:
        from stfm_pipeline.datasets.catalog import get_dataset
        from stfm_pipeline.predict import frame_of
        from stfm_pipeline.windows import load_panel

        get_dataset(model)
        panel = load_panel(lake, model, settings.cache)
        _write_frame(frame_of(panel, int(panel.origins("test")[-1])), example)
        return
    if source is None:
        raise UsageError("no input", fix="--input FILE, or --example FILE to get one to try with")
    uri = model if "://" in model or model.startswith(("models:", "runs:")) else f"models:/{model}@champion"
    forecast = load_model(uri, settings).predict(_read_frame(source), zone=zone)
    if as_json:
        import polars as pl

        emit(
            {
                "model": uri,
                "forecast": forecast.with_columns(pl.col(pl.Datetime).dt.strftime("%Y-%m-%dT%H:%M:%SZ")).to_dicts(),
            }
        )
    elif target is None:
        sys.stdout.write(_as_text(forecast).write_csv())
    else:
        _write_frame(forecast, target)


def _as_text(frame: Any) -> Any:
    import polars as pl

    return frame.with_columns(pl.col(pl.Datetime).dt.strftime("%Y-%m-%dT%H:%M:%SZ"))


def _read_frame(path: Path) -> Any:
    import polars as pl

    readers: dict[str, Callable[[Path], Any]] = {
        ".csv": lambda p: pl.read_csv(p, infer_schema_length=None),
        ".json": lambda p: pl.read_json(p),
        ".parquet": pl.read_parquet,
    }
    if path.suffix not in readers:
        raise UsageError(f"cannot read '{path.name}'", expected=", ".join(readers))
    if not path.is_file():
        raise UsageError(f"no file at {path}")
    return readers[path.suffix](path)


def _write_frame(frame: Any, path: Path) -> None:
    writers = {".csv": "write_csv", ".json": "write_json", ".parquet": "write_parquet"}
    if path.suffix not in writers:
        raise UsageError(f"cannot write '{path.name}'", expected=", ".join(writers))
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.part")
    getattr(frame if path.suffix == ".parquet" else _as_text(frame), writers[path.suffix])(scratch)
    scratch.replace(path)


@command(app)
def sql(
    query: Annotated[str, typer.Argument(help="e.g. select * from nyc_airports.harmonized limit 5")],
    as_json: Json = False,
) -> None:
    """Ask the lake in SQL (DuckDB). Tables are `<dataset>.<stage>` with hyphens as underscores."""
    import duckdb

    from stfm_pipeline.console import emit, table

    _, lake = _open()
    try:
        answer = lake.connect().execute(query)
        columns = [c[0] for c in answer.description or []]
        rows = answer.fetchall()
    except duckdb.Error as error:
        raise UsageError("the query cannot be answered", found=str(error)) from error
    if as_json:
        emit([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        table(f"{len(rows)} rows", columns, rows)


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
    settings, _ = _open()
    serve_ui(settings, port, mlflow_port, sys.stdout)


@command(app)
def doctor(as_json: Json = False) -> None:
    """Versions, device, paths, what is missing and how to mend it."""
    from stfm_pipeline.console import emit, say, table
    from stfm_pipeline.doctor import examine

    settings, _ = _open()
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
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete what can be made again (caches, scratch folders); with --all the whole $STFM_HOME."""
    import shutil

    from stfm_pipeline.console import say

    settings, _ = _open()
    folders = [settings.root] if everything else [settings.cache, settings.root / "work", settings.root / "logs"]
    there = [f for f in folders if f.exists()]
    if everything and there and not (settings.root / "lake").exists() and any(settings.root.iterdir()):
        raise StfmError(f"{settings.root} does not look like an STFM_HOME", fix="delete it by hand if you mean it")
    if there and everything and not yes:
        typer.confirm(f"delete {settings.root} with every table, model and run?", abort=True)
    for folder in there:
        shutil.rmtree(folder)
    say("deleted: " + (", ".join(str(f) for f in there) or "nothing"))


@command(datasets_app, "list")
def datasets_list(as_json: Json = False) -> None:
    """Every dataset with kind, size, licence and how far down the road it is."""
    from stfm_pipeline.console import emit, table
    from stfm_pipeline.datasets.catalog import all_datasets

    _, lake = _open()
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
    else:
        shown = [
            [r["name"], r["kind"], r["title"], r["licence"], ", ".join(r["stages"]) or "not fetched"] for r in rows
        ]
        table("datasets", ["name", "kind", "title", "licence", "stages"], shown)


@command(datasets_app, "show")
def datasets_show(name: str, as_json: Json = False) -> None:
    """A dataset's spec, facts and stages."""
    import json

    from stfm_pipeline.console import emit, say, table
    from stfm_pipeline.datasets.catalog import get_dataset

    spec = get_dataset(name).spec
    _, lake = _open()
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


@command(datasets_app, "fetch")
def datasets_fetch(names: list[str], as_json: Json = False) -> None:
    """Download and verify a dataset's files into the cache."""
    from stfm_pipeline.console import emit, say
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.sources import estimate, fetch

    settings, _ = _open()
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

    settings, lake = _open()
    rows = check_dataset(name, lake, settings)
    if as_json:
        emit({"name": name, "checks": rows, "passed": all(r["passed"] for r in rows)})
    else:
        shown = [["kept" if r["passed"] else "BROKEN", r["stage"], r["check"], r["description"]] for r in rows]
        table(f"contracts of {name}", ["", "stage", "check", "promise"], shown)
    if not all(r["passed"] for r in rows):
        raise typer.Exit(1)


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


@command(models_app, "list")
def models_list(dataset: Annotated[str | None, typer.Argument()] = None, as_json: Json = False) -> None:
    """Registered versions with alias, system, licence and decision."""
    from stfm_pipeline.console import emit, table
    from stfm_pipeline.registry import versions

    settings, _ = _open()
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

    settings, _ = _open()
    _print_version(show(settings, name, version), as_json)


def _print_version(row: dict[str, Any], as_json: bool) -> None:
    from stfm_pipeline.console import emit, say, table

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
        say(f"{'promoted' if decision['promote'] else 'refused'} at {decision['decided_at']}: {decision['reason']}")
        margins = [
            [m["rival"], f"{m['margin']:+.1%}", f"{m['low']:+.1%}", f"{m['high']:+.1%}"] for m in decision["margins"]
        ]
        table(
            "margins on gate (relative MAE, mean over channels)",
            ["rival", "margin", "low", "high"],
            margins,
            ["margin", "low", "high"],
        )


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

    settings, _ = _open()
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

    settings, _ = _open()
    _print_version(promote(settings, name, version), as_json)


@command(models_app, "rollback")
def models_rollback(name: str, as_json: Json = False) -> None:
    """Give the crown back to the champion before this one."""
    from stfm_pipeline.registry import rollback

    settings, _ = _open()
    _print_version(rollback(settings, name), as_json)


def main() -> None:
    app()
