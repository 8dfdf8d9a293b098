"""`stfm benchmark`: published protocols, and windows for models from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stfm_pipeline.cli.base import Json, benchmark_app, command, one_of, open_lake

if TYPE_CHECKING:
    from stfm_pipeline.datasets.spec import DatasetSpec


@command(benchmark_app, "run")
def benchmark_run(
    dataset: Annotated[str, typer.Argument(help="A dataset with a published protocol.")],
    system: Annotated[list[str] | None, typer.Option(help="Default: those with a published row.")] = None,
    length: Annotated[list[int] | None, typer.Option(help="Only these horizon lengths, in steps.")] = None,
    budget: Annotated[str, typer.Option(help="quick, standard (three seeds) or full.")] = "standard",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Json = False,
) -> None:
    """Measure systems by a dataset's published protocol; every number beside the published one, green or red."""
    from stfm_pipeline import reproduce
    from stfm_pipeline.console import emit
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.launch import materialize, require_root
    from stfm_pipeline.road import stale_stages

    one_of("budget", budget, ("quick", "standard", "full"))
    one_of("device", device, ("auto", "cpu", "cuda", "mps"))
    spec = get_dataset(dataset).spec
    rule = reproduce.protocol(spec)
    jobs = reproduce.jobs_of(spec, system or [], length or [])
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
                "seeds": stage.facts["seeds"],
                "windows": stage.facts["windows"],
                "seconds": seconds,
            }
        )
    if as_json:
        emit({"dataset": dataset, "measured": measured, "reproduction": compared})
    else:
        _print(spec, measured, compared)


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
