"""TaxiBJ, BikeNYC and UniST's files, read through the public function."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fixtures import foreign

from stfm_pipeline.datasets.formats import read_tables
from stfm_pipeline.datasets.formats.base import Scene
from stfm_pipeline.datasets.spec import DatasetSpec, RawTables
from stfm_pipeline.embed.run import embed
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.tables import dense_values, grid_of


def spec(step: str, channels: tuple[str, ...], form: dict[str, Any]) -> DatasetSpec:
    return DatasetSpec.model_validate(
        {
            "name": "x",
            "title": "x",
            "kind": "grid",
            "licence": "none",
            "zone": "Asia/Shanghai",
            "channels": [{"name": c, "unit": "people"} for c in channels],
            "harmonize": {"step": step},
            "task": {"look_back": 6, "horizon": 2},
            "embed": {"patch_size": 6},
            "tables": {"observations": form},
        }
    )


def read(folder: Path, step: str = "30m", channels: tuple[str, ...] = ("inflow", "outflow"), **form: Any) -> RawTables:
    found = spec(step, channels, form)
    return read_tables(found.tables, {p.name: p for p in folder.iterdir()}, found.scene())


def taxi(folder: Path, **form: Any) -> RawTables:
    return read(folder, **{"format": "st_resnet", "file": "BJ13.h5", **form})


def test_slots_are_counted_from_one_and_those_left_out_have_no_row(tmp_path: Path) -> None:
    data = foreign.st_resnet(tmp_path / "BJ13.h5", "2013-07-01", 100, missing=(47, 48))
    raw = taxi(tmp_path)
    times = raw["observations"]["time"].to_list()
    first = datetime(2013, 6, 30, 16, tzinfo=UTC)
    assert times[:2] == [first, first + timedelta(minutes=30)], "midnight in Beijing"
    assert times[46:48] == [first + timedelta(minutes=30) * i for i in (46, 49)]
    assert np.array_equal(dense_values(raw["observations"], "outflow"), data[:, 1].reshape(98, 12))
    assert grid_of(raw["entities"]) == (4, 3)


def test_a_city_without_places_goes_down_the_road_and_its_patches_are_rectangles(tmp_path: Path) -> None:
    foreign.st_resnet(tmp_path / "BJ13.h5", "2013-07-01", 100, missing=(47, 48))
    found = spec("30m", ("inflow", "outflow"), {"format": "st_resnet", "file": "BJ13.h5"})
    signal = harmonize(found, taxi(tmp_path))
    assert [c.name for c in signal.checks if not c.passed] == []
    assert signal.facts["observed_share"]["inflow"] == 0.98
    places = embed(found, signal.tables).tables["spatial"]
    patch = places["patch"].to_numpy().reshape(4, 3)
    assert len(np.unique(patch)) == 2
    for p in np.unique(patch):
        rows, columns = np.nonzero(patch == p)
        assert (np.ptp(rows) + 1) * (np.ptp(columns) + 1) == 6
    assert places["y"][0] > places["y"][11], "the first row is on top"


def test_files_of_several_years_follow_one_another(tmp_path: Path) -> None:
    first = foreign.st_resnet(tmp_path / "BJ13.h5", "2013-07-01", 48)
    second = foreign.st_resnet(tmp_path / "BJ14.h5", "2014-03-01", 60)
    raw = taxi(tmp_path, file=["BJ13.h5", "BJ14.h5"], columns={"outflow": 1, "inflow": 0})
    assert raw["observations"]["time"][48] == datetime(2014, 2, 28, 16, tzinfo=UTC)
    inflow = dense_values(raw["observations"], "inflow")
    assert np.array_equal(inflow, np.concatenate([first, second])[:, 0].reshape(108, 12))


def test_hourly_slots_of_bikes(tmp_path: Path) -> None:
    foreign.st_resnet(tmp_path / "BJ13.h5", "2014-04-01", 50, per_day=24)
    times = taxi(tmp_path, step="1h")["observations"]["time"]
    assert times[49] - times[0] == timedelta(hours=49)


def test_slots_that_no_day_has_are_named(tmp_path: Path) -> None:
    foreign.st_resnet(tmp_path / "BJ13.h5", "2013-07-01", 48)
    with pytest.raises(ContractError, match=r"steps of 1h[\s\S]*2013070124[\s\S]*offenders: 2013070125"):
        taxi(tmp_path, step="1h")


def test_grids_of_two_sizes_and_other_arrays_are_refused(tmp_path: Path) -> None:
    foreign.st_resnet(tmp_path / "BJ13.h5", "2013-07-01", 48)
    with h5py.File(tmp_path / "BJ14.h5", "w") as file:
        file["data"], file["date"] = np.zeros((1, 2, 5, 3)), np.array([b"2014030101"])
    with pytest.raises(ContractError, match=r"grids of its files differ[\s\S]*BJ14.h5: \(5, 3\)"):
        taxi(tmp_path, file=["BJ13.h5", "BJ14.h5"])
    with pytest.raises(ContractError, match=r"arrays of another form[\s\S]*up to index 2"):
        taxi(tmp_path, columns={"inflow": 0, "outflow": 2})
    with h5py.File(tmp_path / "BJ15.h5", "w") as file:
        file["data"] = np.zeros((1, 2, 5, 3))
    with pytest.raises(ContractError, match=r"BJ15.h5 lacks datasets[\s\S]*offenders: date"):
        taxi(tmp_path, file="BJ15.h5")


def windows(folder: Path, **form: Any) -> RawTables:
    return read(folder, channels=("inflow",), **{"format": "unist", "file": "TaxiBJ_short.json", **form})


def civil(i: int) -> str:
    return str(datetime(2013, 7, 1) + i * timedelta(minutes=30))


def test_overlapping_windows_are_put_together_to_the_series_they_were_cut_from(tmp_path: Path) -> None:
    series = foreign.unist(tmp_path / "TaxiBJ_short.json", civil)
    raw = windows(tmp_path)
    first = datetime(2013, 6, 30, 16, tzinfo=UTC)
    assert raw["observations"]["time"].to_list() == [first + i * timedelta(minutes=30) for i in range(40)]
    assert np.array_equal(dense_values(raw["observations"], "inflow"), series.reshape(40, 12))
    assert grid_of(raw["entities"]) == (4, 3)


def test_counted_steps_need_to_know_from_when(tmp_path: Path) -> None:
    series = foreign.unist(tmp_path / "TaxiBJ_short.json", lambda i: i + 7)
    with pytest.raises(ContractError, match=r"counts its steps from a time that it does not name[\s\S]*add `start:`"):
        windows(tmp_path)
    raw = windows(tmp_path, start=datetime(2013, 7, 1))
    assert raw["observations"]["time"][0] == datetime(2013, 6, 30, 19, 30, tzinfo=UTC)
    assert np.array_equal(dense_values(raw["observations"], "inflow"), series.reshape(40, 12))


def test_weekdays_and_slots_are_no_dates(tmp_path: Path) -> None:
    foreign.unist(tmp_path / "TaxiBJ_short.json", lambda i: [i // 48 % 7, i % 48])
    with pytest.raises(ContractError, match="by weekday and slot, and nothing says of which week"):
        windows(tmp_path)


def test_windows_that_disagree_are_no_series(tmp_path: Path) -> None:
    path = tmp_path / "TaxiBJ_short.json"
    foreign.unist(path, civil)
    data = json.loads(path.read_text())
    data["X_test"][0][0][0][0][0] += 1
    path.write_text(json.dumps(data))
    with pytest.raises(ContractError, match=r"overlap disagree[\s\S]*2013-07-01T02:00"):
        windows(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"X_val": None}, "'X_val' of TaxiBJ_short.json holds no windows"),
        ({"X_val": [[[1.0, 2.0]]]}, "'X_val' of TaxiBJ_short.json holds no windows"),
        ({"timestamps": {}}, r"every step of every window of 'X_train'[\s\S]*192[\s\S]*0"),
    ],
)
def test_other_json_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "TaxiBJ_short.json"
    foreign.unist(path, civil)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ContractError, match=said):
        windows(tmp_path)
    path.write_text("[1, 2]")
    with pytest.raises(ContractError, match="is not as UniST's files are"):
        windows(tmp_path)


def test_such_files_bring_no_other_tables(tmp_path: Path) -> None:
    foreign.st_resnet(tmp_path / "BJ13.h5", "2013-07-01", 48)
    form = spec("30m", ("inflow", "outflow"), {"format": "st_resnet", "file": "BJ13.h5"}).tables["observations"]
    with pytest.raises(ContractError, match="edges: a file of fields brings observations"):
        read_tables({"edges": form}, {"BJ13.h5": tmp_path / "BJ13.h5"}, Scene(("inflow", "outflow"), "UTC", "30m"))
