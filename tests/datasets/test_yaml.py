"""A user's dataset in one YAML file: the good one comes down the road, the bad ones say what is wrong and where."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from stfm_pipeline.datasets.catalog import all_datasets, broken_datasets, get_dataset
from stfm_pipeline.datasets.export import export
from stfm_pipeline.datasets.yaml_file import SpecError, load_yaml
from stfm_pipeline.errors import SourceError, UsageError
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import STEPS, materialize, stale_stages
from stfm_pipeline.settings import Settings

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
        ["line 11: joins.1: 'time' says whose or of when a row is"],
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
    "an alias": (GOOD.replace("zone: Europe/Zurich", "zone: &z Europe/Zurich\ncountry: *z"), ["anchors or aliases"]),
    "an object": (GOOD + "title: !!python/object/apply:os.system ['true']\n", ["not YAML"]),
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
