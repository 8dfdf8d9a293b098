"""A user's systems: one Python file each in `$STFM_HOME/systems/`, most simply a plain `torch.nn.Module`."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import chdir, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from stfm_pipeline.errors import UsageError
from stfm_pipeline.settings import Settings

if TYPE_CHECKING:
    from torch import nn

    from stfm_pipeline.systems.spec import System, Training
    from stfm_pipeline.windows import Problem

log = logging.getLogger("stfm")
STEM = re.compile(r"[a-z][a-z0-9_]{0,40}")
RESERVED = {"raw", "harmonized", "embedded", "enriched", "trained", "evaluated", "champion"}
SOURCE = "stfm_source"


def folder() -> Path:
    """Where a user's systems are."""
    return Settings().root / "systems"


def files() -> dict[str, Path]:
    """A user's system files by module name; nothing is imported."""
    return {p.stem: p for p in _visible() if _misfit(p) is None}


def misfits(taken: Collection[str] = ()) -> dict[str, UsageError]:
    """What lies among a user's system files and cannot be one by its name or kind: the reason by system name."""
    return {p.stem.replace("_", "-"): error for p in _visible() if (error := _misfit(p, taken)) is not None}


def _visible() -> list[Path]:
    return [p for p in sorted(folder().glob("*.py")) if not p.name.startswith((".", "_"))]


def _misfit(path: Path, taken: Collection[str] = ()) -> UsageError | None:
    if not path.is_file() or not os.access(path, os.R_OK):
        return UsageError(f"no file at {path}", fix="name a Python file that defines a torch.nn.Module")
    if not STEM.fullmatch(path.stem) or path.stem in RESERVED or path.stem in taken:
        return UsageError(
            f"a system cannot be called '{path.stem}'",
            expected="a file named with lower-case letters, digits and underscores, unlike every system and stage here",
            found=str(path),
            fix=f"rename the file, e.g. my_{re.sub(r'[^a-z0-9_]', '_', path.stem.lower())}.py",
        )
    return None


def install(path: Path, taken: Collection[str]) -> str:
    """Check a file, keep a copy of it in `folder()` and return the system's name.

    Raises `UsageError` on a file that is not there, cannot be imported, or holds no single model.
    """
    if (error := _misfit(path, taken)) is not None:
        raise error
    name, source = path.stem.replace("_", "-"), path.read_bytes()
    _load(path, source, name)
    target = folder() / path.name
    before = target.read_bytes() if target.is_file() else source
    if path.resolve() != target.resolve():
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.part")
        scratch.write_bytes(source)
        scratch.replace(target)
    how = "joins as" if before == source else "replaces another file as"
    log.info("%s %s the system '%s' (kept in %s)", path, how, name, folder())
    return name


def load(path: Path, name: str | None = None) -> System:
    """The system a file defines: its `SYSTEM`, or one made around its only `torch.nn.Module` (or the one called Model).

    The module is built with the problem if its constructor takes an argument. Its forward gets the `Inputs` if its
    first argument is called `inputs`, else the look-back alone (b, look_back, n, c), and returns (b, horizon, n, c).
    `TRAINING`, a dict or a `Training`, changes the defaults. Raises `UsageError` on a file that cannot be used.
    """
    return _load(path, path.read_bytes(), name or path.stem.replace("_", "-"))


def source_of(module: nn.Module) -> bytes | None:
    """The file that a user's module was built from, as it was then; None for a module of the systems here."""
    source: bytes | None = getattr(module, SOURCE, getattr(getattr(module, "inner", None), SOURCE, None))
    return source


