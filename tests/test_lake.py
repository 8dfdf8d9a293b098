from __future__ import annotations

import duckdb
import numpy as np
import polars as pl
import pytest

from stfm_pipeline.errors import StfmError, UsageError
from stfm_pipeline.lake import Lake, data_version
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
    "query",
    [
        "select * from read_csv('/etc/hostname')",
        "copy (select 1) to 'stfm-should-not-exist.csv'",
        "set enable_external_access = true",
    ],
)
def test_sql_cannot_reach_outside_the_lake(enriched: Lake, query: str) -> None:
    with pytest.raises(duckdb.Error):
        enriched.connect().execute(query)


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
