"""Every form that users bring, read through the public function on small files of exactly that form."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
from fixtures import foreign
from pydantic import ValidationError

from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.datasets.formats import read_tables
from stfm_pipeline.datasets.formats.base import Scene
from stfm_pipeline.datasets.spec import DatasetSpec, RawTables
from stfm_pipeline.errors import ContractError, SourceError, StfmError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.settings import Settings
from stfm_pipeline.sources import fetch
from stfm_pipeline.tables import Signal, long_observations

Read = Callable[..., pl.DataFrame]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads one table described as in YAML; files are those of the test's folder."""

    def go(table: str, zone: str = "UTC", entities: list[str] | None = None, **form: Any) -> pl.DataFrame:
        channels = ({"name": "speed", "unit": "mph"},)
        spec = DatasetSpec.model_validate(
            {
                "name": "x",
                "title": "x",
                "kind": "graph",
                "licence": "none",
                "zone": zone,
                "channels": channels,
                "harmonize": {"step": "5m"},
                "task": {"look_back": 3, "horizon": 2},
                "tables": {"observations": {"format": "canonical", "file": "none"}, table: form},
            }
        )
        files = {p.name: p for p in tmp_path.iterdir()}
        scene = Scene(("speed",), zone, "5m", list(entities or []))
        found = read_tables({table: spec.tables[table]}, files, scene)[table]
        return long_observations(found, scene.entities) if table == "observations" else found

    return go


def raw_of(name: str, folder: Path) -> tuple[DatasetSpec, RawTables]:
    dataset, settings = get_dataset(name), Settings(data=folder)
    files = {k: v for s in dataset.spec.sources for k, v in fetch(s, settings).items()}
    return dataset.spec, dataset.read(files)


def small(spec: DatasetSpec, steps: int, entities: int) -> DatasetSpec:
    return spec.model_copy(update={"facts": spec.facts.model_copy(update={"steps": steps, "entities": entities})})


@pytest.mark.parametrize("form", ["h5", "csv"])
def test_metr_la_in_both_forms(form: str, tmp_path: Path) -> None:
    foreign.metr_la(tmp_path, steps=900, sensors=12, form=form)
    spec, raw = raw_of("metr-la", tmp_path)
    assert raw["entities"].columns == ["entity", "lon", "lat"]
    assert raw["entities"]["entity"][0] == "773800"
    result = harmonize(small(spec, 900, 12), raw)
    assert [c.name for c in result.checks if not c.passed] == []
    signal = Signal.from_frame(result.tables["signal"], raw["entities"]["entity"].to_list(), ["speed_mph"])
    truth = foreign.traffic(900, 12)
    assert np.array_equal(signal.observed[..., 0], truth != 0), "0 means missing"
    assert np.allclose(signal.values[..., 0], truth, atol=1e-4)
    assert signal.times[0] == np.datetime64("2012-03-01T08:00"), "its clock is Pacific standard time all year"
    assert result.facts["masked"]["speed_mph"]["missing_code"] == int((truth == 0).sum())


def test_metr_la_runs_through_the_change_to_summer_time_without_a_gap(tmp_path: Path) -> None:
    foreign.metr_la(tmp_path, steps=288 * 13, sensors=3)
    _, raw = raw_of("metr-la", tmp_path)
    times = raw["observations"]["time"].unique().sort()
    assert times.null_count() == 0
    assert set(times.diff().drop_nulls().to_list()) == {timedelta(minutes=5)}


def test_its_windows_are_cut_as_the_published_code_cuts_them(tmp_path: Path) -> None:
    foreign.metr_la(tmp_path, steps=1023, sensors=2)
    spec, raw = raw_of("metr-la", tmp_path)
    parts = harmonize(small(spec, 1023, 2), raw).facts["parts"]
    windows = 1023 - 23
    first = parts["test"][0]
    assert parts["test"][1] - first - 12 + 1 == windows - round(0.7 * windows) - round(0.1 * windows)
    assert parts["train"][1] == round(0.7 * windows) + 12


def test_edges_come_from_distances_by_a_gaussian_kernel(tmp_path: Path) -> None:
    foreign.metr_la(tmp_path, steps=100, sensors=6)
    _, raw = raw_of("metr-la", tmp_path)
    listed = np.array([0.0] * 6 + [800, 1600] * 6)
    weights = np.exp(-((np.array([800, 1600]) / listed.std()) ** 2))
    found = raw["edges"].filter(source="773800").sort("weight", descending=True)
    assert found["target"].to_list() == ["773807", "773814"][: (weights >= 0.1).sum()]
    assert np.allclose(found["weight"], weights[weights >= 0.1])
    assert not (raw["edges"]["source"] == raw["edges"]["target"]).any()


