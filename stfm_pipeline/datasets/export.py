"""A dataset's raw tables as csv files with a YAML file that reads them back: a start for one's own, and a way out."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from stfm_pipeline.datasets.spec import DatasetSpec, check_name
from stfm_pipeline.errors import UsageError
from stfm_pipeline.parts import LANDED
from stfm_pipeline.tables import long_observations

SECTIONS = (
    "channels",
    "zone",
    "country",
    "region",
    "seasons",
    "harmonize",
    "split",
    "embed",
    "joins",
    "poi",
    "embed_text",
    "task",
    "facts",
    "benchmark",
)


def export(spec: DatasetSpec, raw: dict[str, pl.DataFrame], folder: Path, name: str) -> list[Path]:
    """Write `<name>.yaml` and `<name>/<table>.csv` into `folder`, all or nothing; raises where one is there already.

    Floats are written so that they come back bit for bit.
    """
    check_name(name)
    targets = (folder / f"{name}.yaml", folder / name)
    if there := [p for p in targets if p.exists()]:
        raise UsageError(f"{there[0]} is there already", fix="choose another --name, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    raw = {t: f for t, f in raw.items() if t != LANDED}
    if "entities" in raw:
        names = raw["entities"]["entity"].to_list()
        raw = raw | {"observations": long_observations(raw["observations"], names)}
    scratch = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    try:
        tables = scratch / name
        tables.mkdir()
        for table, frame in raw.items():
            frame.with_columns(pl.selectors.datetime().dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")).write_csv(
                tables / f"{table}.csv"
            )
        (scratch / "spec.yaml").write_text(_yaml(spec, raw, name), encoding="utf-8")
        os.replace(tables, targets[1])
        # The YAML comes last: without it the dataset does not exist.
        os.replace(scratch / "spec.yaml", targets[0])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return [targets[0], *sorted(targets[1].iterdir())]


def _yaml(spec: DatasetSpec, raw: dict[str, pl.DataFrame], name: str) -> str:
    whole = spec.model_dump(mode="json", exclude_defaults=True)
    data: dict[str, Any] = {"name": name, "title": spec.title, "kind": spec.kind, "licence": spec.licence}
    data |= {"homepage": spec.homepage, "description": spec.description}
    data["tables"] = {t: {"format": "canonical", "file": f"{name}/{t}.csv"} for t in raw}
    data |= {k: whole[k] for k in SECTIONS if k in whole}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
