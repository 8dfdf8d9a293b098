from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from stfm_pipeline import large
from stfm_pipeline.digest import data_version
from stfm_pipeline.errors import StfmError, UsageError
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.large import Chunks
from stfm_pipeline.stage import NEVER, Tail
from stfm_pipeline.tables import Signal


def publish(lake: Lake, value: float, rows: int = 3, stage: str = "raw") -> None:
    frame = pl.DataFrame({"entity": ["x"] * rows, "value": [value] * rows})
    lake.publish("d", stage, {"observations": frame}, fingerprint=str(value), facts={"v": value}, inputs={})


def test_a_stage_reads_back_what_was_published(lake: Lake) -> None:
    publish(lake, 1.0)
    publish(lake, 2.0, rows=5)
    first, second = lake.history("d", "raw")
    assert lake.read(first, "observations")["value"].to_list() == [1.0] * 3
    assert lake.read(second, "observations")["value"].to_list() == [2.0] * 5
    assert (second.version, second.facts, lake.stage("d", "raw")) == (2, {"v": 2.0}, second)


def test_history_keeps_its_order_beyond_ten(lake: Lake) -> None:
    for i in range(12):
        publish(lake, float(i))
    assert [s.fingerprint for s in lake.history("d", "raw")] == [str(float(i)) for i in range(12)]


def test_rows_keep_their_order_however_delta_writes_them(lake: Lake) -> None:
    parts = [pl.DataFrame({"i": np.arange(k * 20_000, (k + 1) * 20_000)}) for k in range(8)]
    frame = pl.concat(parts, rechunk=False)
    stage = lake.publish("d", "raw", {"t": frame}, fingerprint="f", facts={}, inputs={})
    assert lake.read(stage, "t").equals(frame)


def test_a_crash_before_the_manifest_leaves_the_old_stage_whole(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(lake, 1.0)
    write = Lake._write

    def crash(self: Lake, path: str, *args: object, **kwargs: object) -> int:
        if path.endswith("manifest"):
            raise OSError("no space left on device")
        return write(self, path, *args, **kwargs)

    monkeypatch.setattr(Lake, "_write", crash)
    with pytest.raises(OSError, match="no space"):
        publish(lake, 2.0)
    stage = lake.require("d", "raw")
    assert stage.fingerprint == "1.0"
    assert lake.read(stage, "observations")["value"].to_list() == [1.0] * 3


def test_an_absent_stage_or_table_says_what_to_do(lake: Lake) -> None:
    with pytest.raises(StfmError, match="stfm run d --until raw"):
        lake.require("d", "raw")
    publish(lake, 1.0)
    with pytest.raises(UsageError, match="observations"):
        lake.read(lake.require("d", "raw"), "nothing")


def test_sql_sees_the_dense_signal_as_rows_with_nulls_where_unobserved(enriched: Lake) -> None:
    stage = enriched.require("synthetic", "harmonized")
    entities = enriched.read(stage, "entities")["entity"].to_list()
    signal = Signal.from_frame(enriched.read(stage, "signal"), entities, ["count", "level"])
    rows = enriched.connect().sql("select * from synthetic.harmonized order by time, entity").pl()
    assert len(rows) == signal.values.shape[0] * 6
    level = rows["level"].to_numpy().reshape(-1, 6)
    assert np.array_equal(np.isnan(level), ~signal.observed[..., 1])
    assert np.array_equal(level[signal.observed[..., 1]], signal.values[..., 1][signal.observed[..., 1]])
    joined = enriched.connect().sql("select count(*), count(planned) from synthetic.enriched").fetchall()
    assert joined == [(len(rows), len(rows))]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("select * from read_csv('{inside}')", "file system operations are disabled"),
        ("select * from read_text('{inside}')", "file system operations are disabled"),
        ("select * from '{inside}'", "file system operations are disabled"),
        ("select * from glob('{folder}/*')", "file system operations are disabled"),
        ("copy (select 1) to '{outside}'", "file system operations are disabled"),
        ("attach '{outside}' as other", "file system operations are disabled"),
        ("export database '{outside}'", "file system operations are disabled"),
        ("install httpfs", "disabled"),
        ("load httpfs", "disabled"),
        ("set enable_external_access = true", "configuration has been locked"),
        ("set lock_configuration = false", "configuration has been locked"),
        ("reset enable_external_access", "configuration has been locked"),
        ("select * from secret_frame", "does not exist"),
    ],
)
def test_sql_cannot_reach_outside_the_lake(lake: Lake, tmp_path: Path, query: str, why: str) -> None:
    publish(lake, 1.0)
    secret_frame = pl.DataFrame({"secret": [1]})
    inside, outside = tmp_path / "secret.csv", tmp_path / "stolen"
    secret_frame.write_csv(inside)
    connection = lake.connect()
    with pytest.raises(duckdb.Error, match=why):
        connection.execute(query.format(inside=inside, outside=outside, folder=tmp_path))
    assert not outside.exists()
    assert connection.execute("select count(*) from d.raw").fetchall() == [(3,)]