@pytest.mark.parametrize("suffix", ["npz", "npy", "csv"])
def test_an_adjacency_matrix_wins_over_distances(suffix: str, tmp_path: Path) -> None:
    foreign.metr_la(tmp_path, steps=100, sensors=4)
    matrix = np.eye(4)
    matrix[0, 2], matrix[3, 1] = 0.5, 0.25
    if suffix == "npz":
        ids = np.array([str(773800 + 7 * i) for i in (1, 0, 2, 3)])
        np.savez(tmp_path / "adj_mx.npz", ids=ids, adjacency=matrix)
        expected = [("773807", "773814", 0.5), ("773821", "773800", 0.25)]
    else:
        if suffix == "npy":
            np.save(tmp_path / "adj_mx.npy", matrix)
        else:
            np.savetxt(tmp_path / "adj_mx.csv", matrix, delimiter=",", fmt="%g")
        expected = [("773800", "773814", 0.5), ("773821", "773807", 0.25)]
    assert raw_of("metr-la", tmp_path)[1]["edges"].rows() == expected


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploded").touch, ())


def test_a_pickled_adjacency_is_refused_unopened_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign.metr_la(tmp_path, steps=100, sensors=4)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adj_mx.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(SourceError, match=r"is a pickle[\s\S]*np\.savez\('adj_mx\.npz'"):
        raw_of("metr-la", tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("save", [np.save, lambda p, a: np.savez(p, data=a)])
def test_an_array_file_that_hides_a_pickle_is_refused(save: Any, tmp_path: Path, read: Read) -> None:
    path = tmp_path / ("a.npy" if save is np.save else "a.npz")
    save(path, np.array([Bomb()], object))
    with pytest.raises(SourceError, match="not an array file that can be read safely"):
        read("observations", format="tensor", file=path.name, start="2020-01-01")


def test_pems_bay_with_integer_names_and_places_without_header(tmp_path: Path) -> None:
    foreign.pems_bay(tmp_path)
    spec, raw = raw_of("pems-bay", tmp_path)
    assert raw["entities"].row(0) == ("400001", -118.0, 34.0)
    assert raw["observations"]["time"][0] == datetime(2017, 1, 1, 8, tzinfo=UTC)
    assert harmonize(small(spec, 900, 10), raw).passed


def test_the_hour_that_pems_bay_leaves_out_is_the_one_its_clocks_skipped(tmp_path: Path, read: Read) -> None:
    foreign.pems_bay(tmp_path, steps=288 * 72, sensors=2)
    times = raw_of("pems-bay", tmp_path)[1]["observations"]["time"].unique().sort()
    assert set(times.diff().drop_nulls().to_list()) == {timedelta(minutes=5)}
    foreign.wide_csv(tmp_path / "a.csv", ["x"], "2017-03-12", 1800, np.ones((9, 1)))
    with pytest.raises(ContractError, match=r"never were in America/Los_Angeles[\s\S]*02:00:00[\s\S]*Etc/GMT\+8"):
        read("observations", zone="America/Los_Angeles", format="wide", file="a.csv", time=0)


@pytest.mark.parametrize(("number", "first"), [("03", "313344"), ("04", "0"), ("07", "0"), ("08", "0")])
def test_pems0x_arrays(number: str, first: str, tmp_path: Path) -> None:
    foreign.pems0x(tmp_path, number)
    spec, raw = raw_of(f"pems{number}", tmp_path)
    assert raw["entities"]["entity"][0] == first
    assert len(raw["edges"]) > 0
    result = harmonize(small(spec, 900, 9), raw)
    assert result.passed
    assert result.facts["channels"] == ["flow"]
    truth = foreign.traffic(900, 9)
    rows = long_observations(raw["observations"], raw["entities"]["entity"].to_list())
    value = rows.filter(entity=first)["flow"].to_numpy()
    assert np.allclose(value, truth[:, 0] * 4)


def test_pems03_without_its_file_of_names_is_named_by_position(tmp_path: Path) -> None:
    foreign.pems0x(tmp_path, "03")
    (tmp_path / "PEMS03.txt").unlink()
    (tmp_path / "PEMS03.csv").unlink()
    _, raw = raw_of("pems03", tmp_path)
    assert raw["entities"]["entity"].to_list() == [str(i) for i in range(9)]


def test_pemsd7_m_has_working_days_on_a_clock_with_weekends(tmp_path: Path) -> None:
    foreign.pemsd7_m(tmp_path)
    spec, raw = raw_of("pemsd7-m", tmp_path)
    result = harmonize(small(spec, 17_280, 8), raw)
    assert [c.name for c in result.checks if not c.passed] == []
    days = raw["observations"]["time"].dt.convert_time_zone("America/Los_Angeles").dt
    assert set(days.weekday().unique()) == {1, 2, 3, 4, 5}
    assert (days.date().min(), days.date().max()) == (datetime(2012, 5, 1).date(), datetime(2012, 6, 29).date())
    near = np.exp(-((1500 / 1e4) ** 2) / 0.1)
    assert np.isclose(raw["edges"].filter(source="0", target="1")["weight"][0], near)
    assert raw["edges"]["weight"].min() >= 0.5  # type: ignore[operator]


def test_largest_with_a_sentence_for_every_detector(tmp_path: Path) -> None:
    foreign.largest(tmp_path)
    spec, raw = raw_of("largest-sd", tmp_path)
    assert harmonize(small(spec, 600, 8), raw).passed
    assert raw["entities"]["text"][0] == "Detector 1100310 on I5-N N in San Diego county, 4 lanes."
    assert len(raw["edges"]) == 7


def test_a_file_that_is_not_there_is_asked_for_by_all_its_names(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"metr-la\.h5, nor any called METR-LA\.h5, metr-la\.csv[\s\S]*STFM_DATA"):
        raw_of("metr-la", tmp_path)


def test_libcity_atomic_files(tmp_path: Path, read: Read) -> None:
    foreign.libcity(tmp_path)
    rows = read("observations", format="libcity", file="LA.dyna", columns={"speed": "traffic_speed"})
    assert rows["time"][0] == datetime(2012, 3, 1, tzinfo=UTC)
    assert rows["entity"].unique().sort().to_list() == ["700", "701", "702"]
    civil = read(
        "observations",
        zone="America/Los_Angeles",
        format="libcity",
        file="LA.dyna",
        columns={"speed": "traffic_speed"},
        offsets="ignore",
    )
    assert civil["time"][0] == datetime(2012, 3, 1, 8, tzinfo=UTC)
    assert read("entities", format="libcity", file="LA.geo").row(1) == ("701", -118.1, 34.1)
    assert read("edges", format="libcity", file="LA.rel").rows() == [("700", "701", 0.5), ("701", "702", 0.25)]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "csv.gz"])
