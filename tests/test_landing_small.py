"""What lands on a small dataset: nothing is taken that the road would refuse, and what is taken stays as it was."""

from __future__ import annotations

import os
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fixtures.live import check_whole, down_the_road
from fixtures.synthetic import START

from stfm_pipeline import landing
from stfm_pipeline.datasets.catalog import folder, get_dataset
from stfm_pipeline.errors import SourceError
from stfm_pipeline.lake import Lake
from stfm_pipeline.parts import ASIDE, landed, name_of
from stfm_pipeline.parts import folder as landing_folder
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS

HEAD = "entity,time,v\n"
YAML = """\
kind: graph
zone: UTC
tables:
  observations: {format: long, file: NAME.csv}
channels: [{name: v, unit: m}]
harmonize: {step: 1h}
task: {look_back: 6, horizon: 3}
"""
JOINED = """\
joins: [{table: weather, columns: [t], availability: past, via: edges, tolerance: 3h}]
"""
WEATHER = "  weather: {format: long, file: w.csv}\n  edges: {format: edges, file: e.csv, weight: weight}\nchannels"


def at(hour: float) -> str:
    return f"{START + timedelta(hours=hour):%Y-%m-%dT%H:%M:%SZ}"


def lines(start: int, stop: int, entities: str = "ab") -> str:
    return "".join(f"{e},{at(h)},{h % 24}\n" for h in range(start, stop) for e in entities)


def small(yaml: str = YAML, **files: str) -> None:
    """Write a dataset of 1000 hours and two entities, or of other files."""
    folder().mkdir(parents=True, exist_ok=True)
    (folder() / "small.yaml").write_text(yaml.replace("NAME", "small"))
    for file, content in (files or {"small": HEAD + lines(0, 1000)}).items():
        (folder() / f"{file}.csv").write_text(content)


def drop(lake: Lake, settings: Settings, file: str, content: str) -> landing.Taken:
    path = settings.root / "dropped" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    landing.put("small", [path], settings)
    (taken,) = landing.take_in(lake, settings)
    return taken


def place(settings: Settings) -> Path:
    found = landing_folder(name_of(get_dataset("small").spec.sources[0]), settings)
    found.mkdir(parents=True, exist_ok=True)
    return found


def test_entities_that_report_at_other_minutes_of_the_step_keep_every_value(lake: Lake, settings: Settings) -> None:
    small()
    down_the_road(lake, settings, name="small")
    later = "".join(f"a,{at(h)},1\nb,{at(h + 1 / 12)},2\n" for h in range(1000, 1010))
    assert drop(lake, settings, "small-1.csv", HEAD + later).accepted
    down_the_road(lake, settings, name="small")
    signal = lake.read(lake.require("small", "harmonized"), "signal").tail(10)
    assert signal["values"].to_list() == [[1, 2]] * 10
    check_whole(lake, settings, "small")


def test_a_file_of_some_entities_leaves_a_table_that_can_be_made_anew(lake: Lake, settings: Settings) -> None:
    small()
    down_the_road(lake, settings, name="small")
    for hour, who in ((1000, "a"), (1001, "ab"), (1002, "b")):
        assert drop(lake, settings, f"small-{hour}.csv", HEAD + lines(hour, hour + 1, who)).accepted
        down_the_road(lake, settings, name="small")
    assert drop(lake, settings, "small-late.csv", HEAD + lines(1000, 1001, "b")).accepted
    down_the_road(lake, settings, name="small")
    check_whole(lake, settings, "small")
    for step in STEPS:
        assert materialize("small", step, lake, settings, new_split=True).stage is not None
    observed = lake.read(lake.require("small", "harmonized"), "signal")["observed"].tail(3).to_list()
    assert observed == [[True, True], [True, True], [False, True]]


STRANGER = f"c,{at(1000)},5\n"
TWICE = f"a,{at(1000)},1\na,{at(1000.2)},2\n"
LISTED = YAML.replace("channels", "  entities: {format: places, file: who.csv}\nchannels")


