"""Long rows, which become dense while they are read where that loses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stfm_pipeline.datasets.formats import read_tables, series
from stfm_pipeline.datasets.formats.base import Scene
from stfm_pipeline.datasets.spec import DatasetSpec, RawTables
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.lake import Lake
from stfm_pipeline.tables import is_dense, long_observations

START = datetime(2024, 1, 1)
FORM = {"format": "long", "file": "rows.csv", "columns": {"v": "value", "w": "other"}}
SCHEMA = {"entity": pl.String, "time": pl.Datetime("us", "UTC"), "v": pl.Float64, "w": pl.Float64}


def spec_of(form: dict[str, Any], zone: str = "UTC", step: str = "5m", duplicates: str = "error") -> DatasetSpec:
    return DatasetSpec.model_validate(
        {
            "name": "x",
            "title": "x",
            "kind": "graph",
            "licence": "none",
            "zone": zone,
            "channels": ({"name": "v", "unit": "1", "missing": (-1.0,), "maximum": 90}, {"name": "w", "unit": "1"}),
            "harmonize": {"step": step, "duplicates": duplicates},
            "task": {"look_back": 2, "horizon": 1},
            "tables": {"observations": form},
        }
    )


def read(spec: DatasetSpec, folder: Path, places: Sequence[str] = ()) -> RawTables:
    tables: dict[str, Any] = dict(spec.tables)
    if places:
        rows = [{"entity": p, "lon": 0.0, "lat": 0.0} for p in places]
        inline = spec.model_dump() | {
            "tables": {**spec.model_dump()["tables"], "entities": {"format": "inline", "rows": rows}}
        }
        tables = dict(DatasetSpec.model_validate(inline).tables)
    files = {p.name: p for p in folder.iterdir()}
    return read_tables(tables, files, Scene(("v", "w"), spec.zone, spec.harmonize.step))


def rows_of(raw: RawTables) -> pl.DataFrame:
    return long_observations(raw["observations"], raw["entities"]["entity"].to_list())


def grid(steps: int, names: Sequence[str], minutes: float = 1) -> pl.DataFrame:
    """Every entity at every time, in the order of a log."""
    n = len(names)
    rng = np.random.default_rng(steps)
    return pl.DataFrame(
        {
            "entity": list(names) * steps,
            "time": [START + timedelta(minutes=minutes * t) for t in range(steps) for _ in range(n)],
            "value": rng.integers(0, 9000, steps * n) / 100,
            "other": rng.integers(0, 9000, steps * n) / 100,
        }
    )


def truth_of(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.select("entity", pl.col("time").dt.replace_time_zone("UTC"), v=pl.col("value"), w=pl.col("other")).cast(
        SCHEMA
    )  # type: ignore[arg-type]


@given(data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_dense_or_not_the_rows_and_what_becomes_of_them_are_the_same(
    data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small batches, so that the table has to grow later, earlier, wider and finer.
    monkeypatch.setattr(series, "ROWS_OF_A_BATCH", data.draw(st.sampled_from([1, 7, 40, 1000])))
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    names = [f"0{i}" for i in rng.permutation(5)]
    rows = grid(60, names, minutes=data.draw(st.sampled_from([1, 2.5, 5, 7])))
    shape = data.draw(st.sampled_from(["whole", "gaps", "late", "seconds", "twice", "shuffled", "few"]))
    if shape == "late":
        rows = rows.filter((pl.col("entity") != names[0]) | (pl.col("time") > START + timedelta(minutes=30)))
    elif shape == "seconds":
        odd = pl.col("entity") == names[1]
        rows = rows.with_columns(
            pl.when(odd).then(pl.col("time") + timedelta(seconds=30)).otherwise("time").alias("time")
        )
        rows = rows.sort("time", maintain_order=True)
    elif shape in ("gaps", "few"):
        rows = rows.filter(pl.Series(rng.random(len(rows)) < (0.85 if shape == "gaps" else 0.2)))
    order = data.draw(st.sampled_from(["log", "by entity"]))
    if order == "by entity":
        rows = pl.concat([part for _, part in rows.group_by("entity", maintain_order=True)])
    if shape == "twice":
        rows = pl.concat([rows, rows.tail(1)])
    elif shape == "shuffled":
        rows = rows.sample(fraction=1, shuffle=True, seed=1)
    holes = pl.Series(rng.random(len(rows)))
    rows = rows.with_columns(
        value=pl.when(holes < 0.1).then(None).when(holes < 0.2).then(-1).when(holes < 0.25).then(99).otherwise("value")
    )
    places = data.draw(st.sampled_from([(), tuple(sorted(names)), ("silent", *sorted(names), "still")]))
    null = data.draw(st.sampled_from(["", "NA", "NaN"]))
    rows.write_csv(tmp_path / "rows.csv", null_value=null, datetime_format="%Y-%m-%d %H:%M:%S")
    spec = spec_of(FORM, duplicates=data.draw(st.sampled_from(["first", "last", "mean"])))
    raw, truth = read(spec, tmp_path, places), truth_of(rows)
    order_of_file = rows["entity"].unique(maintain_order=True).to_list()
    assert raw["entities"]["entity"].to_list() == (list(places) or order_of_file)
    if shape in ("whole", "gaps", "late"):
        assert is_dense(raw["observations"]) == (shape != "gaps" or len(places) < 7 or len(rows) * 2 >= 60 * 7)
    elif shape in ("twice", "shuffled", "few"):
        assert not is_dense(raw["observations"])
    key = ["entity", "time", "v", "w"]
    assert rows_of(raw).sort(key).equals(truth.sort(key))
    ours, theirs = harmonize(spec, raw), harmonize(spec, raw | {"observations": truth})
    assert ours.facts == theirs.facts
    for name in ours.tables:
        if spec.harmonize.duplicates != "mean" or name not in ("signal", "scaler"):
            assert ours.tables[name].equals(theirs.tables[name]), name
    values = [np.array(r.tables["signal"]["values"].to_list()) for r in (ours, theirs)]
    assert np.allclose(*values, rtol=1e-6)
    assert ours.tables["signal"]["observed"].equals(theirs.tables["signal"]["observed"])


def test_a_cell_without_a_row_stays_apart_from_a_row_without_a_value(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(
        "entity,time,value,other\na,2024-01-01 00:00,1,\nb,2024-01-01 00:00,2,3\na,2024-01-01 00:05,,\n"
        "a,2024-01-01 00:10,7,8\nb,2024-01-01 00:10,9,inf\n"
    )
    raw = read(spec_of(FORM), tmp_path)
    assert is_dense(raw["observations"])
    at = [datetime(2024, 1, 1, 0, m, tzinfo=UTC) for m in (0, 5, 10)]
    assert rows_of(raw).rows() == [
        ("a", at[0], 1.0, None),
        ("b", at[0], 2.0, 3.0),
        ("a", at[1], None, None),
        ("a", at[2], 7.0, 8.0),
        ("b", at[2], 9.0, float("inf")),
    ]


def test_sql_sees_the_rows_that_there_are(tmp_path: Path, lake: Lake) -> None:
    rows = grid(40, ["b", "a"]).with_columns(value=pl.Series([None, 1.0] * 40))
    kept = rows.filter(pl.Series(np.arange(80) % 5 != 3))
    kept.write_csv(tmp_path / "rows.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    raw = read(spec_of(FORM), tmp_path, ["a", "silent", "b"])
    facts = {"dense_observations": ["v", "w"]}
    lake.publish("x", "raw", raw, fingerprint="f", facts=facts, inputs={})
    seen = lake.connect().sql("select * from x.raw").pl().with_columns(pl.col("time").dt.convert_time_zone("UTC"))
    key = ["entity", "time"]
    assert seen.sort(key).equals(truth_of(kept).sort(key))


def test_a_missing_code_never_enters_a_mean(tmp_path: Path) -> None:
    rows = grid(60, ["a", "b"])
    rows = rows.with_columns(value=pl.Series([-1.0, 95.0, 10.0, 20.0] * 30))
    rows.write_csv(tmp_path / "rows.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    spec = spec_of(FORM, duplicates="mean")
    raw = read(spec, tmp_path)
    for observations in (raw["observations"], rows_of(raw)):
        result = harmonize(spec, raw | {"observations": observations})
        assert result.facts["masked"]["v"] == {"values": 120, "missing_code": 30, "out_of_range": 30}
        cells = np.array(result.tables["signal"]["values"].to_list()).reshape(12, 2, 2)
        assert np.array_equal(cells[:, :, 0], np.tile([10.0, 20.0], (12, 1)))


def test_rows_that_share_a_step_are_an_error_that_names_them_dense_or_not(tmp_path: Path) -> None:
    rows = grid(40, ["a", "b"], minutes=5)
    extra = rows.filter(entity="b").head(1).with_columns(pl.col("time") + timedelta(minutes=2))
    rows = pl.concat([rows, extra]).sort("time", maintain_order=True)
    rows.write_csv(tmp_path / "rows.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    spec = spec_of(FORM)
    raw = read(spec, tmp_path)
    for observations in (raw["observations"], rows_of(raw)):
        with pytest.raises(ContractError, match="2 rows share an entity and a step of 5m") as caught:
            harmonize(spec, raw | {"observations": observations})
        assert caught.value.offenders == ["b at 2024-01-01 00:00:00"]


def test_civil_times_keep_the_hour_that_comes_twice_and_offsets_tell_it_apart(tmp_path: Path) -> None:
    hours = [f"2024-10-27 0{h}:{m:02d}" for h in (0, 1, 2, 3) for m in (0, 30)]
    (tmp_path / "rows.csv").write_text("entity,time,value,other\n" + "".join(f"a,{h},1,2\n" for h in hours))
    raw = read(spec_of(FORM, zone="Europe/Berlin", step="30m"), tmp_path)
    assert is_dense(raw["observations"])
    assert raw["observations"]["time"].dt.hour().to_list() == [22, 22, 23, 23, 0, 0, 2, 2]
    zoned = [f"2024-10-27T0{h}:30:00+0{o}:00" for h, o in ((1, 2), (2, 2), (2, 1), (3, 1))]
    (tmp_path / "rows.csv").write_text("entity,time,value,other\n" + "".join(f"a,{h},1,2\n" for h in zoned))
    raw = read(spec_of(FORM, zone="Europe/Berlin", step="30m"), tmp_path)
    assert is_dense(raw["observations"])
    assert raw["observations"]["time"].dt.hour().to_list() == [23, 0, 1, 2]
    (tmp_path / "rows.csv").write_text("entity,time,value,other\na,2024-03-31 02:30,1,2\n")
    with pytest.raises(ContractError, match="its clocks skipped them"):
        read(spec_of(FORM, zone="Europe/Berlin"), tmp_path)


BAD: list[tuple[str, str]] = [
    ("a,2024-01-01 00:10,x,1", r"something else than numbers[\s\S]*value"),
    ("a,2024-01-0100:10,1,1", r"1 times of rows\.csv cannot be read"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_bad_row_far_down_is_refused_in_the_words_of_the_whole_file(line: str, message: str, tmp_path: Path) -> None:
    grid(300, ["a", "b"]).write_csv(tmp_path / "rows.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    with (tmp_path / "rows.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ContractError, match=message):
        read(spec_of(FORM), tmp_path)


@pytest.mark.parametrize("line", [",2024-01-01 05:00,1,1", "a,,1,1", "NA,2024-01-01 05:00,1,1"])
def test_a_row_of_nobody_or_of_no_time_is_refused(line: str, tmp_path: Path) -> None:
    grid(300, ["a", "b"]).write_csv(tmp_path / "rows.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    with (tmp_path / "rows.csv").open("a") as file:
        file.write(line + "\n")
    spec = spec_of(FORM)
    with pytest.raises(ContractError, match="1 of 601 rows break the contract"):
        harmonize(spec, read(spec, tmp_path))


def test_an_entity_that_the_places_lack_is_named(tmp_path: Path) -> None:
    grid(30, ["a", "b"]).write_csv(tmp_path / "rows.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    spec = spec_of(FORM)
    with pytest.raises(ContractError, match="lacks") as caught:
        harmonize(spec, read(spec, tmp_path, ["a", "c"]))
    assert caught.value.offenders == ["b"]


def test_files_that_follow_one_another_and_a_filter_make_one_dense_table(tmp_path: Path) -> None:
    rows = grid(60, ["a", "b"]).with_columns(kind=pl.lit("new"))
    noise = rows.with_columns(kind=pl.lit("old"), value=pl.lit(0.0))
    both = pl.concat([rows, noise]).sort("time", maintain_order=True)
    both.head(80).write_parquet(tmp_path / "one.parquet")
    both.tail(-80).write_csv(tmp_path / "two.csv", datetime_format="%Y-%m-%dT%H:%M:%S")
    spec = spec_of(FORM | {"file": ("one.parquet", "two.csv"), "only": {"kind": "new"}})
    raw = read(spec, tmp_path)
    assert is_dense(raw["observations"])
    assert rows_of(raw).equals(truth_of(rows))


def read_matrix(rows: pl.DataFrame, folder: Path, places: str = "") -> RawTables:
    """Tables with an edge from the first to the second entity of a matrix without names."""
    rows.write_csv(folder / "rows.csv", datetime_format="%Y-%m-%d %H:%M:%S")
    (folder / "adj.csv").write_text("0,1,0\n0,0,0\n0,0,0\n")
    spec = spec_of(FORM)
    dump = spec.model_dump()
    dump["tables"]["edges"] = {"format": "matrix", "file": "adj.csv"}
    if places:
        dump["tables"]["entities"] = {"format": "inline", "rows": [{"entity": e} for e in places]}
    tables = DatasetSpec.model_validate(dump).tables
    return read_tables(tables, {p.name: p for p in folder.iterdir()}, Scene(("v", "w"), "UTC", "5m"))


ALL = grid(30, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("rows", "dense"),
    [(ALL, True), (ALL[1:], True), (ALL.sample(fraction=1, shuffle=True, seed=3), False), (ALL[::-1], False)],
    ids=["whole", "first row missing", "shuffled", "backwards"],
)
def test_a_matrix_without_names_goes_by_the_places_whichever_rows_there_are(
    rows: pl.DataFrame, dense: bool, tmp_path: Path
) -> None:
    raw = read_matrix(rows, tmp_path, places="bca")
    assert is_dense(raw["observations"]) is dense
    assert raw["entities"]["entity"].to_list() == ["b", "c", "a"]
    assert raw["edges"].rows() == [("b", "c", 1.0)]


@pytest.mark.parametrize("rows", [ALL, ALL[1:], ALL[::-1]], ids=["whole", "first row missing", "backwards"])
def test_without_places_rows_give_no_order_that_a_matrix_could_go_by(rows: pl.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"adj\.csv does not say whose rows[\s\S]*`entities` table[\s\S]*`ids`"):
        read_matrix(rows, tmp_path)