def test_nixtla_long_frames(suffix: str, tmp_path: Path, read: Read) -> None:
    frame = pl.DataFrame({"unique_id": ["007", "007", "8"], "ds": ["2024-01-01 00:00:00"] * 3, "y": [1, 2, 3]})
    path = tmp_path / f"y.{suffix}"
    if suffix == "parquet":
        frame.with_columns(pl.col("ds").str.to_datetime()).write_parquet(path)
    else:
        import gzip

        text = frame.write_csv().encode()
        path.write_bytes(gzip.compress(text) if suffix == "csv.gz" else text)
    rows = read("observations", format="nixtla", file=path.name)
    assert rows.columns == ["entity", "time", "speed"]
    assert rows["entity"].to_list() == ["007", "007", "8"], "a name that looks like a number stays a name"
    assert rows["time"].dtype == pl.Datetime("us", "UTC")


def test_a_long_table_with_the_time_in_four_columns_and_one_entity(tmp_path: Path, read: Read) -> None:
    (tmp_path / "a.csv").write_text("year;month;day;hour;pm\n2010;1;1;0;NA\n2010;1;1;1;129\n")
    rows = read(
        "observations",
        zone="Asia/Shanghai",
        format="long",
        file="a.csv",
        separator=";",
        one_entity="x",
        time=["year", "month", "day", "hour"],
        columns={"speed": "pm"},
    )
    assert rows.rows() == [
        ("x", datetime(2009, 12, 31, 16, tzinfo=UTC), None),
        ("x", datetime(2009, 12, 31, 17, tzinfo=UTC), 129.0),
    ]


def test_times_with_changing_offsets_are_read_as_the_moments_they_are(tmp_path: Path, read: Read) -> None:
    (tmp_path / "a.csv").write_text("entity,time,speed\na,2014-03-30T01:50:00+01:00,1\na,2014-03-30T03:00:00+02:00,2\n")
    rows = read("observations", zone="Europe/Paris", format="long", file="a.csv")
    assert [t.hour * 60 + t.minute for t in rows["time"]] == [50, 60]


