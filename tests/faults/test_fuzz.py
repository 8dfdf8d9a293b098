"""Damaged files: each is accepted or refused in words and leaves nothing behind. The bench takes 10 000 of them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest

from bench.child import ROOT
from bench.fuzz import Worker, fuzz, table
from bench.fuzz.readers import READERS, case
from bench.fuzz.seeds import scenes
from bench.fuzz.worker import left, road
from stfm_pipeline.datasets.formats import read_here, read_tables
from stfm_pipeline.datasets.formats.base import Scene
from stfm_pipeline.datasets.formats.canonical import Canonical
from stfm_pipeline.datasets.formats.gridded import Gridded
from stfm_pipeline.datasets.formats.hdf import read_pandas_hdf
from stfm_pipeline.datasets.formats.series import Wide
from stfm_pipeline.errors import ContractError, SourceError
from stfm_pipeline.settings import Settings

HASHES = (
    "import hashlib; from bench.fuzz.readers import READERS, case\n"
    "print(hashlib.sha256(b''.join(case(r, n).data for r in READERS for n in range(8))).hexdigest())"
)


@pytest.mark.parametrize("name", ["wide csv", "pandas hdf5, blocks", "tensor npz", "netcdf-4"])
def test_what_is_damaged_was_whole_before(home: Path, name: str) -> None:
    (home / "datasets").mkdir(parents=True)
    for file, data in {**scenes()[name].files, "fuzz.yaml": scenes()[name].yaml.encode()}.items():
        (home / "datasets" / file).write_bytes(data)
    end, why, done = road(home)
    assert (end, why) == ("accepted", "")
    assert left(home, done) == []


def test_a_number_stands_for_one_file_in_every_process() -> None:
    out = subprocess.run([sys.executable, "-c", HASHES], cwd=ROOT, capture_output=True, text=True, check=True)
    mine = hashlib.sha256(b"".join(case(r, n).data for r in READERS for n in range(8))).hexdigest()
    assert out.stdout.strip() == mine


@pytest.mark.slow
def test_300_damaged_files_are_accepted_or_refused_in_words() -> None:
    rows = fuzz(300)
    assert sum(r.files for r in rows) == pytest.approx(300, abs=3)
    assert all(r.good for r in rows), table(rows)
    assert all(r.ends["rejected"] for r in rows)
    assert sum(r.ends["accepted"] for r in rows) > 0


@pytest.mark.slow
def test_a_worker_that_dies_is_a_failure_and_is_replaced() -> None:
    worker = Worker()
    worker.process.kill()
    worker.process.wait()
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    worker.process.stdin = open("/dev/null", "w")  # noqa: SIM115, PTH123
    assert worker.take("csv", 0)["end"] == "crash"
    assert worker.take("csv", 0)["end"] in ("accepted", "rejected")
    worker.end()


def test_a_file_that_says_it_holds_more_than_it_can_is_refused_before_room_is_made(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("df")
        for axis in ("axis0", "block0_items"):
            group[axis] = np.array([b"a", b"b"])
        group["axis1"] = np.arange(3)
        group.create_dataset("block0_values", shape=(10**9, 2), dtype="f8", chunks=(1000, 2))
    with pytest.raises(SourceError, match="more than it can"):
        read_pandas_hdf(tmp_path / "x.h5")


@pytest.mark.parametrize("how", ["link", "storage", "virtual"])
def test_a_frame_that_takes_its_values_from_other_files_is_refused(tmp_path: Path, how: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(48))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["values"] = np.ones((3, 2))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        group = file.create_group("df")
        for axis in ("axis0", "block0_items"):
            group[axis] = np.array([b"a", b"b"])
        group["axis1"] = np.arange(3)
        if how == "link":
            group["block0_values"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "values")
        elif how == "storage":
            group.create_dataset("block0_values", (3, 2), "f8", external=[(str(tmp_path / "secret"), 0, 48)])
        else:
            layout = h5py.VirtualLayout((3, 2), "f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "values", (3, 2))
            group.create_virtual_dataset("block0_values", layout)
    with pytest.raises(SourceError, match="from other files"):
        read_pandas_hdf(tmp_path / "x.h5")


def _read(path: Path, form: Canonical | Wide) -> dict[str, pl.DataFrame]:
    return read_tables({"observations": form}, {path.name: path}, Scene(("speed",), "UTC", "1h"))


@pytest.mark.parametrize("kind", [pl.Duration("us"), pl.Time, pl.Array(pl.Float64, 1)])
def test_a_column_that_no_table_keeps_is_refused_before_anything_is_written(tmp_path: Path, kind: pl.DataType) -> None:
    frame = pl.DataFrame({"entity": ["a"], "time": ["2024-01-01"], "speed": [1.0]})
    frame = frame.with_columns(more=pl.lit(None, kind))
    frame.write_parquet(tmp_path / "x.parquet")
    with pytest.raises(ContractError, match="types that no table here keeps"):
        _read(tmp_path / "x.parquet", Canonical(format="canonical", file="x.parquet"))


def test_times_that_calendars_cannot_count_are_refused(tmp_path: Path) -> None:
    times = pl.Series([0, 2**62]).cast(pl.Datetime("us"))
    pl.DataFrame({"time": times, "a": [1.0, 2.0]}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(ContractError, match="beyond the years 1000 to 9000"):
        _read(tmp_path / "x.parquet", Wide(format="wide", file="x.parquet", time="time"))


GRIDDED = Gridded(format="gridded", file="x.nc", columns={"temp_k": "t2m"})


def _scene() -> Scene:
    return Scene(("temp_k",), "UTC", "1h", units={"temp_k": "K"})


def test_a_fragile_file_is_read_in_a_process_of_its_own_and_comes_out_the_same(tmp_path: Path) -> None:
    (tmp_path / "x.nc").write_bytes(scenes()["netcdf-4"].files["x.nc"])
    here, apart, files = _scene(), _scene(), {"x.nc": tmp_path / "x.nc"}
    one = read_here("observations", GRIDDED, files, here)
    assert GRIDDED.fragile(files)
    other = read_tables({"observations": GRIDDED}, files, apart)
    assert one.equals(other["observations"])
    assert one.schema == other["observations"].schema
    assert here.cells is not None
    assert here.cells.equals(other["entities"])
    assert here.entities == apart.entities
    with pytest.raises(ContractError, match="variables") as found:
        read_tables({"observations": GRIDDED.model_copy(update={"columns": {"temp_k": "t3m"}})}, files, _scene())
    assert "expected: t3m" in str(found.value)


@pytest.mark.parametrize(("said", "found"), [("kill -SEGV $$", "SIGSEGV"), ("echo gone >&2; exit 3", "code 3: gone")])
def test_a_reader_that_breaks_takes_nobody_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, found: str
) -> None:
    (tmp_path / "x.nc").write_bytes(scenes()["netcdf-4"].files["x.nc"])
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{said}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(SourceError, match="broke on it") as error:
        read_tables({"observations": GRIDDED}, {"x.nc": tmp_path / "x.nc"}, _scene())
    assert found in str(error.value)
    assert not [p for p in Settings().cache.rglob("*") if p.is_file()]
