"""What is larger than memory goes down the same road, a few rows at a time, and comes out the same."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fixtures import foreign

from stfm_pipeline import large
from stfm_pipeline.datasets.formats import read_tables
from stfm_pipeline.datasets.formats.base import Scene
from stfm_pipeline.datasets.formats.gridded import Gridded
from stfm_pipeline.datasets.spec import Channel, Dataset, DatasetSpec, Harmonize, Outliers, Task
from stfm_pipeline.errors import ContractError
from stfm_pipeline.lake import Lake
from stfm_pipeline.large import Chunks, Table
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS
from stfm_pipeline.tables import dense_observations
from stfm_pipeline.windows import load_panel

HEIGHT, WIDTH, STEPS_OF_CLOCK = 5, 7, 400


def observations() -> pl.DataFrame:
    """Fields with a land cell, gaps, values out of range, rows that share a step, and steps without a row."""
    rng = np.random.default_rng(0)
    times = np.datetime64("2024-01-01", "us") + np.arange(STEPS_OF_CLOCK) * np.timedelta64(1_800_000_000, "us")
    values = rng.normal(10, 3, (STEPS_OF_CLOCK, HEIGHT * WIDTH)).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    values[rng.random(values.shape) < 0.01] = 900
    values[:, 3] = np.nan
    kept = np.delete(np.arange(STEPS_OF_CLOCK), [50, 51, 52, 53, 200])
    stamps = pl.Series("time", times[kept]).dt.replace_time_zone("UTC")
    return dense_observations(stamps, {"temp_k": values[kept]})


def spec(**changes: object) -> DatasetSpec:
    base = DatasetSpec(
        name="field",
        title="A field",
        kind="grid",
        licence="none needed",
        channels=(Channel(name="temp_k", unit="K", minimum=0, maximum=100),),
        zone="UTC",
        seasons=(24,),
        harmonize=Harmonize(step="1h", duplicates="mean", outliers=Outliers(threshold=3.5)),
        task=Task(look_back=12, horizon=4),
    )
    return base.model_copy(update=changes)


def cells() -> pl.DataFrame:
    row, col = np.divmod(np.arange(HEIGHT * WIDTH, dtype=np.int32), WIDTH)
    names = [f"{r}-{c}" for r, c in zip(row, col, strict=True)]
    return pl.DataFrame({"entity": names, "row": row, "col": col, "lon": col * 0.5, "lat": row * 0.5})


def field(rows: Table, **changes: object) -> Dataset:
    made: dict[str, Table] = {"observations": rows, "entities": cells()}
    return Dataset(spec=spec(**changes), read=lambda files: made, module="stfm_pipeline.datasets.nyc_airports")


def in_chunks(frame: pl.DataFrame, size: int) -> Chunks:
    def frames() -> Iterator[pl.DataFrame]:
        yield from frame.iter_slices(size)

    return Chunks(frame["time"], frame.columns, frames)


def versions(lake: Lake, settings: Settings) -> dict[str, str]:
    found = {}
    for stage in STEPS:
        outcome = materialize("field", stage, lake, settings)
        assert outcome.stage is not None, outcome.checks
        found[stage] = outcome.stage.data_version
    return found


@pytest.mark.parametrize("size", [7, 64])
def test_a_field_in_chunks_comes_out_as_one_that_is_held(
    size: int,
    add_dataset: Callable[[Dataset], Dataset],
    tmp_path: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_dataset(field(observations()))
    held = Lake(str(tmp_path / "held"))
    wanted = versions(held, settings)
    panel = load_panel(held, "field", tmp_path / "held-cache")
    monkeypatch.setattr(large, "LARGE", 1000)
    monkeypatch.setattr(large, "CELLS_OF_A_PASS", 35 * 50)
    add_dataset(field(in_chunks(observations(), size)))
    streamed = Lake(str(tmp_path / "streamed"))
    assert versions(streamed, settings) == wanted
    assert isinstance(streamed.table(streamed.require("field", "harmonized"), "signal"), Chunks)
    again = load_panel(streamed, "field", tmp_path / "streamed-cache")
    for name, array in vars(panel.arrays).items():
        same = getattr(again.arrays, name)
        assert array is same is None or array.equal(same), name
    assert not list((settings.cache / "scratch").iterdir()), "scratch files have no names"


def test_a_chunk_that_breaks_the_contract_publishes_nothing(
    add_dataset: Callable[[Dataset], Dataset], lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "LARGE", 1000)
    good = observations()
    narrow = good[200:].with_columns(pl.col("temp_k").list.head(30))

    def frames() -> Iterator[pl.DataFrame]:
        yield from (good[:200], narrow)

    add_dataset(field(Chunks(good["time"], good.columns, frames)))
    materialize("field", "raw", lake, settings)
    with pytest.raises(ContractError, match="one value per entity"):
        materialize("field", "harmonized", lake, settings)
    assert lake.stage("field", "harmonized") is None


def test_rows_outside_the_clock_are_counted_in_chunks_as_well(
    add_dataset: Callable[[Dataset], Dataset], lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = {"start": datetime(2024, 1, 2, tzinfo=UTC), "end": datetime(2024, 1, 8, tzinfo=UTC)}
    rule = Harmonize(step="1h", duplicates="last", **edges)
    add_dataset(field(observations(), harmonize=rule))
    whole = materialize("field", "raw", lake, settings), materialize("field", "harmonized", lake, settings)
    assert whole[1].stage is not None
    monkeypatch.setattr(large, "LARGE", 1000)
    add_dataset(field(in_chunks(observations(), 10), harmonize=rule))
    other = Lake(f"{lake.uri}-other")
    materialize("field", "raw", other, settings)
    found = materialize("field", "harmonized", other, settings)
    assert found.stage is not None
    assert found.stage.facts["report"] == whole[1].stage.facts["report"]
    assert found.stage.data_version == whole[1].stage.data_version


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("suffix", ["nc4", "nc", "zarr"])
def test_a_large_file_is_read_in_chunks(
    suffix: str, dtype: str, tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = foreign.field(steps=50)
    data["t2m"] = data["t2m"].astype(dtype) + (1e-9 if dtype == "float64" else 0)
    foreign.stored(data, tmp_path / f"a.{suffix}")
    tables = {"observations": Gridded(format="gridded", file=f"a.{suffix}", columns={"temp": "t2m"})}
    files = {f"a.{suffix}": tmp_path / f"a.{suffix}"}
    wanted = read_tables(tables, files, Scene(("temp",), "UTC", "1h"))["observations"]
    assert isinstance(wanted, pl.DataFrame)
    monkeypatch.setattr(large, "LARGE", 100)
    monkeypatch.setattr(large, "CELLS_OF_A_PASS", 12 * 7)
    found = read_tables(tables, files, Scene(("temp",), "UTC", "1h"))["observations"]
    assert isinstance(found, Chunks)
    assert found.times.equals(wanted["time"])
    # What is asked for twice is there twice.
    assert [large.whole(found).equals(wanted, null_equal=True) for _ in range(2)] == [True, True]
    del found
    gc.collect()
    assert not list((settings.cache / "scratch").iterdir())
