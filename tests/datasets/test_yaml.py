"""A user's dataset in one YAML file: the good one comes down the road, the bad ones say what is wrong and where."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stfm_pipeline.datasets.catalog import all_datasets, broken_datasets, get_dataset
from stfm_pipeline.datasets.export import export
from stfm_pipeline.datasets.formats.series import Long
from stfm_pipeline.datasets.yaml_file import SpecError, load_yaml
from stfm_pipeline.errors import ContractError, SourceError, UsageError
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import materialize, stale_stages
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS

GOOD = """\
kind: graph
zone: Europe/Zurich
tables:
  observations: {format: long, file: levels.csv, entity: station, columns: {level_m: level}}
channels:
  - {name: level_m, unit: m, minimum: 0}
harmonize:
  step: 1h
task: {look_back: 24, horizon: 6}
"""


@pytest.fixture
def folder(home: Path) -> Path:
    """The user's folder of datasets with a csv of three stations over forty days."""
    where = home / "datasets"
    where.mkdir(parents=True)
    rng = np.random.default_rng(0)
    start = datetime(2024, 1, 1)
    rows = [
        f"{name},{start + timedelta(hours=h)},{2 + np.sin(h / 24 * 2 * np.pi) + rng.normal(0, 0.1):.4f}"
        for name in ("01", "2", "x")
        for h in range(960)
    ]
    (where / "levels.csv").write_text("station,time,level\n" + "\n".join(rows) + "\n")
    return where


def write(folder: Path, text: str, name: str = "river.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_in_the_folder_is_a_dataset_that_comes_down_the_road(
    folder: Path, lake: Lake, settings: Settings
) -> None:
    write(folder, GOOD)
    spec = get_dataset("river").spec
    assert (spec.title, spec.licence, spec.seasons) == ("river", "unstated", (24, 168))
    for stage in STEPS:
        assert materialize("river", stage, lake, settings).stage is not None
    harmonized = lake.require("river", "harmonized")
    assert lake.read(harmonized, "entities")["entity"].to_list() == ["01", "2", "x"]
    assert harmonized.facts["start"].startswith("2023-12-31T23:00")
    assert stale_stages("river", lake) == []


def test_a_changed_csv_runs_everything_again_and_a_touched_one_nothing(
    folder: Path, lake: Lake, settings: Settings
) -> None:
    write(folder, GOOD)
    for stage in STEPS:
        materialize("river", stage, lake, settings)
    os.utime(folder / "levels.csv", (1, 1))
    assert stale_stages("river", lake) == []
    with (folder / "levels.csv").open("a") as handle:
        handle.write("x,2024-02-10 00:00:00,2.5\n")
    assert stale_stages("river", lake) == list(STEPS)


def test_a_csv_that_changes_while_it_is_read_publishes_nothing(
    folder: Path, lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, GOOD)
    as_ever = Long.read

    def read_while_another_writes(self: Long, *arguments: Any) -> Any:
        found = as_ever(self, *arguments)
        with (folder / "levels.csv").open("a") as handle:
            handle.write("x,2024-02-10 00:00:00,2.5\n")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Long, "read", read_while_another_writes)
        with pytest.raises(ContractError, match="is made from changed while it was computed"):
            materialize("river", "raw", lake, settings)
    assert lake.stage("river", "raw") is None
    assert materialize("river", "raw", lake, settings).stage is not None


def test_history_that_comes_later_joins_the_training_part(folder: Path, lake: Lake, settings: Settings) -> None:
    write(folder, GOOD)
    parts = []
    for early in (False, True):
        if early:
            rows = [f"01,{datetime(2023, 10, 1) + timedelta(hours=h)},2" for h in range(2000)]
            with (folder / "levels.csv").open("a") as handle:
                handle.write("\n".join(rows) + "\n")
        for stage in ("raw", "harmonized"):
            outcome = materialize("river", stage, lake, settings)
        assert outcome.stage is not None
        parts.append(outcome.stage.facts["parts"]["train"][1] / outcome.stage.facts["steps"])
    assert parts == [pytest.approx(0.6, abs=1e-3)] * 2


def test_a_file_is_seen_when_it_comes_changes_and_goes(folder: Path) -> None:
    assert "river" not in all_datasets()
    path = write(folder, GOOD)
    assert "river" in all_datasets()
    write(folder, GOOD.replace("horizon: 6", "horizon: 12"))
    assert get_dataset("river").spec.task.horizon == 12
    path.unlink()
    assert "river" not in all_datasets()


