"""What lands is taken or set aside, and tables that go on are the tables computed whole."""

from __future__ import annotations

import os
import re
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fixtures.live import TIMED, begin, check_whole, contents, day, down_the_road, land, rows, write

from stfm_pipeline import landing
from stfm_pipeline.datasets.catalog import ends, get_dataset, stop_at
from stfm_pipeline.errors import UsageError
from stfm_pipeline.lake import Lake
from stfm_pipeline.parts import ASIDE, accepted, folder, landed, name_of
from stfm_pipeline.road import materialize, stale_stages
from stfm_pipeline.settings import Settings
from stfm_pipeline.stage import NEVER


def place_of(settings: Settings, file: str = "observations.csv") -> Path:
    sources = get_dataset("live").spec.sources
    return folder(next(name_of(s) for s in sources if name_of(s).startswith(file)), settings)


def set_aside(settings: Settings) -> dict[str, str]:
    return {p.name.removesuffix(".reason.txt"): p.read_text() for p in settings.landing.glob(f"*/{ASIDE}/*.reason.txt")}


def since(lake: Lake, stage: str = "harmonized") -> datetime | None:
    return lake.require("live", stage).since


def test_days_that_land_one_by_one_end_as_the_whole_does(lake: Lake, settings: Settings) -> None:
    begin(stop=57)
    first = down_the_road(lake, settings)
    assert first["harmonized"].facts["steps"] == 57 * 24
    for start in (57, 58, 59):
        for table in TIMED:
            (taken,) = land(rows(table, start, start + 1), f"{table}-{start}.csv", lake, settings)
            assert taken.accepted, taken.reason
            assert taken.datasets == ("live",)
        stages = down_the_road(lake, settings)
        assert stages["harmonized"].facts["steps"] == (start + 1) * 24
        assert since(lake) == day(start)
    check_whole(lake, settings)
    split = lake.read(lake.require("live", "harmonized"), "split")
    begin(stop=60, name="once")
    once = contents(lake, down_the_road(lake, settings, name="once"))
    mine = contents(lake, stages)
    assert mine["raw"]["observations"].equals(once["raw"]["observations"].sort("time", maintain_order=True))
    assert mine["harmonized"]["signal"].equals(once["harmonized"]["signal"])
    assert mine["embedded"]["calendar"].equals(once["embedded"]["calendar"])
    for side in ("past", "ahead"):
        assert mine["enriched"][side].equals(once["enriched"][side])
    assert split["end"][0] == first["harmonized"].facts["parts"]["train"][1] * timedelta(hours=1) + day(0)


def test_what_is_written_is_in_proportion_to_what_landed(lake: Lake, settings: Settings) -> None:
    begin(stop=55)
    down_the_road(lake, settings)
    land(rows("observations", 55, 55.5), "observations-a.csv", lake, settings)
    down_the_road(lake, settings)
    files = {p: p.stat().st_size for p in Path(lake.uri).rglob("*.parquet")}
    land(rows("observations", 55.5, 56), "observations-b.csv", lake, settings)
    down_the_road(lake, settings)
    new = {p: p.stat().st_size for p in Path(lake.uri).rglob("*.parquet") if p not in files}
    tables = {p.parent.relative_to(lake.uri).as_posix() for p in new if p.parent.name != "manifest"}
    assert tables == {
        "live/raw/observations",
        "live/raw/landed",
        "live/harmonized/signal",
        "live/harmonized/split",
        "live/embedded/calendar",
        "live/enriched/past",
        "live/enriched/ahead",
    }
    assert all(pl.read_parquet(p).height <= 72 for p in new if p.parent.name not in ("manifest", "split", "calendar"))


def test_overlap_changes_nothing_and_a_correction_what_follows_it(lake: Lake, settings: Settings) -> None:
    begin(stop=55)
    down_the_road(lake, settings)
    assert land(rows("observations", 54, 56), "observations-overlap.csv", lake, settings)[0].accepted
    down_the_road(lake, settings)
    assert since(lake) == day(55)
    wrong = rows("observations", 53, 53.25).with_columns(level=pl.col("level") + 1, count=None)
    assert land(wrong, "observations-mended.csv", lake, settings)[0].accepted
    down_the_road(lake, settings)
    assert since(lake) == day(53)
    observed = lake.read(lake.require("live", "raw"), "observations").filter(pl.col("time") < day(53.25))
    known = rows("observations", 53, 53.25).sort("time", maintain_order=True)
    mended = observed.filter(pl.col("time") >= day(53))
    assert (mended["level"] - known["level"]).drop_nulls().to_list() == pytest.approx([1] * known["level"].count())
    assert mended["count"].equals(known["count"]), "an empty cell says nothing"
    check_whole(lake, settings)


