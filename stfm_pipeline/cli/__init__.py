"""The command line. Heavy libraries are imported by the commands that need them, inside their functions."""

# ruff: noqa: F401, I001  (one line, in the order of `stfm --help`)
from stfm_pipeline.cli import (
    road,
    land,
    retrain,
    drift,
    evaluate,
    use,
    serve,
    machine,
    datasets,
    systems,
    models,
    benchmark,
)
from stfm_pipeline.cli.base import app

__all__ = ["app", "main"]


def main() -> None:
    app()