def test_canonical_tables_come_back_as_they_were(tmp_path: Path, read: Read) -> None:
    frame = pl.DataFrame(
        {"entity": ["01"], "time": [datetime(2024, 5, 1, tzinfo=UTC)], "speed": [0.1 + 0.2]},
        schema_overrides={"time": pl.Datetime("us", "UTC")},
    )
    frame.write_parquet(tmp_path / "a.parquet")
    frame.with_columns(pl.col("time").dt.strftime("%Y-%m-%dT%H:%M:%SZ")).write_csv(tmp_path / "a.csv")
    for name in ("a.parquet", "a.csv"):
        assert read("observations", format="canonical", file=name).equals(frame), name


def test_several_files_of_a_channel_follow_one_another_and_channels_are_joined(tmp_path: Path) -> None:
    for name, start, base in (("v1", "2024-01-01", 0), ("v2", "2024-01-02", 100), ("q1", "2024-01-01", 1000)):
        values = np.arange(6.0).reshape(3, 2) + base
        foreign.wide_csv(tmp_path / f"{name}.csv", ["a", "b"], start, 3600, values)
    form = {"format": "wide", "files": {"v": ["v1.csv", "v2.csv"], "q": "q1.csv"}, "time": 0}
    spec = get_dataset("nyc-airports").spec.model_dump() | {"tables": {"observations": form}, "joins": (), "poi": ()}
    tables = DatasetSpec.model_validate(spec | {"name": "x"}).tables
    raw = read_tables(tables, {p.name: p for p in tmp_path.iterdir()}, Scene(("v", "q"), "UTC", "1h"))
    rows = long_observations(raw["observations"], raw["entities"]["entity"].to_list())
    assert len(rows) == 12
    assert rows.filter(entity="b", time=datetime(2024, 1, 1, 1, tzinfo=UTC)).row(0)[2:] == (3.0, 1003.0)
    assert rows["q"].null_count() == 6


BROKEN: list[tuple[str, dict[str, Any], str, str]] = [
    ("a,b\n1,2\n", {"format": "wide"}, "ContractError", r"says nowhere when its rows were measured[\s\S]*`start:`"),
    (
        "t,a\n2024,x\n",
        {"format": "wide", "time": "t"},
        "ContractError",
        r"something else than numbers[\s\S]*a: 'x'",
    ),
    ("t,a\nnever,1\n", {"format": "wide", "time": "t"}, "ContractError", r"in no form that can be recognised"),
    (
        "t,a\n2024-01-01,1\n2024-01-xx,2\n",
        {"format": "wide", "time": "t"},
        "ContractError",
        r"1 times of x\.csv cannot be read[\s\S]*'2024-01-xx'",
    ),
    (
        "id,time,spead\na,2024-01-01,1\n",
        {"format": "long", "entity": "id"},
        "ContractError",
        r"speed \(nearest: spead\)",
    ),
    ("entity,time,speed\na,2024-01-01,fast\n", {"format": "long"}, "ContractError", r"speed: 'fast'"),
    ("entity,time,speed\na,12,1\n", {"format": "long"}, "ContractError", r"holds no times"),
    ("", {"format": "long"}, "SourceError", r"cannot be read as a table"),
    ("entity,time,speed\na,2024-01-01\nb,1,2,3,4\n", {"format": "long"}, "SourceError", r"cannot be read as a table"),
    (
        "time,speed\n2024-01-01,1\n",
        {"format": "long", "entity": None},
        "ContractError",
        r"nothing says whose rows these are",
    ),
    (
        "t,a,a\n2024-01-01,1,2\n",
        {"format": "wide", "time": "t"},
        "SourceError",
        r"several columns of one name[\s\S]*a\n",
    ),
    ("t,a\n2024-01-01,1\n", {"format": "wide", "time": 5}, "ContractError", r"has no column at position 5"),
    (
        "entity,time,speed\na,2013011500,1\n",
        {"format": "long", "time_format": "%Y%m%d%H"},
        "ContractError",
        r"in no form[\s\S]*specify both hour and minute",
    ),
    ("t\n2024-01-01\n", {"format": "wide", "time": "t"}, "ContractError", r"has no column of values"),
    ("a,b\n1,2\n3,-\n", {"format": "wide", "start": "2024-01-01"}, "ContractError", r"b: '-'"),
    (
        "a\n1\n",
        {"format": "wide", "start": "2024-03-31T02:30:00", "zone": "Europe/Berlin"},
        "ContractError",
        r"the first row's time never was in Europe/Berlin",
    ),
    ("a\n1\n2\n", {"format": "wide", "start": "9999-12-31T23:55:00"}, "ContractError", r"runs beyond all dates"),
    *(
        (
            f"entity,time,speed\na,{a},1\na,{b},2\n",
            {"format": "long"},
            "ContractError",
            r"with the day first or with the month first[\s\S]*%m/%d/%Y",
        )
        for a, b in (("01/02/2013 00:00", "01/02/2013 01:00"), ("01-02-2013", "01-03-2013"), ("1.2.2013", "1.3.2013"))
    ),
    (
        "entity,time,speed\na,01/02/2013 00:00,1\na,01/13/2013 00:00,2\n",
        {"format": "long"},
        "ContractError",
        r"with the day first or with the month first",
    ),
    *(
        (
            f"entity,y,m,d,h,speed\na,2013,{month},{day},{hour},1\n",
            {"format": "long", "time": ["y", "m", "d", "h"]},
            "ContractError",
            message,
        )
        for month, day, hour, message in (
            ("1", "1", "5.5", r"are not whole[\s\S]*5\.5"),
            ("1", "1", "24", "are no parts of a time"),
            ("2", "30", "0", "are no parts of a time"),
            ("Jan", "1", "0", "are no parts of a time"),
        )
    ),
]


