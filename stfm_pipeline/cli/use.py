"""`stfm predict` and `stfm sql`: use what the road made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stfm_pipeline.cli.base import (
    DEFAULT_DATASET,
    Json,
    app,
    command,
    open_lake,
)
from stfm_pipeline.errors import UsageError

if TYPE_CHECKING:
    pass


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
    from stfm_pipeline.console import emit, say
    from stfm_pipeline.registry import load_model

    settings, lake = open_lake()
    if example is not None:
        from stfm_pipeline.datasets.catalog import get_dataset
        from stfm_pipeline.predict import frame_of
        from stfm_pipeline.windows import load_panel

        get_dataset(model)
        panel = load_panel(lake, model, settings.cache)
        _write_frame(frame_of(panel, int(panel.origins("test")[-1])), example)
        say(f"wrote {example}")
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

    _, lake = open_lake()
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