def test_a_broken_file_leaves_every_other_dataset_usable(folder: Path) -> None:
    write(folder, GOOD)
    write(folder, "kind: [", "bad.yaml")
    write(folder, GOOD, "etth1.yaml")
    assert {"river", "nyc-airports"} <= set(all_datasets())
    assert set(broken_datasets()) == {"bad", "etth1"}
    with pytest.raises(SpecError, match="not YAML"):
        get_dataset("bad")
    assert "a built-in dataset has this name already" in str(broken_datasets()["etth1"])
    assert not get_dataset("etth1").spec.title.startswith("river")


def test_whatever_lies_in_the_folder_leaves_every_dataset_usable(folder: Path) -> None:
    write(folder, GOOD)
    (folder / "folder.yaml").mkdir()
    (folder / "gone.yaml").symlink_to(folder / "nowhere")
    (folder / "loop.yaml").symlink_to(folder / "loop.yaml")
    (folder / "endless.yaml").symlink_to("/dev/zero")
    (folder / ".#river.yaml").symlink_to("user@host.1234:5678")
    os.mkfifo(folder / "pipe.yaml")
    write(folder, GOOD + "seasons: " + "9" * 6000 + "\n", "long.yaml")
    write(folder, GOOD, "twice.yaml")
    write(folder, "kind: [", "twice.yml")
    assert {"river", "nyc-airports"} <= set(all_datasets())
    broken = broken_datasets()
    assert set(broken) == {"folder", "gone", "loop", "endless", "pipe", "long", "twice"}
    assert "found: a folder" in str(broken["folder"])
    assert "found: a link to nothing" in str(broken["gone"])
    assert "twice.yaml and twice.yml describe one dataset" in str(broken["twice"])


def test_what_yaml_takes_for_numbers_is_text_where_people_mean_text(folder: Path) -> None:
    write(folder, GOOD + "title: 2013-01-01\ncountry: NO\ndescription: 1:30\n")
    spec = get_dataset("river").spec
    assert (spec.title, spec.country, spec.description) == ("2013-01-01", "NO", "1:30")
    write(folder, GOOD.replace("minimum: 0", "minimum: -1e3, maximum: 1_0"))
    with pytest.raises(SpecError, match="found '1_0'"):
        get_dataset("river")