@pytest.mark.parametrize(("text", "form", "kind", "message"), BROKEN)
def test_a_broken_file_gets_a_clear_error(
    text: str, form: dict[str, Any], kind: str, message: str, tmp_path: Path, read: Read
) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises((ContractError, SourceError), match=message) as caught:
        read("observations", file="x.csv", **form)
    assert type(caught.value).__name__ == kind


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("15-01-2013", {}),
        ("15/01/2013", {}),
        ("15.01.2013 00:00", {}),
        ("15-01-2013", {"offsets": "ignore"}),
        ("2013-01-15", {}),
        ("2013-01-15T00:00:00Z", {"offsets": "ignore"}),
        ("2013-01-15 00:00:00+02:00", {"offsets": "ignore"}),
        ("2013-01-15 00:00 -0500", {"offsets": "ignore"}),
        ("2013-01-15T08:00:00Z", {}),
        ("2013-01-15T00:00:00-08:00", {}),
        ("201301150000", {"time_format": "%Y%m%d%H%M"}),
        ("01/15/2013", {"time_format": "%m/%d/%Y"}),
    ],
)
def test_a_time_is_civil_unless_an_offset_follows_it(
    text: str, form: dict[str, Any], tmp_path: Path, read: Read
) -> None:
    (tmp_path / "x.csv").write_text(f"entity,time,speed\na,{text},1\n")
    rows = read("observations", zone="America/Los_Angeles", file="x.csv", format="long", **form)
    assert rows["time"].to_list() == [datetime(2013, 1, 15, 8, tzinfo=UTC)]


def test_a_first_row_dated_with_an_offset_starts_there_with_weekends_and_without(tmp_path: Path, read: Read) -> None:
    (tmp_path / "x.csv").write_text("a\n1\n2\n")
    for weekends in (True, False):
        for start in ("2013-01-07T00:00:00Z", "2013-01-07T08:00:00+08:00", "2013-01-07T01:00:00"):
            rows = read(
                "observations", zone="Europe/Berlin", file="x.csv", format="wide", start=start, weekends=weekends
            )
            assert rows["time"][0] == datetime(2013, 1, 7, tzinfo=UTC), (start, weekends)


@pytest.mark.parametrize(
    "form",
    [
        {"format": "wide", "file": ""},
        {"format": "long", "file": []},
        {"format": "long", "file": "x.csv", "separator": ";;"},
        {"format": "long", "file": "x.csv", "separator": "\u2192"},
        {"format": "long", "file": "x.csv", "time": ["y", "m"]},
        {"format": "long", "file": "x.csv", "time": []},
        {"format": "wide", "file": "x.csv", "start": 20130101},
        {"format": "tensor", "file": "x.npz", "start": "2013"},
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_file_is_read(form: dict[str, Any], read: Read) -> None:
    with pytest.raises(ValidationError):
        read("observations", **form)


def test_broken_matrices_arrays_and_frames(tmp_path: Path, read: Read) -> None:
    np.savetxt(tmp_path / "m.csv", np.eye(3), delimiter=",")
    with pytest.raises(ContractError, match=r"m\.csv does not fit the entities[\s\S]*2 rows[\s\S]*3 x 3"):
        read("edges", entities=["a", "b"], format="matrix", file="m.csv")
    np.savez(tmp_path / "t.npz", one=np.zeros(3), two=np.zeros(3))
    with pytest.raises(SourceError, match=r"holds no array 'data'[\s\S]*one, two"):
        read("observations", format="tensor", file="t.npz", start="2024-01-01")
    np.savez(tmp_path / "u.npz", data=np.zeros(3))
    with pytest.raises(ContractError, match=r"another form[\s\S]*\(3,\)"):
        read("observations", format="tensor", file="u.npz", start="2024-01-01")
    (tmp_path / "d.csv").write_text("from,to,cost\nx,y,1\n")
    with pytest.raises(ContractError, match=r"names none of the entities[\s\S]*a, b"):
        read("edges", entities=["a", "b"], format="distances", file="d.csv")
    with h5py.File(tmp_path / "h.h5", "w") as file:
        file.create_dataset("x", data=[1])
    with pytest.raises(SourceError, match="holds not exactly one frame"):
        read("observations", format="wide", file="h.h5")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "h.h5").read_bytes()[:200])
    with pytest.raises(SourceError, match="cannot be read as a frame in HDF5"):
        read("observations", format="wide", file="cut.h5")


