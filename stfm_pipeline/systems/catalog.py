"""The systems that exist, and which of them fit a dataset."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from stfm_pipeline import systems as package
from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.errors import UsageError
from stfm_pipeline.systems import own
from stfm_pipeline.systems.spec import System

log = logging.getLogger("stfm")
_NOT_SYSTEMS = {"spec", "catalog", "own", "advice"}
_ORDER = ("baseline", "primitive", "transferred")


@cache
def built_in() -> tuple[str, ...]:
    """Names of the system modules here, found without importing any (they import torch)."""
    names = [m.name for m in pkgutil.iter_modules(package.__path__)]
    return tuple(n for n in names if n not in _NOT_SYSTEMS and not n.startswith("_"))


def module_names() -> tuple[str, ...]:
    """Module names of every system, a user's own among them; nothing is imported."""
    return (*built_in(), *(n for n in own.files() if n not in built_in()))


def code_of(name: str) -> str:
    """What a system's code version is taken from: a dotted module, or the path of a user's file."""
    return str(own_file(name) or f"{package.__name__}.{name.replace('-', '_')}")


def own_file(name: str) -> Path | None:
    """The file of a user's system; None where the name is one of those here, or unknown."""
    key = name.replace("-", "_")
    return None if key in built_in() else own.files().get(key)


def get_system(name: str) -> System:
    """The system called `name`; an unknown name is a `UsageError` that lists the nearest ones."""
    known = [n.replace("_", "-") for n in module_names()]
    if name not in known:
        if (misfit := own.misfits().get(name)) is not None:
            raise misfit
        near = get_close_matches(name, known, n=3)
        raise UsageError(
            f"no system is called '{name}'",
            expected=f"one of: {', '.join(known)}",
            fix=f"did you mean '{near[0]}'?" if near else "`stfm systems list` shows them all",
        )
    key = name.replace("-", "_")
    if key not in built_in():
        return own.load(own.files()[key])
    module = importlib.import_module(f"{package.__name__}.{key}")
    system: System = module.SYSTEM
    assert system.name == name, f"{module.__name__} names its system '{system.name}'"
    return system


def all_systems() -> dict[str, System]:
    """Every system by name, baselines first; a user's file that cannot be used is passed over with a warning."""
    found = []
    for misfit in own.misfits(built_in()).values():
        log.warning("%s", misfit)
    for name in module_names():
        try:
            found.append(get_system(name.replace("_", "-")))
        except UsageError as error:
            log.warning("%s", error)
    return {s.name: s for s in sorted(found, key=lambda s: (_ORDER.index(s.branch), s.name))}


def unfit_reason(system: System, spec: DatasetSpec, task: str = "forecasting") -> str | None:
    """Why a system cannot run on a dataset, or None if it can."""
    if spec.kind not in system.kinds:
        return f"it is for {', '.join(system.kinds)} data; '{spec.name}' is {spec.kind}"
    if task not in system.tasks:
        return f"it does {', '.join(system.tasks)}, not {task}"
    return None


def select_systems(names: Sequence[str], spec: DatasetSpec, task: str = "forecasting") -> list[System]:
    """The named systems, or all fit ones; an unfit choice is refused with the list of fit ones."""
    fit = [s for s in all_systems().values() if unfit_reason(s, spec, task) is None]
    chosen = [get_system(n) for n in names] if names else fit
    for system in chosen:
        if reason := unfit_reason(system, spec, task):
            raise UsageError(
                f"'{system.name}' does not fit '{spec.name}': {reason}",
                expected=f"one of: {', '.join(s.name for s in fit) or 'none fits yet'}",
                fix=f"`stfm systems list --for {spec.name}` says which fit and why",
            )
    return chosen
