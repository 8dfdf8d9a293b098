"""`stfm benchmark`: published protocols, and windows for models from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from stfm_pipeline.cli.base import Json, benchmark_app, command, joined, one_of, open_lake

if TYPE_CHECKING:
    from stfm_pipeline.datasets.spec import DatasetSpec, Part


@command(benchmark_app, "run")
def benchmark_run(
    dataset: Annotated[str, typer.Argument(help="A dataset with a published protocol.")],
    system: Annotated[
        list[str] | None, typer.Option(help="Default: those with a published row; or a file with a torch module.")
    ] = None,
    length: Annotated[list[int] | None, typer.Option(help="Only these horizon lengths, in steps.")] = None,
    budget: Annotated[str, typer.Option(help="quick, standard (three seeds) or full.")] = "standard",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    export: Annotated[Path | None, typer.Option(help="Also write the table: FILE.csv or FILE.tex.")] = None,
    as_json: Json = False,
) -> None:
    """Measure systems by a dataset's published protocol; every number beside the published one, green or red."""
    from stfm_pipeline import reproduce
    from stfm_pipeline.console import emit
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.evaluate.export import check_suffix, write_benchmark
    from stfm_pipeline.launch import materialize, require_root
    from stfm_pipeline.road import stale_stages

    one_of("budget", budget, ("quick", "standard", "full"))
    one_of("device", device, ("auto", "cpu", "cuda", "mps"))
    if export is not None:
        check_suffix(export)
    spec = get_dataset(dataset).spec
    rule = reproduce.protocol(spec)
    jobs = reproduce.jobs_of(spec, [joined(s) for s in system or []], length or [])
    settings, lake = open_lake()
    if todo := stale_stages(dataset, lake):
        require_root()
        materialize(dataset, todo, {}, settings)
    measured: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    for job in jobs:
        stage = reproduce.measure(dataset, job, lake, settings, budget, device)
        scores = reproduce.scores_of(rule, stage, lake)
        compared += reproduce.reproduction(spec, job.system.name, job.look_back, scores)
        seconds = float(lake.read(stage, "rows").unique("seed")["seconds"].sum())
        measured.append(
            {
                "system": job.system.name,
                "look_back": job.look_back,
                "scores": {str(k): {m: v[0] for m, v in s.items()} for k, s in scores.items()},
                "deviations": {str(k): {m: v[1] for m, v in s.items()} for k, s in scores.items()},
                "seeds": stage.facts["seeds"],
                "windows": stage.facts["windows"],
                "seconds": seconds,
            }
        )
    if export is not None:
        write_benchmark(spec, measured, compared, export)
    if as_json:
        emit({"dataset": dataset, "measured": measured, "reproduction": compared})
    else:
        _print(spec, measured, compared)