@pytest.mark.parametrize("until", [None, "raw", "harmonized", "enriched"])
@pytest.mark.parametrize(("bad", "why"), [(STRANGER, "offenders: c"), (TWICE, "share an entity and a step")])
def test_however_far_a_dataset_was_made_a_file_that_it_cannot_use_is_set_aside(
    lake: Lake, settings: Settings, until: str | None, bad: str, why: str
) -> None:
    small(yaml=LISTED, small=HEAD + lines(0, 1000), who="entity,lon,lat\na,8,47\nb,9,48\n")
    for step in STEPS if until else ():
        assert materialize("small", step, lake, settings).stage
        if step == until:
            break
    taken = drop(lake, settings, "small-1.csv", HEAD + bad)
    assert not taken.accepted
    assert why in taken.reason
    down_the_road(lake, settings, name="small")


def test_every_reader_of_the_source_must_be_able_to_use_it_also_one_never_made(lake: Lake, settings: Settings) -> None:
    small()
    (folder() / "two.yaml").write_text(YAML.replace("NAME", "small") + "facts: {entities: 2}\n")
    down_the_road(lake, settings, name="small")
    taken = drop(lake, settings, "small-1.csv", HEAD + STRANGER)
    assert not taken.accepted
    assert "two" in taken.reason
    assert "expected 2, found 3" in taken.reason


def test_a_dataset_that_has_gone_on_may_be_longer_than_it_says(lake: Lake, settings: Settings) -> None:
    small(yaml=YAML + "facts: {steps: 1000}\n")
    assert drop(lake, settings, "small-1.csv", HEAD + lines(1000, 1002)).accepted
    down_the_road(lake, settings, name="small")
    assert drop(lake, settings, "small-2.csv", HEAD + lines(5, 6).replace(",5\n", ",6\n")).accepted
    down_the_road(lake, settings, name="small")
    check_whole(lake, settings, "small")


def test_a_stray_row_from_long_ago_is_set_aside(lake: Lake, settings: Settings) -> None:
    small()
    down_the_road(lake, settings, name="small")
    taken = drop(lake, settings, "small-1.csv", HEAD + f"a,{at(-3000)},1\n")
    assert not taken.accepted
    assert "little but a gap" in taken.reason


def test_edges_that_side_information_cannot_go_along_are_set_aside(lake: Lake, settings: Settings) -> None:
    weather = "entity,time,t\n" + "".join(f"a,{at(h)},{h % 7}\n" for h in range(1000))
    files = {"small": HEAD + lines(0, 1000), "w": weather, "e": "source,target,weight\na,b,1\n"}
    small(yaml=YAML.replace("channels", WEATHER) + JOINED, **files)
    down_the_road(lake, settings, name="small")
    bad = drop(lake, settings, "e-1.csv", "source,target,weight\nb,a,1e300\n")
    good = drop(lake, settings, "e-2.csv", "source,target,weight\nb,a,2\n")
    assert good.accepted
    down_the_road(lake, settings, name="small")
    assert not bad.accepted, bad.reason


def test_a_file_that_contradicts_itself_is_set_aside(lake: Lake, settings: Settings) -> None:
    small()
    down_the_road(lake, settings, name="small")
    taken = drop(lake, settings, "small-1.csv", HEAD + f"a,{at(1000)},1\na,{at(1000)},100\n")
    assert "says different things of the same" in taken.reason
    assert drop(lake, settings, "small-2.csv", HEAD + f"a,{at(1000)},1\na,{at(1000)},1\n").accepted


def test_a_table_of_several_files_says_that_it_cannot_go_on(lake: Lake, settings: Settings) -> None:
    yaml = YAML.replace("format: long, file: NAME.csv", "format: wide, files: {v: v.csv, w: w.csv}, time: time")
    yaml = yaml.replace("{name: v, unit: m}", "{name: v, unit: m}, {name: w, unit: m}")
    wide = "time,a,b\n" + "".join(f"{at(h)},{h % 24},1\n" for h in range(1000))
    small(yaml=yaml, v=wide, w=wide)
    down_the_road(lake, settings, name="small")
    taken = drop(lake, settings, "v-1.csv", f"time,a,b\n{at(1000)},1,2\n")
    assert not taken.accepted
    assert "made of several files" in taken.reason