def test_data_version_is_the_content(lake: Lake) -> None:
    frame = pl.DataFrame({"s": ["a", None], "v": [1.0, None], "l": [[1, 2], [3]]})
    same = data_version({"t": frame.clone()}, {"x": 1})
    assert data_version({"t": frame}, {"x": 1}) == same
    changed = [
        frame.with_columns(pl.Series("v", [1.0, 0.0])),
        frame.with_columns(pl.Series("s", ["a", ""])),
        frame.with_columns(pl.Series("l", [[1], [2, 3]])),
    ]
    versions = {data_version({"t": f}, {"x": 1}) for f in changed} | {data_version({"t": frame}, {"x": 2}), same}
    assert len(versions) == 5


def test_a_crash_between_two_tables_leaves_both_as_they_were(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def pair(value: int) -> dict[str, pl.DataFrame]:
        return {"one": pl.DataFrame({"v": [value]}), "two": pl.DataFrame({"v": [value], f"only_{value}": [value]})}

    def put(value: int) -> None:
        lake.publish("d", "embedded", pair(value), fingerprint=str(value), facts={}, inputs={})

    put(1)
    with monkeypatch.context() as broken:
        write = Lake._write

        def crash(self: Lake, path: str, *args: object, **kwargs: object) -> int:
            if path.endswith("two"):
                raise KeyboardInterrupt
            return write(self, path, *args, **kwargs)

        broken.setattr(Lake, "_write", crash)
        with pytest.raises(KeyboardInterrupt):
            put(2)
    stage = lake.require("d", "embedded")
    assert {t: lake.read(stage, t)["v"].to_list() for t in ("one", "two")} == {"one": [1], "two": [1]}
    put(3)
    first, third = lake.history("d", "embedded")
    assert lake.read(third, "two").columns == ["v", "only_3"]
    assert lake.read(first, "two").columns == ["v", "only_1"], "an old state keeps its columns as well as its rows"


def test_sql_reads_the_last_published_state_and_names_with_hyphens(lake: Lake) -> None:
    for value in (1.0, 2.0):
        frame = pl.DataFrame({"entity": ["x"], "value": [value]})
        lake.publish("a-b-c", "raw", {"observations": frame}, fingerprint="f", facts={}, inputs={})
    connection = lake.connect()
    assert connection.execute("select value from a_b_c.raw").fetchall() == [(2.0,)]
    assert connection.execute("select * from a_b_c.raw_observations").fetchall() == [("x", 2.0)]


@pytest.mark.parametrize("name", ["temp", "system", "memory", "main", "information-schema", "pg-catalog", "select"])
def test_a_dataset_with_a_name_that_sql_knows_spoils_no_other(lake: Lake, name: str) -> None:
    publish(lake, 1.0)
    frame = pl.DataFrame({"entity": ["x"], "value": [5.0]})
    lake.publish(name, "raw", {"observations": frame}, fingerprint="f", facts={}, inputs={})
    connection = lake.connect()
    assert connection.execute("select count(*) from d.raw").fetchall() == [(3,)]
    schema = connection.execute(
        "select table_schema from information_schema.tables where table_name = 'raw' and table_schema <> 'd'"
    ).fetchall()
    assert [s.rstrip("_") for (s,) in schema] == [name.replace("-", "_")]
    assert connection.execute(f'select value from "{schema[0][0]}".raw').fetchall() == [(5.0,)]


def test_sql_copes_with_braces_in_a_channel_name(lake: Lake) -> None:
    signal = pl.DataFrame({"time": [0, 1], "values": [[1.0], [0.0]], "observed": [[True], [False]]})
    tables = {"signal": signal, "entities": pl.DataFrame({"index": [0], "entity": ["a"]})}
    facts = {"dense": {"signal": ["flow {veh/h}"]}}
    lake.publish("d", "harmonized", tables, fingerprint="f", facts=facts, inputs={})
    rows = lake.connect().execute('select time, "flow {veh/h}" from d.harmonized order by time').fetchall()
    assert rows == [(0, 1.0), (1, None)]


def test_the_long_view_of_the_count_is_the_dense_signal_cell_by_cell(enriched: Lake) -> None:
    stage = enriched.require("synthetic", "harmonized")
    entities = enriched.read(stage, "entities")["entity"].to_list()
    signal = Signal.from_frame(enriched.read(stage, "signal"), entities, ["count", "level"])
    for n, entity in enumerate(entities):
        query = "select time, count, level from synthetic.harmonized where entity = ? order by time"
        rows = enriched.connect().sql(query, params=[entity]).pl()
        assert rows["count"].to_list() == signal.values[:, n, 0].tolist()
        expected = np.where(signal.observed[:, n, 1], signal.values[:, n, 1], np.nan)
        assert np.array_equal(rows["level"].to_numpy(), expected, equal_nan=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pl.Series(["a\0b", "c"]), pl.Series(["a", "b\0c"])),
        (pl.Series(["a", None]), pl.Series(["a", "\x01"])),
        (pl.Series(["\x00"]), pl.Series(["\x020"])),
        (pl.Series([True, None]), pl.Series([True, False])),
        (pl.Series([1.0, None]), pl.Series([1.0, float("nan")])),
        (pl.Series([[1], None]), pl.Series([[1], []], dtype=pl.List(pl.Int64))),
        (pl.Series([[True, False]]), pl.Series([[True, True]])),
        (pl.Series([1]), pl.Series([1.0])),
        (pl.Series(["a", "b"], dtype=pl.Categorical), pl.Series(["a", "c"], dtype=pl.Categorical)),
        (pl.Series([[1, 2]], dtype=pl.Array(pl.Int64, 2)), pl.Series([[1, 3]], dtype=pl.Array(pl.Int64, 2))),
        (pl.Series([{"s": "x"}]), pl.Series([{"s": "y"}])),
        (pl.Series([{"s": None}]), pl.Series([None], dtype=pl.Struct({"s": pl.Null}))),
        (pl.Series([b"x"]), pl.Series([b"y"])),
    ],
)
def test_data_version_tells_apart_what_differs_and_is_the_same_for_what_does_not(
    one: pl.Series, other: pl.Series
) -> None:
    def version(column: pl.Series) -> str:
        return data_version({"t": pl.DataFrame({"x": column})}, {})

    assert version(one) != version(other)
    again = pl.Series(one.to_list(), dtype=one.dtype)
    assert version(one) == version(again)


