"""Table versions that nothing is made from any more."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from stfm_pipeline.alone import alone
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.road import ROAD
from stfm_pipeline.settings import Settings


def sweep(name: str, lake: Lake, settings: Settings, dry_run: bool = False) -> int:
    """Delete table versions of a dataset that no current stage and no registered model is made from; bytes freed.

    Waits for whoever works on the dataset. Raises before anything goes if a model cannot say what it is made from.
    """
    from stfm_pipeline import registry

    with ExitStack() as held:
        # The tables' own comes last, as everywhere; a training may yet register what it is made from.
        for lock in sorted(settings.root.glob(f"locks/{name}.*"), key=lambda p: (p.name == f"{name}.{ROAD}", p.name)):
            held.enter_context(alone(lock, f"working on {name}"))
        made_from = [lineage["tables"] for lineage in registry.lineages(settings, name)]
        used = _in_use(name, lake)
        freed = 0
        for folder in sorted(Path(lake.uri, name).iterdir()):
            stage = folder.name
            keep = [tables[stage]["delta_versions"] for tables in made_from if stage in tables]
            freed += lake.sweep(name, stage, [*keep, *(s.tables for s in used if s.name == stage)], dry_run)
    return freed


def _in_use(name: str, lake: Lake) -> list[Stage]:
    """The current stages of a dataset, and what they were made from, back to the raw tables."""
    used: list[Stage] = []
    waiting = list(lake.stages(name))
    while waiting:
        stage = waiting.pop()
        if stage not in used:
            used.append(stage)
            made_from = stage.inputs.items()
            waiting += [s for i, version in made_from for s in lake.history(name, i) if s.data_version == version]
    return used
