"""The datasets that exist: every module beside this one that defines `SPEC` and `read`."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from functools import cache

from stfm_pipeline import datasets as package
from stfm_pipeline.datasets.spec import Dataset, check_name
from stfm_pipeline.errors import UsageError

_NOT_DATASETS = {"spec", "catalog"}
_registered: dict[str, Dataset] = {}


def register(dataset: Dataset) -> None:
    """Make a dataset known to this process under its own name."""
    _registered[dataset.spec.name] = dataset


def all_datasets() -> dict[str, Dataset]:
    """Every known dataset by name."""
    return dict(sorted({**_built_in(), **_registered}.items()))


@cache
def _built_in() -> dict[str, Dataset]:
    found: dict[str, Dataset] = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.name in _NOT_DATASETS or info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        dataset = Dataset(spec=module.SPEC, read=module.read, module=module.__name__)
        found[dataset.spec.name] = dataset
    return found


def get_dataset(name: str) -> Dataset:
    """The dataset called `name`; an unknown or unsafe name is a `UsageError` that lists the nearest ones."""
    check_name(name)
    known = all_datasets()
    if name not in known:
        near = get_close_matches(name, known, n=3)
        raise UsageError(
            f"no dataset is called '{name}'",
            expected=f"one of: {', '.join(known)}",
            fix=f"did you mean '{near[0]}'?" if near else "`stfm datasets list` shows them all",
        )
    return known[name]
