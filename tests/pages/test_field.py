"""The pictures of a grid on its page, decoded and held against the tables."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import matplotlib
import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from PIL import Image

from stfm_pipeline.datasets.formats.base import lay_out
from stfm_pipeline.datasets.spec import Dataset, DatasetSpec
from stfm_pipeline.lake import Lake
from stfm_pipeline.pages.dataset import dataset_page
from stfm_pipeline.pages.dataset.field import LAND
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.tables import dense_observations

STEPS, HEIGHT, WIDTH = 40, 6, 9
HIDDEN, HALF = 13, 20  # a cell of land, and one that is observed in every second step


def values() -> NDArray[np.float32]:
    """Warmer to the east, and to the south a little."""
    rows, columns = np.indices((HEIGHT, WIDTH))
    field = (columns + rows / 10).ravel() + np.sin(np.arange(STEPS))[:, None] / 100
    field[:, HIDDEN] = np.nan
    field[::2, HALF] = np.nan
    return field.astype(np.float32)


def dataset(lon: NDArray[np.float64] | None, lat: NDArray[np.float64] | None) -> Dataset:
    spec = DatasetSpec.model_validate(
        {
            "name": "fields",
            "title": "Fields",
            "kind": "grid",
            "licence": "none",
            "zone": "UTC",
            "channels": [{"name": "v", "unit": "K"}],
            "harmonize": {"step": "1h"},
            "task": {"look_back": 4, "horizon": 2},
        }
    )
    scene = spec.scene()
    lay_out(scene, HEIGHT, WIDTH, lon, lat)
    times = pl.Series([datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=h) for h in range(STEPS)])
    observations = dense_observations(times.cast(pl.Datetime("us", "UTC")), {"v": values()})
    tables = {"observations": observations, "entities": scene.cells}
    return Dataset(spec=spec, read=lambda files: dict(tables), module="stfm_pipeline.datasets.nyc_airports")


def pictures(html: str) -> list[NDArray[np.uint8]]:
    """One picture per map, in the order of the page, as (rows, columns, 4)."""
    part = html[html.index('<h2 id="map">') : html.index('<h2 id="coverage">')]
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', part)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(f))).convert("RGBA")) for f in found]


def shown(lake: Lake, settings: Settings, made: Dataset, until: int = 4) -> str:
    for stage in ("raw", "harmonized", "embedded", "enriched")[:until]:
        assert materialize("fields", stage, lake, settings).stage is not None
    return dataset_page(made.spec, lake).html


Add = Callable[[Dataset], Dataset]


@pytest.mark.parametrize("southwards", [True, False])
def test_north_is_up_and_land_is_land(southwards: bool, add_dataset: Add, lake: Lake, settings: Settings) -> None:
    north = np.linspace(60, 50, HEIGHT) if southwards else np.linspace(50, 60, HEIGHT)
    lat, lon = np.meshgrid(north, np.linspace(355, 363, WIDTH) % 360, indexing="ij")
    html = shown(lake, settings, add_dataset(dataset(lon, lat)))
    step, mean, share, scale, patches = pictures(html)
    cell = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    drawn = cell if southwards else cell[::-1]
    for picture in (step, mean, share, patches):
        assert picture.shape == (HEIGHT, WIDTH, 4)
    for picture in (step, mean, share):
        assert tuple(picture[drawn == HIDDEN][0]) == LAND
    truth = values()
    train = np.nansum(truth[:24], axis=0) / np.maximum(np.isfinite(truth[:24]).sum(axis=0), 1)
    train[HIDDEN] = np.nan
    low, high = np.nanquantile(np.concatenate([truth[-1], train]), (0.02, 0.98))
    colours = matplotlib.colormaps["viridis"](np.clip((train - low) / (high - low), 0, 1), bytes=True)
    known = drawn != HIDDEN
    assert np.abs(mean[known].astype(int) - colours[drawn[known]].astype(int)).max() <= 1
    assert step[drawn == HALF][0][3] == 255
    assert share[drawn == HALF][0][3] == round(40 + 215 / 2)
    assert share[drawn == 0][0][3] == 255
    assert tuple(scale[0, -1]) == tuple(matplotlib.colormaps["viridis"](1.0, bytes=True))
    assert "1 cells without a value in any channel" in html
    assert "longitude" in html
    assert "own rows and columns" not in html
    spatial = lake.read(lake.require("fields", "embedded"), "spatial")["patch"].to_numpy()
    assert len({tuple(p) for p in patches.reshape(-1, 4)}) == len(np.unique(spatial))
    assert len(html) < 200_000


def test_a_grid_whose_rows_are_no_latitudes_is_drawn_as_it_is(add_dataset: Add, lake: Lake, settings: Settings) -> None:
    rows, columns = np.indices((HEIGHT, WIDTH)).astype(float)
    html = shown(lake, settings, add_dataset(dataset(5 + columns - rows, 50 + columns / 2)), until=2)
    assert "Drawn in its own rows and columns, which do not run along longitudes and latitudes." in html
    assert len(pictures(html)) == 4, "patches come later"
    assert "--until embedded" in html


def test_a_grid_that_lies_nowhere_on_earth_is_drawn_too(add_dataset: Add, lake: Lake, settings: Settings) -> None:
    html = shown(lake, settings, add_dataset(dataset(None, None)))
    assert "Nothing says where its cells are on Earth" in html
    assert len(pictures(html)) == 5
