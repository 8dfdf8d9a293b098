"""The command line. Heavy libraries are imported by the commands that need them, inside their functions."""

from stfm_pipeline.cli import road, land, retrain, evaluate, use, serve, machine, datasets, systems, models, benchmark  # noqa: I001  (the order of `stfm --help`)
from stfm_pipeline.cli.base import app

__all__ = [
    "app",
    "benchmark",
    "datasets",
    "evaluate",
    "land",
    "machine",
    "main",
    "models",
    "retrain",
    "road",
    "serve",
    "systems",
    "use",
]


def main() -> None:
    app()
