"""Which version of its split a dataset is to have: kept on disk, so that a retraining cut short goes on with it."""

from __future__ import annotations

import os

from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.lake import Stage
from stfm_pipeline.settings import Settings


def split_version(name: str, settings: Settings | None = None) -> int:
    """The number of the split that was last asked for; 1 is the one drawn first."""
    path = (settings or Settings()).root / "splits" / name
    return int(path.read_text()) if path.exists() else 1


def ask_for_new_split(spec: DatasetSpec, harmonized: Stage | None, growing: bool, settings: Settings) -> int:
    """Have the split drawn anew on the present clock; the number of the version that will be there.

    A published split (`counts`) never moves, and without any step more than the present one was drawn on (`growing`:
    there will be more) nothing is asked: the same split would come of it.
    """
    wanted = split_version(spec.name, settings)
    if spec.split.counts is not None or harmonized is None or wanted > harmonized.facts.get("split_version", 1):
        return wanted
    if not growing and harmonized.facts["end"] == harmonized.facts.get("split_drawn", harmonized.facts["end"]):
        return wanted
    path = settings.root / "splits" / spec.name
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{spec.name}.part")
    scratch.write_text(str(wanted + 1))
    os.replace(scratch, path)
    return wanted + 1