def test_a_matrix_without_names_goes_by_the_columns_of_a_wide_table(tmp_path: Path) -> None:
    foreign.wide_csv(tmp_path / "v.csv", ["b", "a"], "2024-01-01", 3600, np.ones((3, 2)))
    (tmp_path / "m.csv").write_text("0,1\n0,0\n")
    spec = get_dataset("nyc-airports").spec.model_dump() | {"name": "x", "joins": (), "poi": ()}
    spec["tables"] = {
        "observations": {"format": "wide", "file": "v.csv", "time": 0},
        "entities": {"format": "inline", "rows": [{"entity": "a"}, {"entity": "b"}]},
        "edges": {"format": "matrix", "file": "m.csv"},
    }
    tables = DatasetSpec.model_validate(spec).tables
    raw = read_tables(tables, {p.name: p for p in tmp_path.iterdir()}, Scene(("v",), "UTC", "1h"))
    assert raw["edges"].rows() == [("b", "a", 1.0)]


def test_stations_at_one_place_are_0_apart_and_blank_or_inf_is_no_edge(tmp_path: Path, read: Read) -> None:
    (tmp_path / "m.csv").write_text("0,0,2\n0,0,\ninf,1,0\n")
    found = read("edges", entities=["a", "b", "c"], format="matrix", file="m.csv", holds="distances", sigma=2)
    assert [(s, t, round(w, 3)) for s, t, w in found.rows()] == [
        ("a", "b", 1.0),
        ("a", "c", 0.368),
        ("b", "a", 1.0),
        ("c", "b", 0.779),
    ]


def test_rows_of_one_edge_count_once_and_self_loops_not_at_all(tmp_path: Path, read: Read) -> None:
    (tmp_path / "e.csv").write_text("source,target,w\na,b,2\na,b,2\nb,b,1\nb,b,3\nb,a,1\n")
    assert read("edges", format="edges", file="e.csv", weight="w").rows() == [("a", "b", 2.0), ("b", "a", 1.0)]
    assert read("edges", format="edges", file="e.csv").rows() == [("a", "b", 1.0), ("b", "a", 1.0)]
    (tmp_path / "d.csv").write_text("from,to,cost\na,a,0\na,b,1\na,b,1\nb,a,2\n")
    found = read("edges", entities=["a", "b"], format="distances", file="d.csv", sigma=2)
    assert found.select("source", "target").rows() == [("a", "b"), ("b", "a")]