@cache
def _load(path: Path, source: bytes, name: str) -> System:
    from dataclasses import replace

    try:
        with _nothing_kept():
            system = _system(path, _imported(path, source), name)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        line = next((f.lineno for f in reversed(inspect.trace()) if f.filename == str(path)), None)
        raise UsageError(
            f"{path.name} cannot be imported",
            found=f"{type(error).__name__}: {error}" + (f" (line {line})" if line else ""),
            fix="run it with Python alone until it imports",
        ) from error

    def build(problem: Problem) -> nn.Module:
        module = system.build(problem)
        # The file may be edited or deleted while its module trains; what is saved is what was trained.
        setattr(module, SOURCE, source)
        return module

    return replace(system, name=name, build=build)


@contextmanager
def _nothing_kept() -> Iterator[None]:
    """What a user's file sets for the whole process while it is imported would change every other system."""
    import torch

    dtype, threads, environ = torch.get_default_dtype(), torch.get_num_threads(), dict(os.environ)
    with chdir(Path.cwd()), torch.set_grad_enabled(torch.is_grad_enabled()), torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            for added in os.environ.keys() - environ.keys():
                del os.environ[added]
            os.environ.update(environ)


def _imported(path: Path, source: bytes) -> Any:
    spec = importlib.util.spec_from_file_location(f"stfm_own_{path.stem}", path)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    # dataclasses and annotations look their module up by name.
    sys.modules[spec.name] = module
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module


def _system(path: Path, module: Any, name: str) -> System:
    from stfm_pipeline.systems.spec import System

    given = getattr(module, "SYSTEM", None)
    if isinstance(given, System):
        return _understood(path, given)
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


def _understood(path: Path, system: System) -> System:
    """A `SYSTEM` that lists and choices can be made of; a wrong one would end them for every system."""
    from stfm_pipeline.systems.spec import Branch, Dependencies, Training

    def names(value: object) -> bool:
        return isinstance(value, tuple) and all(isinstance(v, str) for v in value)

    rules = {
        "branch": (" or ".join(get_args(Branch)), system.branch in get_args(Branch)),
        "dependencies": (" or ".join(get_args(Dependencies)), system.dependencies in get_args(Dependencies)),
        **{key: ("a tuple of names", names(getattr(system, key))) for key in ("kinds", "tasks", "needs")},
        "build": ("a function of the problem", callable(system.build)),
        "training": ("Training(...) or None", isinstance(system.training, Training | None)),
    }
    for key, (expected, holds) in rules.items():
        if not holds:
            found = f"{key}={getattr(system, key)!r}"
            raise UsageError(f"{path.name}: SYSTEM is not understood", expected=f"{key}: {expected}", found=found)
    return system


def _only_model(path: Path, module: Any) -> type[nn.Module]:
    from torch import nn

    # A second name for a class is not a second class.
    own = dict.fromkeys(
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, nn.Module) and v.__module__ == module.__name__
    )
    chosen: list[type[nn.Module]] = [v for v in own if v is vars(module).get("Model")] or list(own)
    if len(chosen) != 1:
        raise UsageError(
            f"{path.name} defines {len(own)} models",
            expected="one torch.nn.Module, or one that is called Model, or SYSTEM = System(...)",
            found=", ".join(v.__name__ for v in own) or "none",
            fix="name the one that is meant `Model`",
        )
    return chosen[0]


def _training(path: Path, module: Any) -> Training:
    from dataclasses import asdict

    from pydantic import TypeAdapter, ValidationError

    from stfm_pipeline.systems.spec import Training

    given = getattr(module, "TRAINING", {})
    try:
        return TypeAdapter(Training).validate_python(given)
    except ValidationError as error:
        wrong = error.errors(include_url=False)
        raise UsageError(
            f"{path.name}: TRAINING is not understood",
            expected="a dict such as " + ", ".join(f"{k}={v!r}" for k, v in asdict(Training()).items()),
            found="; ".join(f"{e['loc'][0] if e['loc'] else 'TRAINING'}={e['input']!r}: {e['msg']}" for e in wrong),
            fix="leave out what is to stay as it is",
        ) from error


def _builder(model: type[nn.Module]) -> Callable[[Problem], nn.Module]:
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