@command(benchmark_app, "stages")
def benchmark_stages(
    dataset: Annotated[str, typer.Argument(help="A dataset with graph or grid signals.")],
    system: Annotated[str, typer.Option(help="A learned system, or a file with a torch module.")] = "stid",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each variant.")] = 3,
    budget: Annotated[str, typer.Option(help="quick, standard or full.")] = "quick",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Measure what time, place, frequency and side information are worth to a system, by taking each of them away."""
    from stfm_pipeline import worth
    from stfm_pipeline.console import emit, say, table
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.launch import materialize, require_root
    from stfm_pipeline.road import stale_stages
    from stfm_pipeline.systems.catalog import select_systems

    one_of("budget", budget, ("quick", "standard", "full"))
    one_of("device", device, ("auto", "cpu", "cuda", "mps"))
    spec = get_dataset(dataset).spec
    (chosen,) = select_systems([joined(system)], spec)
    settings, lake = open_lake()
    if todo := stale_stages(dataset, lake):
        require_root()
        materialize(dataset, todo, {}, settings)
    rows = worth.compare(dataset, worth.measure(dataset, chosen, lake, settings, budget, seeds, device), lake)
    if as_json:
        emit({"dataset": dataset, "system": chosen.name, "budget": budget, "rows": rows})
        return
    units = {c.name: c.unit for c in spec.channels}
    shown = [
        [
            r["without"],
            r["when"] or "",
            r["channel"],
            f"{r['mae']:.4g} {units[r['channel']]}",
            _figure(r["deviation"]),
            "" if r["when"] is None else f"{r['change']:+.1%}",
            "" if r["when"] is None else f"{r['low']:+.1%} to {r['high']:+.1%}",
        ]
        for r in rows
    ]
    heads = ["without", "", "channel", "test MAE", "sd of seeds", "change", "95 % interval"]
    table(f"{chosen.name} on {dataset}, {budget} budget, {seeds} seed(s)", heads, shown, heads[3:])
    if none := [t for t in worth.TITLES.values() if t not in {r["without"] for r in rows}]:
        say(f"  {dataset} has no {', no '.join(none)} to take away")


@command(benchmark_app, "windows")
def benchmark_windows(
    dataset: Annotated[str, typer.Argument(help="A dataset that is at least harmonized, embedded and enriched.")],
    to: Annotated[Path | None, typer.Option(help="A new folder; default: windows-<dataset> here.")] = None,
    part: Annotated[str, typer.Option(help="val, gate or test.")] = "test",
    length: Annotated[int | None, typer.Option(min=1, help="Horizon in steps; default: the dataset's.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Take one window in so many, for models that are slow.")] = 1,
    long: Annotated[bool, typer.Option("--long", help="Also the series as a long frame: series.parquet.")] = False,
    as_json: Json = False,
) -> None:
    """Write the windows that systems are compared on, for a model made elsewhere; its forecasts come back as a file."""
    from stfm_pipeline.console import emit, say
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.evaluate.exchange import HOW, export, window_set
    from stfm_pipeline.windows import load_panel

    one_of("part", part, ("val", "gate", "test"))
    spec = get_dataset(dataset).spec
    settings, lake = open_lake()
    panel = load_panel(lake, dataset, settings.cache, horizon=length)
    chosen = window_set(panel, cast("Part", part), every)
    facts = {"licence": spec.licence, "loss": spec.task.loss, "zone": spec.zone}
    folder = to or Path(f"windows-{dataset}")
    files = export(panel, chosen, folder, facts, long)
    if as_json:
        emit({"windows": chosen.name, "count": len(chosen.origins), "files": files})
        return
    say(
        f"{len(chosen.origins)} windows of {panel.problem.horizon} steps, {chosen.name}: wrote "
        + ", ".join(map(str, files))
    )
    for form, how in HOW.items():
        say(f"  {form}: {how}")
    say(f"  then: stfm evaluate {dataset} --predictions FILE")


def _print(spec: DatasetSpec, measured: list[dict[str, Any]], compared: list[dict[str, Any]]) -> None:
    from stfm_pipeline.console import reproduction, say, table
    from stfm_pipeline.reproduce import protocol

    rule = protocol(spec)
    keys = list(
        dict.fromkeys([str(k) for p in rule.published for k in p.scores] or [k for m in measured for k in m["scores"]])
    )
    unit = (
        "standardised"
        if rule.scale == "standardised"
        else next(c.unit for c in spec.channels if c.name == rule.channel)
    )
    metrics = "/".join(m.upper() for m in rule.metrics)
    rows = []
    for p in rule.published:
        cells = ["/".join("-" if v is None else f"{v:g}" for v in p.scores.get(_key(k), ())) or "-" for k in keys]
        rows.append([p.model, p.look_back or spec.task.look_back, f"published: {p.source}", *cells])
    merged: dict[tuple[str, int], dict[str, Any]] = {}
    for m in measured:
        merged.setdefault((m["system"], m["look_back"]), {"seeds": m["seeds"], "scores": {}})["scores"] |= m["scores"]
    for (name, look_back), m in merged.items():
        cells = ["/".join(_figure(m["scores"].get(k, {}).get(x)) for x in rule.metrics) for k in keys]
        rows.append([name, look_back, f"measured here, {m['seeds']} seed(s)", *cells])
    heads = [f"horizon {k}" if rule.at == "length" else f"step {k}" if k != "avg" else "avg" for k in keys]
    windows = ", ".join(sorted({str(m["windows"]) for m in measured}))
    table(
        f"{spec.title}: {metrics} on test, {unit}; {windows} windows",
        ["model", "look-back", "", *heads],
        rows,
        ["look-back", *heads],
    )
    for note in rule.notes:
        say(f"  {note}")
    reproduction(compared)


def _key(text: str) -> Any:
    return text if text == "avg" else int(text)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 10 else f"{value:.2f}"
