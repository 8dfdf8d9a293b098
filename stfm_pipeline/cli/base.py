"""What every command shares: the apps, exit codes, and how a failure is shown."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stfm_pipeline.errors import StfmError, UsageError

if TYPE_CHECKING:
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.settings import Settings

ABOUT = "`stfm`: the pipeline of spatio-temporal foundation models, from raw data to a registered model."
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=ABOUT)
datasets_app = typer.Typer(no_args_is_help=True, help="What data there is.")
systems_app = typer.Typer(no_args_is_help=True, help="What can be trained, and what fits.")
models_app = typer.Typer(no_args_is_help=True, help="Registered models.")
benchmark_app = typer.Typer(no_args_is_help=True, help="Published protocols, and windows for models from elsewhere.")
app.add_typer(datasets_app, name="datasets")
app.add_typer(systems_app, name="systems")
app.add_typer(models_app, name="models")
app.add_typer(benchmark_app, name="benchmark")

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
            except (typer.Exit, typer.Abort):
                raise
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


def open_lake() -> tuple[Settings, Lake]:
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.settings import Settings

    settings = Settings()
    return settings, Lake(settings.lake_uri)


def one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"no {what} is called '{value}'", expected=f"one of: {', '.join(allowed)}")


def joined(system: str) -> str:
    """The name of a system; a Python file joins as one of the user's own."""
    if not system.endswith(".py"):
        return system
    from pathlib import Path

    from stfm_pipeline.systems import own
    from stfm_pipeline.systems.catalog import built_in

    return own.install(Path(system), built_in())


def moment(text: str) -> datetime:
    """A date or time as ISO 8601 writes it."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise UsageError("not a date", expected="2013-12-16 or 2013-12-16T05:00:00Z", found=repr(text)) from None
