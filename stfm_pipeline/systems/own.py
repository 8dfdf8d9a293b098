"""A user's systems: one Python file each in `$STFM_HOME/systems/`, most simply a plain `torch.nn.Module`."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stfm_pipeline.errors import UsageError
from stfm_pipeline.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from stfm_pipeline.systems.spec import System, Training
    from stfm_pipeline.windows import Problem

STEM = re.compile(r"[a-z][a-z0-9_]{0,40}")
RESERVED = {"raw", "harmonized", "embedded", "enriched", "trained", "evaluated", "champion"}


def folder() -> Path:
    """Where a user's systems are."""
    return Settings().root / "systems"


def files() -> dict[str, Path]:
    """A user's system files by module name; nothing is imported."""
    return {p.stem: p for p in sorted(folder().glob("*.py")) if STEM.fullmatch(p.stem)}


def install(path: Path, taken: set[str]) -> str:
    """Check a file, keep a copy of it in `folder()` and return the system's name.

    Raises `UsageError` on a file that is not there, cannot be imported, or holds no single model.
    """
    if not path.is_file():
        raise UsageError(f"no file at {path}", fix="name a Python file that defines a torch.nn.Module")
    if not STEM.fullmatch(path.stem) or path.stem in RESERVED or path.stem in taken:
        raise UsageError(
            f"a system cannot be called '{path.stem}'",
            expected="a file named with lower-case letters, digits and underscores, unlike every system and stage here",
            fix=f"rename the file, e.g. my_{re.sub(r'[^a-z0-9_]', '_', path.stem.lower())}.py",
        )
    load(path)
    target = folder() / path.name
    if path.resolve() != target.resolve():
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.part")
        scratch.write_bytes(path.read_bytes())
        scratch.replace(target)
    return path.stem.replace("_", "-")


def load(path: Path, name: str | None = None) -> System:
    """The system a file defines: its `SYSTEM`, or one made around its only `torch.nn.Module` (or the one called Model).

    The module is built with the problem if its constructor takes an argument. Its forward gets the `Inputs` if its
    first argument is called `inputs`, else the look-back alone (b, look_back, n, c), and returns (b, horizon, n, c).
    `TRAINING`, a dict or a `Training`, changes the defaults.
    """
    return _load(path, path.read_text(encoding="utf-8"), name or path.stem.replace("_", "-"))


@cache
def _load(path: Path, text: str, name: str) -> System:
    from dataclasses import replace

    from stfm_pipeline.systems.spec import System

    spec = importlib.util.spec_from_file_location(f"stfm_own_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    # dataclasses and annotations look their module up by name.
    sys.modules[spec.name] = module
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except Exception as error:
        line = next((f.lineno for f in reversed(inspect.trace()) if f.filename == str(path)), None)
        raise UsageError(
            f"{path.name} cannot be imported",
            found=f"{type(error).__name__}: {error}" + (f" (line {line})" if line else ""),
            fix="run it with Python alone until it imports",
        ) from error
    given = getattr(module, "SYSTEM", None)
    if isinstance(given, System):
        return replace(given, name=name)
    model = _only_model(path, module)
    return System(
        name=name,
        title=name,
        summary=(inspect.getdoc(model) or f"The model of {path.name}.").splitlines()[0],
        reference=path.name,
        branch="primitive",
        objective="regression",
        backbone=model.__name__,
        dependencies="both",
        build=_builder(model),
        training=_training(path, module),
    )


def _only_model(path: Path, module: Any) -> type[nn.Module]:
    from torch import nn

    own = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, nn.Module) and v.__module__ == module.__name__
    ]
    chosen = [v for v in own if v.__name__ == "Model"] or own
    if len(chosen) != 1:
        raise UsageError(
            f"{path.name} defines {len(own)} models",
            expected="one torch.nn.Module, or one that is called Model, or SYSTEM = System(...)",
            found=", ".join(v.__name__ for v in own) or "none",
            fix="name the one that is meant `Model`",
        )
    return chosen[0]


def _training(path: Path, module: Any) -> Training:
    from stfm_pipeline.systems.spec import Training

    given = getattr(module, "TRAINING", {})
    if isinstance(given, Training):
        return given
    try:
        return Training(**given)
    except TypeError as error:
        raise UsageError(
            f"{path.name}: TRAINING is not understood", expected=str(inspect.signature(Training)), found=str(error)
        ) from error


def _builder(model: type[nn.Module]) -> Any:
    from torch import nn

    takes_problem = any(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in inspect.signature(model).parameters.values()
    )
    first = next((p for p in list(inspect.signature(model.forward).parameters)[1:]), "")

    class LookBack(nn.Module):
        """Hands the look-back's values to a module that knows nothing of `Inputs`."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, inputs: Any) -> Any:
            return self.inner(inputs.x)

    def build(problem: Problem) -> nn.Module:
        built = model(problem) if takes_problem else model()
        return built if first == "inputs" else LookBack(built)

    return build