def test_data_version_does_not_depend_on_chunks_or_on_the_order_of_tables() -> None:
    parts = [pl.DataFrame({"s": ["a", "b"], "l": [[1.0], [2.0, 3.0]]}), pl.DataFrame({"s": ["c"], "l": [[4.0]]})]
    whole, pieces = pl.concat(parts, rechunk=True), pl.concat(parts, rechunk=False)
    other = pl.DataFrame({"v": [1]})
    assert data_version({"a": whole, "b": other}, {}) == data_version({"b": other, "a": pieces}, {})
    assert data_version({"a": whole, "b": other}, {}) != data_version({"b": whole, "a": other}, {})


def test_one_changed_cell_or_mask_bit_of_a_signal_changes_its_data_version() -> None:
    times = np.arange(50).astype("datetime64[h]").astype("datetime64[us]")
    values, observed = np.ones((50, 3, 2), np.float32), np.ones((50, 3, 2), np.bool_)

    def version(v: np.ndarray, o: np.ndarray) -> str:
        return data_version({"signal": Signal(times, ("a", "b", "c"), ("x", "y"), v, o).to_frame()}, {})

    cell, bit = values.copy(), observed.copy()
    cell[49, 2, 1] = np.nextafter(np.float32(1), np.float32(2))
    bit[49, 2, 1] = False
    assert len({version(values, observed), version(cell, observed), version(values, bit)}) == 3


def hour(i: int) -> datetime:
    return datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=i)


def go_on(lake: Lake, first: int, *values: int) -> Stage:
    """Publish rows from `first` on, one an hour."""
    frame = pl.DataFrame({"time": [hour(first + k) for k in range(len(values))], "x": values})
    table = Tail(first, frame) if first else frame
    since = hour(first) if first else None
    return lake.publish("d", "s", {"t": table}, fingerprint=str(first), facts={}, inputs={}, since=since)


def test_what_a_crash_left_after_compaction_is_gone_on_from(lake: Lake) -> None:
    before = go_on(lake, 0, 0)
    for i in range(1, 40):
        before = go_on(lake, i, i)
    path = f"{lake.uri}/d/s/t"
    assert len(DeltaTable(path).file_uris()) < 40, "many files become few"
    DeltaTable(path).optimize.compact()
    assert DeltaTable(path).version() > before.tables["t"]
    assert lake.read(before, "t")["x"].to_list() == list(range(40))
    after = go_on(lake, 38, 8, 9, 10)
    assert lake.read(after, "t")["x"].to_list() == [*range(38), 8, 9, 10]
    assert data_version({"t": lake.read(after, "t")}, {}) == after.data_version


