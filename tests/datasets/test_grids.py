"""The real archives of the built-in grids, and a store of one's own, through the road."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fixtures import foreign

from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import materialize, stale_stages
from stfm_pipeline.settings import Settings
from stfm_pipeline.sources import fetch
from stfm_pipeline.tables import dense_values


@pytest.mark.network
@pytest.mark.parametrize(
    ("name", "grid", "land", "corner"),
    [
        ("ncep-air", [25, 53], 0, (-160, 75)),
        ("ostia-sst", [18, 432], 2055, (0, -5)),
        ("norkyst", [201, 301], 19256, (5.1128, 59.3216)),
    ],
)
def test_a_built_in_grid_keeps_its_contract(
    name: str, grid: list[int], land: int, corner: tuple[float, float], settings: Settings
) -> None:
    dataset = get_dataset(name)
    raw = dataset.read({k: v for s in dataset.spec.sources for k, v in fetch(s, settings).items()})
    result = harmonize(dataset.spec, raw)
    assert [c.name for c in result.checks if not c.passed] == []
    assert (result.facts["grid"], result.facts["never_observed"]) == (grid, land)
    assert result.facts["report"]["rows_in_a_shared_step"] == 0
    assert raw["entities"].select("lon", "lat").row(0) == pytest.approx(corner, abs=1e-4)
    for channel in dataset.spec.channel_names:
        assert result.facts["masked"][channel]["out_of_range"] == 0
        unseen = np.isnan(dense_values(raw["observations"], channel)).mean()
        # Where u and v were put between land and sea, one may be there without the other.
        assert 0 <= unseen - land / np.prod(grid) < 0.02


STORE = """\
kind: grid
zone: UTC
region: [-11, 52, 6, 56]
tables:
  observations: {format: gridded, file: air.zarr, columns: {temp_k: t2m}}
channels:
  - {name: temp_k, unit: K}
harmonize: {step: 1h}
task: {look_back: 6, horizon: 2}
"""


def test_a_zarr_store_beside_its_description_goes_down_the_road(home: Path, settings: Settings, lake: Lake) -> None:
    folder = home / "datasets"
    folder.mkdir(parents=True)
    (folder / "my-air.yaml").write_text(STORE)
    store = foreign.stored(foreign.field(steps=40), folder / "air.zarr")
    for stage in ("raw", "harmonized", "embedded", "enriched"):
        found = materialize("my-air", stage, lake, settings)
        assert [c.name for c in found.checks if not c.passed] == []
    assert lake.require("my-air", "harmonized").facts["never_observed"] == 1
    cells = lake.read(lake.require("my-air", "harmonized"), "entities")
    assert cells.select("entity", "row", "col", "lon", "lat").row(6) == ("r1c2", 1, 2, 0.0, 54.0)
    assert cells.schema["row"] == pl.Int32
    assert stale_stages("my-air", lake) == []
    values = foreign.field(steps=40)
    values["t2m"] += 1
    values.to_zarr(store, mode="w", zarr_format=2)
    assert "raw" in stale_stages("my-air", lake), "a store counts by the bytes of its files"
