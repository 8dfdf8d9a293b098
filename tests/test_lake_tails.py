"""Stages that go on: only what is new is written, and every version reads as the whole would."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stfm_pipeline.digest import Blocks, data_version
from stfm_pipeline.errors import StfmError
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.stage import NEVER, Tail

T0 = datetime(2024, 1, 1, tzinfo=UTC)


def hour(h: int) -> datetime:
    return T0 + timedelta(hours=h)


def frame(start: int, stop: int, wide: int = 3) -> pl.DataFrame:
    values = [[float(h * wide + k) for k in range(wide)] for h in range(start, stop)]
    return pl.DataFrame(
        {"time": [hour(h) for h in range(start, stop)], "values": values},
        schema={"time": pl.Datetime("us", "UTC"), "values": pl.List(pl.Float32)},
    )


def publish(lake: Lake, tables: dict[str, pl.DataFrame | Tail], since: datetime | None = None, mark: int = 0) -> Stage:
    return lake.publish("d", "s", tables, fingerprint=str(mark), facts={"n": mark}, inputs={}, since=since)


def test_a_tail_reads_as_the_whole_and_has_its_version(lake: Lake) -> None:
    small = pl.DataFrame({"x": [1]})
    publish(lake, {"t": frame(0, 100), "u": small})
    more = publish(lake, {"t": Tail(100, frame(100, 130))}, since=hour(100))
    changed = publish(lake, {"t": Tail(90, frame(90, 140))}, since=hour(90))
    shorter = publish(lake, {"t": Tail(50, frame(50, 60))}, since=hour(50))
    for stage, stop in ((more, 130), (changed, 140), (shorter, 60)):
        assert lake.read(stage, "t").equals(frame(0, stop))
        assert stage.data_version == data_version({"t": frame(0, stop), "u": small}, {"n": 0})
        assert stage.tables["u"] == 0, "what is not given stays as it is"
    files = sorted(Path(lake.uri, "d", "s", "u").glob("*.parquet"))
    assert len(files) == 1


@pytest.mark.parametrize("wide", [1, 3, 40_000])
def test_digests_do_not_depend_on_how_a_table_came_about(lake: Lake, wide: int) -> None:
    publish(lake, {"t": frame(0, 10, wide)})
    ends = np.cumsum([1, 7, 30, 2, 50]) + 10
    for start, stop in zip([10, *ends[:-1].tolist()], ends.tolist(), strict=True):
        stage = publish(lake, {"t": Tail(start, frame(start, stop, wide))}, since=hour(start))
        assert stage.blocks["t"] == Blocks.of(frame(0, stop, wide))


def test_what_changed_since_a_version_is_the_earliest_change(lake: Lake) -> None:
    first = publish(lake, {"t": frame(0, 10)}, mark=1)
    second = publish(lake, {"t": Tail(10, frame(10, 12))}, since=hour(10), mark=2)
    third = publish(lake, {"t": Tail(4, frame(4, 12))}, since=hour(4), mark=3)
    assert lake.changed_since("d", "s", first.data_version) == hour(4)
    assert lake.changed_since("d", "s", second.data_version) == hour(4)
    assert lake.changed_since("d", "s", third.data_version) == NEVER
    assert lake.changed_since("d", "s", "unknown") is None
    publish(lake, {"t": frame(0, 12)}, mark=4)
    assert lake.changed_since("d", "s", second.data_version) is None
    assert lake.as_made_of("d", "s", second.data_version) == second
    assert lake.as_made_of("d", "s", "unknown") is None


def test_what_a_killed_writer_left_is_not_gone_on_from(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(lake, {"t": frame(0, 10)})
    write = Lake._write

    def dies(self: Lake, path: str, *arguments: object, **more: object) -> int:
        if path.endswith("manifest"):
            raise KeyboardInterrupt
        return write(self, path, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Lake, "_write", dies)
    with pytest.raises(KeyboardInterrupt):
        publish(lake, {"t": Tail(10, frame(10, 99))}, since=hour(10))
    monkeypatch.setattr(Lake, "_write", write)
    assert lake.read(lake.require("d", "s"), "t").equals(frame(0, 10))
    stage = publish(lake, {"t": Tail(10, frame(10, 12))}, since=hour(10))
    assert lake.read(stage, "t").equals(frame(0, 12))


def test_many_small_tails_become_few_files_and_every_version_stays_readable(lake: Lake) -> None:
    publish(lake, {"t": frame(0, 1)})
    for h in range(1, 80):
        publish(lake, {"t": Tail(h, frame(h, h + 1))}, since=hour(h), mark=h)
    for table in ("t", "manifest"):
        assert len(lake._table(lake._path("d", "s", table)).file_uris()) <= 33
    history = lake.history("d", "s")
    assert [s.facts["n"] for s in history] == list(range(80))
    for stage in (history[0], history[40], history[-1]):
        assert lake.read(stage, "t").equals(frame(0, stage.facts["n"] + 1))


def test_rows_of_another_form_cannot_go_on(lake: Lake) -> None:
    publish(lake, {"t": frame(0, 10)})
    other = frame(10, 12).with_columns(extra=1)
    with pytest.raises(StfmError, match="rows of another form"):
        publish(lake, {"t": Tail(10, other)}, since=hour(10))
    assert lake.read(lake.require("d", "s"), "t").equals(frame(0, 10))


def test_a_tail_is_the_last_rows_by_time_or_none(lake: Lake) -> None:
    stage = publish(lake, {"t": frame(0, 10), "mixed": frame(0, 10)[[3, 9, 1, 8, 2]]})
    found = lake.tail(stage, "t", hour(7))
    assert found is not None
    assert (found.first, found.frame.equals(frame(7, 10))) == (7, True)
    nothing = lake.tail(stage, "t", hour(10))
    assert nothing is not None
    assert (nothing.first, len(nothing.frame)) == (10, 0)
    assert lake.tail(stage, "mixed", hour(7)) is None