def test_a_manifest_of_before_there_were_tails_goes_on(lake: Lake) -> None:
    go_on(lake, 0, 0, 1)
    path = f"{lake.uri}/d/s/manifest"
    old = pl.read_delta(path).drop("blocks", "since")
    shutil.rmtree(path)
    write_deltalake(path, old.to_arrow())
    (first,) = lake.history("d", "s")
    assert first.blocks == {}
    assert lake.read(first, "t")["x"].to_list() == [0, 1]
    go_on(lake, 0, 0, 1, 2)
    assert go_on(lake, 3, 3).since == hour(3)
    assert [s.since for s in lake.history("d", "s")] == [None, None, hour(3)]
    assert lake.read(lake.require("d", "s"), "t")["x"].to_list() == [0, 1, 2, 3]


TIMES = pl.datetime_range(datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 31, tzinfo=UTC), "1h", eager=True)


def frames(rows: int, at_once: int) -> Iterator[pl.DataFrame]:
    for i in range(0, rows, at_once):
        n = min(at_once, rows - i)
        cells = np.arange(i * 5_000, (i + n) * 5_000, dtype=np.float32).reshape(n, 5_000)
        yield pl.DataFrame(
            {"time": TIMES[i : i + n], "i": np.arange(i, i + n), "values": pl.Series(cells).cast(pl.List(pl.Float32))}
        )


@pytest.mark.parametrize("at_once", [1, 37, 200])
def test_a_table_that_comes_in_chunks_is_the_one_that_comes_whole(lake: Lake, at_once: int) -> None:
    chunks = Chunks(TIMES[:200], ["time", "i", "values"], lambda: frames(200, at_once))
    said = [
        lake.publish("d", "raw", {"t": table}, fingerprint="f", facts={}, inputs={})
        for table in (chunks, pl.concat(frames(200, 200)))
    ]
    assert said[0].data_version == said[1].data_version
    assert lake.read(said[0], "t").equals(lake.read(said[1], "t"))
    assert lake.read_rows(said[0], "t", 30, 40)["i"].to_list() == list(range(30, 40))
    more = Tail(200, pl.concat(frames(210, 210))[200:])
    longer = lake.publish("d", "raw", {"t": more}, fingerprint="f", facts={}, inputs={}, since=NEVER)
    assert longer.data_version == data_version({"t": pl.concat(frames(210, 210))}, {})


def test_a_table_that_breaks_off_in_the_middle_leaves_the_old_one(lake: Lake) -> None:
    old = lake.publish("d", "raw", {"t": pl.concat(frames(50, 50))}, fingerprint="f", facts={}, inputs={})

    def broken() -> Iterator[pl.DataFrame]:
        yield from frames(20, 10)
        raise OSError("the file ends here")

    for rows, parts, error in ((40, broken, OSError), (41, lambda: frames(40, 10), StfmError)):
        table = Chunks(TIMES[:rows], ["time", "i", "values"], parts)
        with pytest.raises(error):
            lake.publish("d", "raw", {"t": table}, fingerprint="g", facts={}, inputs={})
        assert lake.stage("d", "raw") == old
        assert lake.read(old, "t").equals(pl.concat(frames(50, 50)))


def test_a_large_table_is_read_in_chunks_and_a_signal_of_it_lies_in_a_file(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 40, 2)).astype(np.float32)
    observed = rng.random(values.shape) < 0.8
    times = np.datetime64("2024-01-01", "us") + np.arange(300) * np.timedelta64(3_600_000_000, "us")
    names = tuple(f"s{i}" for i in range(40))
    signal = Signal(times, names, ("a", "b"), np.where(observed, values, 0), observed)
    small = lake.publish("d", "raw", {"signal": signal.to_table()}, fingerprint="f", facts={}, inputs={})
    monkeypatch.setattr(large, "LARGE", 1000)
    monkeypatch.setattr(large, "CELLS_OF_A_PASS", 80 * 70)
    table = signal.to_table()
    assert isinstance(table, Chunks)
    stage = lake.publish("d", "raw", {"signal": table}, fingerprint="f", facts={}, inputs={})
    assert stage.data_version == small.data_version
    found = lake.table(stage, "signal")
    assert isinstance(found, Chunks)
    assert [len(f) for f in found.frames()] == [35] * 8 + [20]
    again = Signal.from_frame(found, names, ("a", "b"))
    assert isinstance(again.values, np.memmap)
    for name in ("times", "values", "observed"):
        assert np.array_equal(getattr(again, name), getattr(signal, name))