def test_whoever_still_holds_the_dropped_file_cannot_write_into_what_was_taken(lake: Lake, settings: Settings) -> None:
    small()
    down_the_road(lake, settings, name="small")
    mine = settings.root / "mine.csv"
    mine.write_text(HEAD + lines(1000, 1002))
    os.link(mine, place(settings) / "small-1.csv")
    (taken,) = landing.take_in(lake, settings, settled=0)
    assert taken.accepted
    with mine.open("a") as handle:
        handle.write(lines(1002, 1010))
    assert drop(lake, settings, "small-2.csv", HEAD + lines(5, 6).replace(",5\n", ",6\n")).accepted
    assert down_the_road(lake, settings, name="small")["harmonized"].facts["steps"] == 1002


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who writes a file")
def test_a_file_that_somebody_has_open_for_writing_is_not_looked_at(lake: Lake, settings: Settings) -> None:
    small()
    down_the_road(lake, settings, name="small")
    path, past = place(settings) / "small-1.csv", time.time() - 60
    with path.open("w") as slow:
        slow.write(HEAD + lines(1000, 1001))
        slow.flush()
        os.utime(path, (past, past))
        assert landing.waiting(settings) == {}
        slow.write(lines(1001, 1002))
    os.utime(path, (past, past))
    (taken,) = landing.take_in(lake, settings)
    assert taken.accepted
    assert down_the_road(lake, settings, name="small")["harmonized"].facts["steps"] == 1002


def test_a_home_that_was_moved_keeps_what_landed(
    lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    small()
    down_the_road(lake, settings, name="small")
    drop(lake, settings, "small-1.csv", HEAD + lines(1000, 1002))
    down_the_road(lake, settings, name="small")
    moved = settings.root.with_name("moved")
    settings.root.rename(moved)
    monkeypatch.setenv("STFM_HOME", str(moved))
    other = Settings()
    there = Lake(other.lake_uri)
    assert len(landed(get_dataset("small").spec.sources, other)) == 1
    assert materialize("small", "raw", there, other, force=True).stage is not None
    shutil.rmtree(other.landing)
    with pytest.raises(SourceError, match="what had landed for 'small' is not there"):
        materialize("small", "raw", there, other)


def test_a_dataset_file_with_a_mistake_costs_no_other_file(lake: Lake, settings: Settings) -> None:
    small()
    down_the_road(lake, settings, name="small")
    path = place(settings) / "small-1.csv"
    path.write_text(HEAD + lines(1000, 1001))
    right = (folder() / "small.yaml").read_text()
    (folder() / "small.yaml").write_text(right.replace("zone", "zoen"))
    (taken,) = landing.take_in(lake, settings, settled=0)
    assert not taken.accepted
    assert "stays where it is" in taken.reason
    assert not list(settings.landing.glob(f"*/{ASIDE}/*"))
    (folder() / "small.yaml").write_text(right)
    assert landing.take_in(lake, settings, settled=0)[0].accepted


def test_what_comes_along_edges_is_the_same_however_few_steps_come_at_once(lake: Lake, settings: Settings) -> None:
    names = [f"e{i:02d}" for i in range(48)]
    hours = 24 * 36

    def table(column: str, who: list[str], start: int, stop: int) -> str:
        values = np.random.default_rng(start).normal(10, 3, (stop - start, len(who))).round(2)
        body = [f"{e},{at(start + i)},{values[i, k]}" for i in range(stop - start) for k, e in enumerate(who)]
        return "\n".join([f"entity,time,{column}", *body, ""])

    rng = np.random.default_rng(0)
    pairs = [(a, b, float(rng.random())) for a in names for b in rng.choice(names, 12, replace=False) if a != b]
    edges = pl.DataFrame(pairs, schema=["source", "target", "weight"], orient="row").write_csv()
    files = {"small": table("v", names, 0, hours), "w": table("t", names[::2], 0, hours), "e": edges}
    small(yaml=YAML.replace("channels", WEATHER) + JOINED, **files)
    down_the_road(lake, settings, name="small")
    for count in (1, 1, 2, 3, 1):
        assert drop(lake, settings, f"small-{hours}.csv", table("v", names, hours, hours + count)).accepted
        assert drop(lake, settings, f"w-{hours}.csv", table("t", names[::2], hours, hours + count)).accepted
        hours += count
        down_the_road(lake, settings, name="small")
        assert lake.require("small", "enriched").since is not None
    check_whole(lake, settings, "small")