def test_late_rows_are_put_where_they_belong(lake: Lake, settings: Settings) -> None:
    begin(stop=54)
    down_the_road(lake, settings)
    land(rows("observations", 55, 56), "observations-55.csv", lake, settings)
    down_the_road(lake, settings)
    land(rows("observations", 54, 55), "observations-54.csv", lake, settings)
    down_the_road(lake, settings)
    assert since(lake) == day(54)
    check_whole(lake, settings)
    signal = lake.read(lake.require("live", "harmonized"), "signal")
    begin(stop=56, name="once")
    assert signal.equals(contents(lake, down_the_road(lake, settings, name="once"))["harmonized"]["signal"])


def test_a_correction_inside_the_training_part_fits_everything_anew(lake: Lake, settings: Settings) -> None:
    begin(stop=55)
    down_the_road(lake, settings)
    scaler = lake.read(lake.require("live", "harmonized"), "scaler")
    wrong = rows("observations", 10, 12).with_columns(level=pl.col("level") * 3)
    land(wrong, "observations-10.csv", lake, settings)
    down_the_road(lake, settings)
    assert since(lake) is None
    assert not lake.read(lake.require("live", "harmonized"), "scaler").equals(scaler)
    check_whole(lake, settings)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_lands_in_whatever_order_the_tables_are_those_computed_whole(
    lake: Lake, settings: Settings, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    begin(stop=50)
    down_the_road(lake, settings)
    for number in range(5):
        table = str(rng.choice(TIMED))
        start = float(rng.choice([38, 45, 49.5, 50, 52])) + rng.integers(0, 24) / 24
        found = rows(table, start, start + float(rng.choice([0.25, 1, 3])))
        found = found.sample(fraction=float(rng.uniform(0.4, 1)), shuffle=True, seed=int(rng.integers(1000)))
        if rng.random() < 0.4:
            found = found.with_columns(pl.selectors.float() + 0.5)
        taken = land(found, f"{table}-{number}.csv", lake, settings)
        assert taken[0].accepted, taken[0].reason
        if rng.random() < 0.7:
            down_the_road(lake, settings)
    down_the_road(lake, settings)
    check_whole(lake, settings)


def test_a_file_that_is_not_in_the_order_of_time_is_put_into_it_once(lake: Lake, settings: Settings) -> None:
    begin(stop=55, in_order=False)
    down_the_road(lake, settings)
    for start, known in ((55, None), (56, day(56))):
        land(rows("observations", start, start + 1), f"observations-{start}.csv", lake, settings)
        down_the_road(lake, settings)
        assert since(lake) == known
    check_whole(lake, settings)


def test_a_new_entity_comes_after_those_known(lake: Lake, settings: Settings) -> None:
    begin(stop=55)
    down_the_road(lake, settings)
    stranger = rows("observations", 55, 56).filter(entity="a").with_columns(entity=pl.lit("z"))
    (taken,) = land(stranger, "observations-z.csv", lake, settings)
    assert not taken.accepted
    assert "the entities table lacks" in taken.reason
    there = pl.DataFrame({"entity": ["z"], "lon": [9.5], "lat": [49.0], "zone": ["Europe/Zurich"], "text": ["Z."]})
    (refused,) = land(there, "entities-z.csv", lake, settings)
    assert "expected 6, found 7" in refused.reason
    spec = settings.root / "datasets" / "live.yaml"
    spec.write_text(re.sub(r"facts:.*(\n .*)*", "facts: {}", spec.read_text()))
    assert land(there, "entities-zz.csv", lake, settings)[0].accepted
    assert land(stranger, "observations-zz.csv", lake, settings)[0].accepted
    assert down_the_road(lake, settings)["harmonized"].facts["entities"] == 7
    check_whole(lake, settings)


def test_the_same_bytes_again_are_set_aside(lake: Lake, settings: Settings) -> None:
    begin(stop=55)
    down_the_road(lake, settings)
    frame = rows("observations", 55, 56)
    assert land(frame, "observations-a.csv", lake, settings)[0].accepted
    down_the_road(lake, settings)
    (again,) = land(frame, "observations-b.csv", lake, settings)
    assert not again.accepted
    assert "the same bytes as observations-a.csv" in again.reason
    assert stale_stages("live", lake) == []
    assert set(set_aside(settings)) == {"observations-b.csv"}


BAD = {
    "empty": (b"", "is empty"),
    "no rows": (b"entity,time,count,level\n", "no row"),
    "other columns": (b"who,when\na,2023-04-16\n", "lacks columns"),
    "text for a number": (b"entity,time,count,level\na,2023-04-16T00:00:00Z,many,1\n", "many"),
    "no table": (b"\x00\x01\x02\xff" * 50, ""),
    "the future": (b"entity,time,count,level\na,2199-04-16T00:00:00Z,1,1\n", "future"),
    "a stranger": (b"entity,time,count,level\nnobody,2023-04-16T00:00:00Z,1,1\n", "lacks"),
    "twice in a step": (
        b"entity,time,count,level\na,2023-04-16T00:00:00Z,1,1\na,2023-04-16T00:10:00Z,2,2\n",
        "share an entity and a step",
    ),
    "times that are none": (b"entity,time,count,level\na,yesterday,1,1\n", ""),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_cannot_be_used_is_set_aside_with_its_reason_and_nothing_changes(
    lake: Lake, settings: Settings, case: str
) -> None:
    begin(stop=55)
    stages = down_the_road(lake, settings)
    content, why = BAD[case]
    path = settings.root / "dropped" / "observations-bad.csv"
    path.parent.mkdir()
    path.write_bytes(content)
    landing.put("live", [path], settings)
    (taken,) = landing.take_in(lake, settings)
    assert not taken.accepted
    assert why in taken.reason
    assert "Traceback" not in taken.reason
    reasons = set_aside(settings)
    assert why in reasons["observations-bad.csv"]
    aside = place_of(settings) / ASIDE / "observations-bad.csv"
    assert aside.read_bytes() == content, "nothing is lost"
    assert {n: s.data_version for n, s in down_the_road(lake, settings).items()} == {
        n: s.data_version for n, s in stages.items()
    }
    good = land(rows("observations", 55, 56), "observations-good.csv", lake, settings)
    assert good[0].accepted


def test_names_say_which_file_goes_on(lake: Lake, settings: Settings) -> None:
    begin(stop=55)
    with pytest.raises(UsageError, match=r"begins with one of.*observations") as caught:
        landing.put("live", [write(settings.root / "x.csv", rows("observations", 55, 56))], settings)
    assert "rename it" in str(caught.value)
    with pytest.raises(UsageError, match="no file at"):
        landing.put("live", [settings.root / "observations-gone.csv"], settings)
    nobody = settings.landing / "nobody"
    nobody.mkdir(parents=True)
    (nobody / "a.csv").write_text("x\n1\n")
    (taken,) = landing.take_in(lake, settings, settled=0)
    assert "no dataset reads a source 'nobody'" in taken.reason


def test_a_file_that_is_still_being_written_is_left_alone(lake: Lake, settings: Settings) -> None:
    begin(stop=55)
    down_the_road(lake, settings)
    place = place_of(settings)
    half = write(place / "observations-1.csv", rows("observations", 55, 56))
    write(place / "observations-2.csv.part", rows("observations", 55, 56))
    write(place / ".observations-3.csv", rows("observations", 55, 56))
    assert landing.take_in(lake, settings) == []
    past = time.time() - 60
    os.utime(half, (past, past))
    assert [t.name for t in landing.take_in(lake, settings)] == ["observations-1.csv"]


def test_a_file_taken_whose_first_name_is_still_there_is_no_repeat(lake: Lake, settings: Settings) -> None:
    begin(stop=55)
    down_the_road(lake, settings)
    land(rows("observations", 55, 56), "observations-1.csv", lake, settings)
    (part,) = landed(get_dataset("live").spec.sources, settings)
    place = place_of(settings)
    os.link(part.path, place / "observations-1.csv")
    (place / "accepted" / ".000002").mkdir()
    (taken,) = landing.take_in(lake, settings, settled=0)
    assert taken.accepted
    assert not (place / "observations-1.csv").exists()
    assert not (place / "accepted" / ".000002").exists()
    assert len(accepted(place.name, settings)) == 1
    assert set_aside(settings) == {}


def test_one_file_feeds_every_dataset_that_reads_the_source(lake: Lake, settings: Settings) -> None:
    begin(stop=55)
    shared = settings.root / "datasets" / "live.yaml"
    other = shared.read_text().replace("name: live\n", "name: other\n", 1)
    (settings.root / "datasets" / "other.yaml").write_text(other)
    for name in ("live", "other"):
        down_the_road(lake, settings, name=name)
    (taken,) = land(rows("observations", 55, 56), "observations-1.csv", lake, settings)
    assert taken.datasets == ("live", "other")
    assert set(landing.behind(lake, settings)) == {"live", "other"}
    for name in ("live", "other"):
        assert down_the_road(lake, settings, name=name)["harmonized"].facts["steps"] == 56 * 24
    assert landing.behind(lake, settings) == {}


def test_a_dataset_that_stops_early_goes_on_with_what_lands(lake: Lake, settings: Settings) -> None:
    begin(stop=60)
    new_york = timezone(timedelta(hours=-5))
    stop_at("live", day(50).astimezone(new_york))
    assert ends() == {"live": day(50)}
    assert get_dataset("live").spec.end == day(50)
    stages = down_the_road(lake, settings)
    assert stages["harmonized"].facts["steps"] == 50 * 24
    assert stages["raw"].facts["end"] < str(day(50))
    for table in TIMED:
        assert land(rows(table, 50, 52), f"{table}-50.csv", lake, settings)[0].accepted
    assert down_the_road(lake, settings)["harmonized"].facts["steps"] == 52 * 24
    check_whole(lake, settings)
    stop_at("live", None)
    assert ends() == {}
    with pytest.raises(UsageError, match="no dataset is called"):
        stop_at("lives", day(50))


def test_a_dense_source_goes_on(lake: Lake, settings: Settings) -> None:
    """A wide table: a row per time, a column per entity; what lands may name its columns in another order."""
    there = settings.root / "datasets"
    there.mkdir(parents=True)
    hours = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=h) for h in range(24 * 40)]
    rng = np.random.default_rng(0)
    whole = pl.DataFrame({"time": hours, **{n: rng.normal(size=len(hours)).round(3) for n in "abc"}})
    write(there / "wide.csv", whole[: 24 * 37])
    (there / "near.csv").write_text("source,target,weight\na,b,1\nb,c,2\n")
    (there / "live.yaml").write_text(
        "kind: graph\nzone: UTC\ntables:\n  observations: {format: wide, file: wide.csv, time: time}\n"
        "  edges: {format: edges, file: near.csv, weight: weight}\n"
        "channels: [{name: y, unit: pieces}]\nharmonize: {step: 1h}\ntask: {look_back: 24, horizon: 6}\n"
    )
    down_the_road(lake, settings)
    later = whole[24 * 37 :].select("time", "c", "a", "b")
    assert land(later, "wide-1.csv", lake, settings)[0].accepted
    stages = down_the_road(lake, settings)
    assert since(lake, "raw") == hours[24 * 37]
    assert stages["raw"].facts["dense_observations"] == ["y"]
    check_whole(lake, settings)
    signal = lake.read(lake.require("live", "harmonized"), "signal")
    values = np.array(signal["values"].to_list(), np.float32)
    assert np.array_equal(values, whole.select("a", "b", "c").to_numpy().astype(np.float32))


def test_where_the_rows_before_were_swept_everything_is_computed_whole(lake: Lake, settings: Settings) -> None:
    begin(stop=54)
    down_the_road(lake, settings)
    for start in (54, 53):
        land(rows("observations", start, start + 2), f"observations-{start}.csv", lake, settings)
        wrong = rows("observations", 53, 53.5).with_columns(level=pl.col("level") + start)
        land(wrong, f"observations-wrong-{start}.csv", lake, settings)
        materialize("live", "raw", lake, settings)
    lake.sweep("live", "raw", [])
    down_the_road(lake, settings)
    assert since(lake) is None
    check_whole(lake, settings)


def test_nothing_new_is_said_to_be_nothing(lake: Lake, settings: Settings) -> None:
    begin(stop=55)
    before = down_the_road(lake, settings)
    assert land(rows("observations", 54, 55), "observations-known.csv", lake, settings)[0].accepted
    after = down_the_road(lake, settings)
    assert after["raw"].since == NEVER
    assert {**after["raw"].tables, "landed": 0} == {**before["raw"].tables, "landed": 0}
    assert [after[n].tables for n in list(after)[1:]] == [before[n].tables for n in list(before)[1:]]
    check_whole(lake, settings)
