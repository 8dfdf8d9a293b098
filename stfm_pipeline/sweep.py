"""Table versions that nothing is made from any more."""

from __future__ import annotations

from pathlib import Path

from stfm_pipeline.alone import alone
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import ROAD
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS


def sweep(name: str, lake: Lake, settings: Settings, dry_run: bool = False) -> int:
    """Delete table versions of a dataset that no current stage and no registered model is made from; bytes freed.

    Raises before anything is deleted if a model cannot say what it is made from.
    """
    from stfm_pipeline import registry

    made_from = [lineage["tables"] for lineage in registry.lineages(settings, name)]
    freed = 0
    for folder in sorted(Path(lake.uri, name).iterdir()):
        stage = folder.name
        keep = [tables[stage]["delta_versions"] for tables in made_from if stage in tables]
        with alone(settings.lock(name, ROAD if stage in STEPS else stage), f"working on {stage} of {name}"):
            freed += lake.sweep(name, stage, keep, dry_run)
    return freed