EDGES: dict[str, tuple[dict[str, Any], str, str]] = {
    "text in a matrix": ({"format": "matrix"}, "0,x,1\n1,0,1\n1,1,0\n", r"else than numbers[\s\S]*column_1: 'x'"),
    "a negative distance in a matrix": (
        {"format": "matrix", "holds": "distances"},
        "0,-1,2\n1,0,2\n2,2,0\n",
        r"distances that are none[\s\S]*a to b: -1",
    ),
    "0 for no edge in a matrix of distances": (
        {"format": "matrix", "holds": "distances"},
        "0,5,0\n0,0,0\n0,7,0\n",
        r"most pairs that they are 0 apart[\s\S]*0 in 4 of 6[\s\S]*blank the pairs",
    ),
    "distances that are all alike": (
        {"format": "matrix", "holds": "distances"},
        "0,5,5\n5,0,5\n5,5,0\n",
        r"none of them makes an edge[\s\S]*from 5 to 5, sigma 0[\s\S]*`sigma`",
    ),
    "one distance": ({"format": "distances"}, "from,to,cost\na,b,5\n", r"none of them makes an edge[\s\S]*`sigma`"),
    "only self loops": ({"format": "distances"}, "from,to,cost\na,a,0\n", "none of them makes an edge"),
    "an endless distance": (
        {"format": "distances"},
        "from,to,cost\na,b,1\nb,c,inf\nc,a,2\n",
        r"distances that are none[\s\S]*offenders: b to c: inf",
    ),
    "a negative distance": (
        {"format": "distances"},
        "from,to,cost\na,b,-1\nb,c,2\n",
        r"distances that are none[\s\S]*a to b: -1",
    ),
    "text for a distance": ({"format": "distances"}, "from,to,cost\na,b,far\n", r"else than numbers[\s\S]*cost: 'far'"),
    "two distances of one pair": (
        {"format": "distances"},
        "from,to,cost\na,b,1\na,b,100\nb,c,2\n",
        r"lists edges twice[\s\S]*a to b: 1\.0, a to b: 100\.0",
    ),
    "text for a weight": (
        {"format": "edges", "weight": "w"},
        "source,target,w\na,b,x\n",
        r"else than numbers[\s\S]*w: 'x'",
    ),
    "two weights of one edge": (
        {"format": "edges", "weight": "w"},
        "source,target,w\na,b,1\na,b,3\n",
        r"lists edges twice[\s\S]*a to b: 1\.0, a to b: 3\.0",
    ),
    "a weight that LibCity's file lacks": (
        {"format": "libcity", "weight": "lenght"},
        "rel_id,type,origin_id,destination_id,length\n0,geo,a,b,2\n",
        r"lacks columns[\s\S]*lenght \(nearest: length\)",
    ),
}


@pytest.mark.parametrize("case", EDGES)
def test_broken_edges_get_a_clear_error(case: str, tmp_path: Path, read: Read) -> None:
    form, text, message = EDGES[case]
    (tmp_path / "e.csv").write_text(text)
    with pytest.raises(ContractError, match=message):
        read("edges", entities=["a", "b", "c"], file="e.csv", **form)


def test_a_list_without_rows_is_no_error(tmp_path: Path, read: Read) -> None:
    (tmp_path / "d.csv").write_text("from,to,cost\n")
    assert len(read("edges", entities=["a"], format="distances", file="d.csv")) == 0


def test_names_that_stand_twice_are_refused(tmp_path: Path, read: Read) -> None:
    np.savez(tmp_path / "m.npz", adjacency=np.ones((3, 3)), ids=np.array(["a", "a", "b"]))
    with pytest.raises(ContractError, match=r"`ids` of m\.npz name entities twice") as caught:
        read("edges", entities=["a", "b"], format="matrix", file="m.npz")
    assert caught.value.offenders == ["a"]
    np.savez(tmp_path / "t.npz", data=np.ones((4, 2, 1)))
    (tmp_path / "ids.txt").write_text("a\na\n")
    with pytest.raises(ContractError, match=r"ids\.txt names entities twice"):
        read("observations", format="tensor", file="t.npz", start="2024-01-01", ids="ids.txt")


@pytest.mark.parametrize("kind", ["cut off", "complex", "text"])
def test_an_array_of_something_else_than_numbers_is_refused(kind: str, tmp_path: Path, read: Read) -> None:
    array = np.ones((4, 2, 1))
    np.savez(tmp_path / "t.npz", data={"complex": array * 1j, "text": array.astype(str)}.get(kind, array))
    if kind == "cut off":
        (tmp_path / "t.npz").write_bytes((tmp_path / "t.npz").read_bytes()[:100])
    with pytest.raises(SourceError, match=r"t\.npz (is not an array file|holds something else than numbers)"):
        read("observations", format="tensor", file="t.npz", start="2024-01-01")


def test_places_that_are_none_are_named(tmp_path: Path, read: Read) -> None:
    (tmp_path / "p.csv").write_text("entity,lon,lat\na,1E,5\nb,2,2\n")
    with pytest.raises(ContractError, match=r"else than numbers[\s\S]*lon: '1E'"):
        read("entities", format="places", file="p.csv")
    (tmp_path / "p.geo").write_text('geo_id,type,coordinates\n1,Point,"[1, 2]"\n2,Point,"[1, 2"\n3,Point,\n')
    with pytest.raises(ContractError, match="are not points") as caught:
        read("entities", format="libcity", file="p.geo")
    assert caught.value.offenders == ["2: [1, 2", "3: None"]


