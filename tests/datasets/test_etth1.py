from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.tables import Signal, long_observations

ETTH1 = get_dataset("etth1")
COLUMNS = ETTH1.spec.channel_names


def write_csv(path: Path, rows: int) -> np.ndarray:
    """A file laid out as the published one; returns its values."""
    start = datetime(2016, 7, 1)
    cells = np.random.default_rng(0).normal(10, 3, (rows, len(COLUMNS))).round(3)
    lines = [f"{start + timedelta(hours=i)}," + ",".join(map(str, row)) for i, row in enumerate(cells.tolist())]
    path.write_text("\n".join(["date," + ",".join(COLUMNS), *lines]) + "\n")
    return cells


def test_the_file_is_read_in_the_zone_of_the_station(tmp_path: Path) -> None:
    path = tmp_path / "ETTh1.csv"
    cells = write_csv(path, 30)
    raw = ETTH1.read({"ETTh1.csv": path})
    rows = long_observations(raw["observations"], raw["entities"]["entity"].to_list())
    assert rows.columns == ["entity", "time", *COLUMNS]
    assert rows["time"][0] == datetime(2016, 6, 30, 16, tzinfo=UTC)
    assert rows["time"][29] - rows["time"][0] == timedelta(hours=29)
    assert np.array_equal(rows.select(COLUMNS).to_numpy(), cells)
    assert raw["entities"]["entity"].to_list() == ["transformer-1"]


def test_the_parts_are_the_published_12_4_and_4_months_and_values_pass_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "ETTh1.csv"
    cells = write_csv(path, 17_420)
    result = harmonize(ETTH1.spec, ETTH1.read({"ETTh1.csv": path}))
    assert [c.name for c in result.checks if not c.passed] == []
    month = 30 * 24
    assert result.facts["parts"] == {
        "train": [0, 12 * month],
        "val": [12 * month, 16 * month],
        "gate": [12 * month, 16 * month],
        "test": [16 * month, 20 * month],
    }
    signal = Signal.from_frame(result.tables["signal"], ["transformer-1"], COLUMNS)
    assert signal.observed.all()
    assert np.array_equal(signal.values[:, 0], cells.astype(np.float32))
    train = cells[: 12 * month]
    assert np.allclose(result.tables["scaler"]["offset"].to_numpy(), train.mean(axis=0), atol=1e-5)
    assert np.allclose(result.tables["scaler"]["scale"].to_numpy(), train.std(axis=0), atol=1e-5)


def test_a_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ETTh1.csv"
    write_csv(path, 30)
    with pytest.raises(ContractError, match="the split is longer than the data"):
        harmonize(ETTH1.spec, ETTH1.read({"ETTh1.csv": path}))


def test_a_file_one_row_short_fails_its_facts(tmp_path: Path) -> None:
    path = tmp_path / "ETTh1.csv"
    write_csv(path, 17_419)
    result = harmonize(ETTH1.spec, ETTH1.read({"ETTh1.csv": path}))
    assert [(c.name, c.details) for c in result.checks if not c.passed] == [
        ("facts_match", {"steps": "expected 17420, found 17419"})
    ]


def test_a_file_that_lost_a_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ETTh1.csv"
    write_csv(path, 30)
    pl.read_csv(path).drop("MULL").write_csv(path)
    with pytest.raises(ContractError, match=r"lacks columns[\s\S]*MULL \(nearest: [HM]U[FL]L\)"):
        ETTH1.read({"ETTh1.csv": path})