def test_a_file_of_the_same_size_and_time_is_read_again(folder: Path) -> None:
    path = write(folder, GOOD)
    stamp = path.stat()
    assert get_dataset("river").spec.task.horizon == 6
    write(folder, GOOD.replace("horizon: 6", "horizon: 5"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert get_dataset("river").spec.task.horizon == 5


def test_a_source_at_hand_lies_beside_the_description_wherever_a_command_runs(
    folder: Path, lake: Lake, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, GOOD + "sources: [{kind: local, path: levels.csv}]\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "levels.csv").write_text("station,time,level\n")
    monkeypatch.chdir(elsewhere)
    assert materialize("river", "raw", lake, settings).stage is not None
    assert lake.require("river", "raw").facts["rows"]["observations"] == 960


BROKEN = {
    "an unknown key, one letter off": (
        GOOD.replace("  step: 1h", "  stepp: 1h"),
        ["line 7: missing key 'step' in harmonize", "line 8: unknown key 'stepp' in harmonize; did you mean 'step'?"],
    ),
    "an unknown key at the top": (
        GOOD + "horizont: 6\n",
        ["line 10: unknown key 'horizont'; known: benchmark, channels, country"],
    ),
    "a missing section": (GOOD.replace("zone: Europe/Zurich\n", ""), ["line 1: missing key 'zone'"]),
    "an unknown format": (
        GOOD.replace("format: long", "format: lang"),
        ["line 4: tables.observations: 'format: lang' is not known; did you mean 'long'?"],
    ),
    "no format": (
        GOOD.replace("format: long, ", ""),
        ["line 4: missing key 'format' in tables.observations; one of: wide, tensor, long"],
    ),
    "an unknown filter": (
        GOOD.replace("  step: 1h\n", "  step: 1h\n  filters: [{kind: hample, window: 24, threshold: 4}]\n"),
        ["line 9: harmonize.filters.1: 'kind: hample' is not known; did you mean 'hampel'?"],
    ),
    "no kind of filter": (
        GOOD.replace("  step: 1h\n", "  step: 1h\n  filters: [{window: 24, threshold: 4}]\n"),
        ["missing key 'kind' in harmonize.filters.1; one of: stuck, spikes, hampel"],
    ),
    "a key of the format misspelt": (
        GOOD.replace("entity: station", "entiti: station"),
        ["line 4: unknown key 'entiti' in tables.observations; did you mean 'entity'?"],
    ),
    "a kind that does not exist": (
        GOOD.replace("kind: graph", "kind: graf"),
        ["line 1: kind: input should be 'graph', 'grid', 'trajectory', 'event' or 'video', found 'graf'"],
    ),
    "a number that is none": (
        GOOD.replace("look_back: 24", "look_back: a day"),
        ["line 9: task.look_back: input should be a valid integer", "found 'a day'"],
    ),
    "a step that is none": (
        GOOD.replace("step: 1h", "step: hourly"),
        ["line 8: harmonize.step: not a step length, expected a number and s, m, h or d, e.g. '1h', found 'hourly'"],
    ),
    "a zone that is none": (
        GOOD.replace("Europe/Zurich", "Europe/Zuerich"),
        ["line 2: zone: no such time zone; did you mean 'Europe/Zurich'?"],
    ),
    "two keys of one name": (GOOD + "zone: UTC\n", ["line 10: key 'zone' stands twice (first on line 2)"]),
    "shares that are too much": (
        GOOD + "split: {ratios: [0.8, 0.1, 0.1, 0.2]}\n",
        ["line 10: split: split ratios sum to 1.2, expected 1"],
    ),
    "indentation gone wrong": (GOOD.replace("  step: 1h", " step: 1h\n   x: 1"), ["line 9: not YAML"]),
    "a join without a table": (
        GOOD + "joins:\n  - {table: rain, columns: [rain_mm], availability: past, tolerance: 1h}\n",
        ["tables lacks 'rain'"],
    ),
    "a join that does not say how old a value may be": (
        GOOD + "joins:\n  - {table: rain, columns: [rain_mm], availability: past}\n",
        ["line 11: joins.1: state `tolerance`"],
    ),
    "a join of a key": (
        GOOD + "joins:\n  - {table: rain, columns: [time], availability: ahead}\n",
        ["line 11: joins.1.columns.1: `time`, `entity`, and names that begin with _ are taken, found 'time'"],
    ),
    "a column for a channel that is none": (
        GOOD.replace("columns: {level_m", "columns: {level_n"),
        ["line 4: tables.observations.columns: no channel is called 'level_n'; did you mean 'level_m'?"],
    ),
    "a file for a channel that is none": (
        GOOD.replace("format: long, file: levels.csv, entity: station, columns", "format: wide, files").replace(
            "level_m: level", "depth: a.csv"
        ),
        ["line 4: tables.observations.files: no channel is called 'depth'; one of: level_m"],
    ),
    "a channel without a column": (
        GOOD.replace("channels:", "channels:\n  - {name: flow, unit: m3/s}"),
        ["line 4: tables.observations.columns: lacks the channel 'flow'"],
    ),
    "two names": (GOOD + "name: lake\n", ["line 10: the file is called 'river', the dataset 'lake'"]),
    "nothing": ("# to do\n", ["river.yaml is empty"]),
    "a list": ("- a\n- b\n", ["river.yaml holds no keys"]),
    "an alias": (
        GOOD.replace("zone: Europe/Zurich", "zone: &z Europe/Zurich\ncountry: *z"),
        ["line 2: anchors or aliases"],
    ),
    "an alias in brackets": (GOOD + "seasons: [&a [1, 2], *a]\n", ["line 10: anchors or aliases"]),
    "an object": (GOOD + "title: !!python/object/apply:os.system ['true']\n", ["line 10: tags such as"]),
    "a tag": (GOOD + "seasons: !!int foo\n", ["line 10: tags such as"]),
    "brackets without end": (GOOD + "seasons: " + "[" * 3000, ["line 10: nested more than 20 deep"]),
    "a name that is a number": (GOOD + "name: 123\n", ["line 10: a name is text"]),
    "a day that never was": (
        GOOD.replace("step: 1h", "step: 1h\n  start: 2013-02-30"),
        ["line 9: harmonize.start: ", "found '2013-02-30'"],
    ),
    "an edge of the clock without a zone": (
        GOOD.replace("step: 1h", "step: 1h\n  start: 2013-01-02"),
        ["line 9: harmonize.start: the clock's edges carry a zone: 2024-01-01T00:00:00Z"],
    ),
    "a number for a time": (
        GOOD.replace("step: 1h", "step: 1h\n  start: 20130101"),
        ["line 9: harmonize.start: a time is written as 2024-01-31", "found 20130101"],
    ),
    "a clock that ends before it starts": (
        GOOD.replace("step: 1h", "step: 1h\n  start: 2013-01-02T00:00:00Z\n  end: 2013-01-01T00:00:00Z"),
        ["line 7: harmonize: the clock's end is not after its start"],
    ),
    "a time of day for a number": (
        GOOD.replace("look_back: 24", "look_back: 1:30"),
        ["line 9: task.look_back: input should be a valid integer", "found '1:30'"],
    ),
    "an octal number": (
        GOOD.replace("look_back: 24", "look_back: 010"),
        ["line 9: task.look_back: input should be a valid integer", "found '010'"],
    ),
    "no for a number": (
        GOOD.replace("minimum: 0", "minimum: no"),
        ["line 6: channels.1.minimum: input should be a valid number, found 'no'"],
    ),
    "true for a number": (
        GOOD.replace("look_back: 24", "look_back: true"),
        ["line 9: task.look_back: input should be a valid integer, found True"],
    ),
    "a number that is not finite": (
        GOOD.replace("minimum: 0", "minimum: .nan"),
        ["line 6: channels.1.minimum: input should be a finite number"],
    ),
    "a range the wrong way round": (
        GOOD.replace("minimum: 0", "minimum: 1, maximum: 0"),
        ["line 6: channels.1: minimum 1 is above maximum 0"],
    ),
    "an absent value out of range": (
        GOOD.replace("minimum: 0", "minimum: 0, absent: -5"),
        ["line 6: channels.1: absent -5 is outside [0, inf]"],
    ),
    "a channel called as ours are": (GOOD.replace("name: level_m", "name: _step"), ["line 6: channels.1.name: `time`"]),
    "a step without a time of day": (
        GOOD.replace("step: 1h", "step: 7h"),
        ["line 8: harmonize.step: a step divides a day or is several days"],
    ),
    "digits of another script": (
        GOOD.replace("step: 1h", "step: \u0663h"),
        ["line 8: harmonize.step: not a step length"],
    ),
    "a step beyond all time": (
        GOOD.replace("step: 1h", "step: 99999999999d"),
        ["line 8: harmonize.step: not a step length"],
    ),
    "weeks without a season": (
        GOOD.replace("step: 1h", "step: 7d").replace("Europe/Zurich", "UTC"),
        ["steps of 7d have no usual season: state `seasons`"],
    ),
    "days of a place that UTC's days are not": (
        GOOD.replace("step: 1h", "step: 1d"),
        ["steps of 1d are days of UTC, not of Europe/Zurich; if the times are dates, `zone: UTC` keeps them"],
    ),
    "a season of no length": (
        GOOD + "seasons: [0]\n",
        ["line 10: seasons: seasons are whole numbers of steps above 0"],
    ),
    "seasons in disorder": (GOOD + "seasons: [168, 24]\n", ["line 10: seasons: seasons are whole numbers"]),
    "a zone of this machine": (GOOD.replace("Europe/Zurich", "localtime"), ["line 2: zone: no such time zone"]),
    "three shares": (
        GOOD + "split: {ratios: [0.6, 0.2, 0.2]}\n",
        ["line 10: split.ratios: too short, item 4 is missing"],
    ),
    "shares below nothing": (
        GOOD + "split: {ratios: [1.5, -0.5, 0, 0]}\n",
        ["line 10: split.ratios.1: input should be less than or equal to 1, found 1.5"],
    ),
    "no shares": (GOOD + "split: {ratios: null}\n", ["line 10: split: a split has ratios or counts"]),
    "a table that is a path": (
        GOOD.replace("channels:", "  ../../victim/harmonized/manifest: {format: long, file: levels.csv}\nchannels:"),
        ["line 5: tables", "a table is called by lower-case letters"],
    ),
    "a table that is ours": (
        GOOD.replace("channels:", "  manifest: {format: long, file: levels.csv}\nchannels:"),
        ["line 5: tables", "a table is called by lower-case letters"],
    ),
    "a key that is no text": (GOOD + "2: 3\n", ["line 10: unknown key '2'"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_says_line_key_and_what_was_meant(case: str, folder: Path) -> None:
    text, expected = BROKEN[case]
    with pytest.raises(SpecError) as caught:
        load_yaml(write(folder, text))
    for words in expected:
        assert words in str(caught.value)
    assert str(folder) not in str(caught.value)


def test_all_problems_are_listed_at_once_in_the_order_of_lines(folder: Path) -> None:
    text = GOOD.replace("kind: graph", "kind: graf").replace("unit: m,", "unti: m,").replace("horizon: 6", "horizon: 0")
    with pytest.raises(SpecError, match="has 4 problems") as caught:
        load_yaml(write(folder, text))
    lines = [int(x.split(":")[0].removeprefix("  line ")) for x in str(caught.value).splitlines() if "  line " in x]
    assert lines == sorted(lines) == [1, 6, 6, 9]


def test_a_file_name_that_cannot_be_a_dataset_is_refused(folder: Path) -> None:
    with pytest.raises(SpecError, match="not a valid dataset name"):
        load_yaml(write(folder, GOOD, "My River.yaml"))


def test_a_csv_that_is_not_there_fails_raw_and_publishes_nothing(folder: Path, lake: Lake, settings: Settings) -> None:
    write(folder, GOOD.replace("levels.csv", "level.csv"))
    with pytest.raises(Exception, match=r"no file at .*level\.csv"):
        materialize("river", "raw", lake, settings)
    assert lake.stage("river", "raw") is None


def entities(lake: Lake, settings: Settings) -> list[str]:
    for stage in ("raw", "harmonized"):
        assert materialize("river", stage, lake, settings).stage is not None
    return list(lake.read(lake.require("river", "harmonized"), "entities")["entity"])


OBSERVED = "{format: long, file: levels.csv, entity: station, columns: {level_m: level}}"


def test_of_several_ways_the_first_whose_files_are_there_is_taken(folder: Path, lake: Lake, settings: Settings) -> None:
    ways = "{format: wide, file: levels.h5}, " + OBSERVED
    write(folder, GOOD.replace(OBSERVED, f"{{format: first_of, options: [{ways}]}}"))
    assert entities(lake, settings) == ["01", "2", "x"]
    (folder / "levels.csv").unlink()
    with pytest.raises(SourceError, match=r"tables\.observations: no file of any[\s\S]*levels\.h5, levels\.csv"):
        materialize("river", "raw", lake, settings)


def test_names_of_an_array_are_a_file_like_any_other(folder: Path, lake: Lake, settings: Settings) -> None:
    np.savez(folder / "t.npz", data=np.random.default_rng(0).random((400, 2, 1)))
    write(folder, GOOD.replace(OBSERVED, "{format: tensor, file: t.npz, start: 2024-01-01, ids: ids.txt}"))
    with pytest.raises(SourceError, match=r"no file at .*ids\.txt"):
        materialize("river", "raw", lake, settings)
    (folder / "ids.txt").write_text("north\nsouth\n")
    assert entities(lake, settings) == ["north", "south"]


def test_names_in_inline_rows_are_what_is_written(folder: Path, lake: Lake, settings: Settings) -> None:
    text = (folder / "levels.csv").read_text()
    (folder / "levels.csv").write_text(text.replace("\n01,", "\n007,").replace("\nx,", "\nno,"))
    rows = "{entity: 007, lon: 7}, {entity: 2, lon: 8}, {entity: no}"
    write(folder, GOOD.replace("channels:", f"  entities: {{format: inline, rows: [{rows}]}}\nchannels:"))
    assert entities(lake, settings) == ["007", "2", "no"]


def test_exported_and_read_back_the_tables_are_identical(
    enriched: Lake, settings: Settings, home: Path, folder: Path
) -> None:
    raw = enriched.require("synthetic", "raw")
    spec = get_dataset("synthetic").spec
    tables = {t: enriched.read(raw, t) for t in raw.tables}
    files = export(spec, tables, folder, "again")
    assert [f.name for f in files[:2]] == ["again.yaml", "edges.csv"]
    for stage in STEPS:
        assert materialize("again", stage, enriched, settings).stage is not None
    for stage in ("harmonized", "embedded", "enriched"):
        ours, theirs = enriched.require("synthetic", stage), enriched.require("again", stage)
        assert ours.data_version == theirs.data_version, stage
        assert all(enriched.read(ours, t).equals(enriched.read(theirs, t)) for t in ours.tables)
    with pytest.raises(UsageError, match="is there already"):
        export(spec, tables, folder, "again")
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_times_survive_the_export_to_the_microsecond(folder: Path) -> None:
    import polars as pl

    stamp = datetime(2024, 1, 1, 0, 0, 0, 123456, tzinfo=UTC)
    table = pl.DataFrame({"entity": ["a"], "time": [stamp]}, schema_overrides={"time": pl.Datetime("us", "UTC")})
    files = export(get_dataset("beijing-air").spec, {"observations": table}, folder, "one")
    assert "2024-01-01T00:00:00.123456Z" in files[1].read_text()