@pytest.mark.parametrize(
    ("table", "text", "missing"),
    [
        ("observations", "ent,time,speed\na,2024-01-01,1\n", r"entity \(nearest: ent\)"),
        ("entities", "name,lon\na,1\n", "entity"),
        ("edges", "source,weight\na,1\n", "target"),
    ],
)
def test_a_canonical_table_without_its_keys_is_refused(
    table: str, text: str, missing: str, tmp_path: Path, read: Read
) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ContractError, match=rf"{table}: x\.csv lacks columns[\s\S]*offenders: {missing}"):
        read(table, format="canonical", file="x.csv")


def test_inline_rows_are_read_as_those_of_a_file_are(read: Read) -> None:
    rows = [
        {"entity": 7, "time": datetime(2024, 7, 1), "speed": 1},
        {"entity": 7, "time": "2024-07-01T01:00:00.000000", "speed": None},
    ]
    found = read("observations", zone="Europe/Zurich", format="inline", rows=rows)
    assert found.rows() == [
        ("7", datetime(2024, 6, 30, 22, tzinfo=UTC), 1.0),
        ("7", datetime(2024, 6, 30, 23, tzinfo=UTC), None),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"entity": "a", "lon": "x"}, {"entity": "b", "lon": 2}], r"else than numbers[\s\S]*lon: 'x'"),
        ([{"lon": 1}], r"lacks columns[\s\S]*offenders: entity"),
        ([], "at least 1 item"),
        ([{"entity": 1.5}], "entity 1.5 is no text: quote it"),
        ([{"entity": True}], "entity True is no text: quote it"),
    ],
)
def test_inline_rows_that_make_no_table_are_refused(rows: list[dict[str, Any]], message: str, read: Read) -> None:
    with pytest.raises((ContractError, ValueError), match=message):
        read("entities", format="inline", rows=rows)


HEALTHY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "long": (
        "observations",
        "entity,time,speed\na,2024-01-01T00:00:00Z,1.5\nb,2024-01-01T00:00:00Z,2\na,2024-01-01T00:05:00Z,\n",
        {"format": "long"},
    ),
    "parts of times": (
        "observations",
        "entity,y,m,d,speed\na,2024,1,1,1.5\nb,2024,1,2,2\n",
        {"format": "long", "time": ["y", "m", "d"]},
    ),
    "wide": ("observations", "t,a,b\n2024-01-01,1,2\n2024-01-02,3,4\n", {"format": "wide", "time": "t"}),
    "places": ("entities", "entity,lon,lat\na,8.5,47.4\nb,7.4,46.9\n", {"format": "places"}),
    "matrix": ("edges", "0,0.5\n0.25,0\n", {"format": "matrix"}),
    "distances": ("edges", "from,to,cost\na,b,10\nb,a,20.5\n", {"format": "distances", "sigma": 20.0}),
    "edges": ("edges", "source,target,w\na,b,1\nb,a,2\n", {"format": "edges", "weight": "w"}),
    "canonical": ("edges", "source,target,weight,time\na,b,1,2024-01-01T00:00:00Z\n", {"format": "canonical"}),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_whatever_is_wrong_with_a_file_is_said_in_words(name: str, tmp_path: Path, read: Read) -> None:
    table, text, form = HEALTHY[name]
    form = form | {"file": "x.csv"} | ({"entity": "entity", "lon": "lon", "lat": "lat"} if name == "places" else {})
    rng = np.random.default_rng(0)
    (tmp_path / "x.csv").write_text(text)
    assert len(read(table, entities=["a", "b"], **form))
    refused = []
    for _ in range(150):
        mutant = bytearray(text.encode())
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(mutant)))
            what = rng.integers(5)
            if what == 0:
                del mutant[at : at + int(rng.integers(1, 12))]
            elif what == 1:
                mutant[at:at] = bytes(
                    rng.choice(list(b'0-9.,;:"\nTZ+eNinf \t\xff\x00'), int(rng.integers(1, 6))).tolist()
                )
            elif what == 2:
                mutant[at] = int(rng.integers(256))
            elif what == 3:
                mutant += mutant[at:]
            else:
                mutant[at:at] = rng.choice([b"1e400", b"-inf", b"9999-12-31", b"0000-00-00", b"\xef\xbb\xbf", b",,,"])
            mutant = mutant or bytearray(b",")
        (tmp_path / "x.csv").write_bytes(bytes(mutant))
        try:
            read(table, entities=["a", "b"], **form)
        except StfmError as error:
            refused.append(str(error))
    assert [r for r in refused if "cannot be read as `format" in r] == []
    assert len(refused) > 20
    assert [r for r in refused if "x.csv" not in r] == []
