"""Drift put into data at a known time is found where and when it is; data without it stay quiet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
from fixtures.live import day
from fixtures.synthetic import make_spec, tables
from typer.testing import CliRunner

from definitions import defs
from stfm_pipeline import decision, points, registry, scoring, training
from stfm_pipeline.cli import app
from stfm_pipeline.datasets.spec import Dataset, Embed
from stfm_pipeline.digest import data_version
from stfm_pipeline.drift import measure_drift
from stfm_pipeline.drift.page import drift_page
from stfm_pipeline.errors import StfmError
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS

DAYS, AT = 280, 231
WHO = "e"
Change = Callable[[pl.DataFrame], pl.DataFrame]
Make = Callable[..., Stage]
AFTER = pl.col("time") >= day(AT)
LEVEL = pl.col("level")


def changed(rows: pl.DataFrame, who: str, to: pl.Expr) -> pl.DataFrame:
    return rows.with_columns(level=pl.when(AFTER & (pl.col("entity") == who)).then(to).otherwise(LEVEL))


def raised(rows: pl.DataFrame) -> pl.DataFrame:
    return changed(rows, WHO, LEVEL + 4)


def noisy(rows: pl.DataFrame) -> pl.DataFrame:
    """A model with a look-back follows a level, and errs more only on what nobody can know."""
    noise = np.random.default_rng(5).normal(0, 6, len(rows))
    return changed(rows, WHO, LEVEL + pl.lit(pl.Series(noise)))


def all_kinds(rows: pl.DataFrame) -> pl.DataFrame:
    """The level of `a` rises by 4, `b` swings four times as much, half of `c` goes missing, `f` comes 5 h later."""
    rng = np.random.default_rng(5)
    noise, lost = pl.lit(pl.Series(rng.normal(0, 4, len(rows)))), pl.lit(pl.Series(rng.random(len(rows)) < 0.5))
    rows = changed(changed(changed(rows, "a", LEVEL + 4), "b", LEVEL + noise), "c", pl.when(~lost).then(LEVEL))
    mine = AFTER & (pl.col("entity") == "f")
    moved = rows.filter(mine).with_columns(time=pl.col("time") + timedelta(hours=5)).filter(pl.col("time") < day(DAYS))
    return pl.concat([rows.filter(~mine), moved])


@pytest.fixture
def make(add_dataset: Callable[[Dataset], Dataset], lake: Lake, settings: Settings) -> Make:
    """Publishes the drift of a dataset of forty weeks, twenty-four of them to train on; each entity is a patch."""

    def made(change: Change = lambda rows: rows, name: str = "weeks", days: int = DAYS) -> Stage:
        add_to(add_dataset, change, name, days)
        for step in STEPS:
            assert materialize(name, step, lake, settings).stage is not None
        outcome = measure_drift(name, lake, settings)
        assert outcome.stage is not None
        assert all(c.passed for c in outcome.checks)
        return outcome.stage

    return made


def add_to(add_dataset: Callable[[Dataset], Dataset], change: Change, name: str, days: int) -> None:
    def read(files: object) -> dict[str, pl.DataFrame]:
        found = tables(days, seed=1)
        entities = found["entities"].with_columns(zone=pl.lit("UTC"))
        return {**found, "entities": entities, "observations": change(found["observations"])}

    spec = make_spec(name, embed=Embed(eigenvectors=3, patch_size=1))
    add_dataset(Dataset(spec=spec, read=read, module="stfm_pipeline.datasets.nyc_airports"))


def patch_of(stage: Stage, entity: str) -> str:
    return next(g for g, names in stage.facts["groups"].items() if names == [entity])


def test_what_changed_is_found_with_its_channel_group_and_date(make: Make, lake: Lake) -> None:
    stage = make(all_kinds)
    found = lake.read(stage, "findings")
    for kind, who, size in (("level", "a", 4), ("scale", "b", 4), ("missing", "c", 0.42), ("phase", "f", 5)):
        mine = found.filter(kind=kind, channel="level", group=patch_of(stage, who)).to_dicts()
        assert len(mine) == 1, (kind, found)
        assert abs(mine[0]["since"] - day(AT)) <= timedelta(days=7)
        assert mine[0]["since"] < mine[0]["alarmed_at"] <= day(AT + 14)
        assert mine[0]["change"] == pytest.approx(size, rel=0.25)
        assert mine[0]["p"] < 0.1
    assert set(found["group"]) <= {patch_of(stage, who) for who in "abcf"} | {"all"}
    assert set(found.filter(kind="missing")["group"]) <= {patch_of(stage, "c"), "all"}
    assert set(found.filter(channel="count")["group"]) <= {patch_of(stage, "f"), "all"}
    alarms = {(a["kind"], a["channel"]) for a in stage.facts["alarms"]}
    assert alarms == set(found.select("kind", "channel").unique().iter_rows())


def test_data_as_usual_raise_no_alarm_and_their_series_are_within_their_range(make: Make, lake: Lake) -> None:
    stage = make()
    assert lake.read(stage, "findings").is_empty()
    assert stage.facts["alarms"] == []
    assert stage.facts["notes"] == ["no champion: its errors are not compared"]
    series = lake.read(stage, "series")
    assert not series["alarm"].any()
    known = series.filter(pl.col("part") == "reference", pl.col("value").is_not_null())
    assert known.filter((pl.col("value") < pl.col("low") - 1e-9) | (pl.col("value") > pl.col("high") + 1e-9)).is_empty()
    lengths = known.filter(pl.col("kind") != "phase").group_by("kind", "channel", "group").len()["len"]
    assert lengths.unique().to_list() == [24]
    assert "Nothing has drifted" in drift_page(stage, lake)


def test_what_comes_later_changes_nothing_before(make: Make, lake: Lake) -> None:
    def end(rows: pl.DataFrame) -> pl.DataFrame:
        last = pl.col("time") >= day(DAYS - 7)
        return rows.with_columns(level=pl.when(last).then(pl.col("level") * 3).otherwise("level"))

    plain, ended = (lake.read(make(c, n), "series").drop("p") for c, n in ((lambda r: r, "plain"), (end, "ended")))
    before = pl.col("time") < day(DAYS - 7)
    assert plain.filter(before).equals(ended.filter(before))
    assert not plain.filter(~before).equals(ended.filter(~before))


def test_a_channel_that_falls_silent_is_missing_and_breaks_nothing(make: Make, lake: Lake) -> None:
    stage = make(lambda rows: rows.with_columns(level=pl.when(AFTER).then(None).otherwise("level")))
    found = lake.read(stage, "findings")
    assert set(found["kind"]) == {"missing"}
    assert set(found["group"]) == set(stage.facts["groups"])
    assert found["now"].to_list() == [1.0] * 7
    silent = lake.read(stage, "series").filter(kind="level", channel="level").filter(pl.col("time") >= day(AT))
    assert silent["value"].null_count() == len(silent)
    assert "–" in drift_page(stage, lake)


def test_too_little_data_is_said_and_no_error(enriched: Lake, settings: Settings) -> None:
    stage = measure_drift("synthetic", enriched, settings).stage
    assert stage is not None
    assert stage.facts["notes"][0] == "too little data: the training part holds 5 whole blocks of 7 d, 8 are needed"
    assert not stage.facts["compared"]
    assert enriched.read(stage, "findings").is_empty()
    assert enriched.read(stage, "series").is_empty()
    assert "Nothing could be compared" in drift_page(stage, enriched)


def test_an_unchanged_dataset_is_not_measured_again(make: Make, lake: Lake, settings: Settings) -> None:
    first = make()
    again = measure_drift("weeks", lake, settings)
    assert again.reused
    assert again.stage == first
    assert len(lake.history("weeks", "drift")) == 1


def test_names_and_stages_that_are_not_there(synthetic: Dataset, lake: Lake, settings: Settings) -> None:
    with pytest.raises(StfmError, match="'synthetic' has no harmonized stage yet"):
        measure_drift("synthetic", lake, settings)
    assert CliRunner().invoke(app, ["drift", "synthetic"]).exit_code == 1
    assert CliRunner().invoke(app, ["drift", "no-such-set"]).exit_code == 2
    assert lake.stage("synthetic", "drift") is None


@pytest.fixture
def hooks() -> Iterator[list[Callable[[str], None]]]:
    yield points.hooks
    points.hooks.clear()


def test_a_crash_between_tables_leaves_the_last_version_whole(
    make: Make, lake: Lake, settings: Settings, hooks: list[Callable[[str], None]], add_dataset: Any
) -> None:
    first = make()
    add_to(add_dataset, raised, "weeks", DAYS)
    for step in STEPS:
        materialize("weeks", step, lake, settings, force=True)

    def crash(point: str) -> None:
        raise OSError(f"no room at {point}")

    hooks.append(crash)
    with pytest.raises(OSError, match="no room at table"):
        measure_drift("weeks", lake, settings)
    now = lake.require("weeks", "drift")
    assert now == first
    assert data_version({t: lake.read(now, t) for t in now.tables}, now.facts) == now.data_version
    hooks.clear()
    after = measure_drift("weeks", lake, settings).stage
    assert after is not None
    assert len(lake.read(after, "findings")) > 0


def test_the_command_and_the_page_say_what_the_tables_say(make: Make, lake: Lake, settings: Settings) -> None:
    stage = make(raised)
    found = lake.read(stage, "findings")
    shown = CliRunner().invoke(app, ["drift", "weeks", "--json"])
    assert shown.exit_code == 0, shown.output
    said = json.loads(shown.stdout)
    assert [f["kind"] for f in said["findings"]] == found["kind"].to_list()
    page = (settings.root / "reports" / "weeks" / "drift.html").read_text()
    assert str(settings.root / "reports" / "weeks" / "drift.html") == said["page"]
    assert f"{len(found)} findings" in page
    level = found.filter(kind="level", group=patch_of(stage, WHO)).to_dicts()[0]
    assert f"+{level['change']:.2f} metres" in page
    assert f"since {level['since'].day} {level['since']:%b}" in page
    assert "<script" not in page
    assert "://" not in page
    plain = CliRunner().invoke(app, ["drift", "weeks"])
    assert "level" in plain.stdout


@pytest.mark.slow
def test_the_champions_errors_rise_and_the_sensor_asks_once(
    make: Make, lake: Lake, settings: Settings, tmp_path: Any
) -> None:
    make(noisy)
    for system in ("constant", "seasonal-naive", "dlinear"):
        training.train_system("weeks", system, lake, settings, progress=False)
    scoring.evaluate_dataset("weeks", lake, settings)
    decision.crown("weeks", lake, settings)
    registry.promote(settings, "weeks", 1)
    sensor = defs.resolve_sensor_def("retrain_on_drift")
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        instance.add_dynamic_partitions("dataset", ["weeks", "never-made"])
        without = sensor.evaluate_tick(dg.build_sensor_context(instance=instance))
        assert not without.run_requests, "drift was measured before there was a champion"
        result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            partition_key="weeks",
            asset_selection=[dg.AssetKey("drift")],
            run_config={"loggers": {"console": {}}},
        )
        (made,) = result.asset_materializations_for_node("drift")
        assert str(made.metadata["page_path"].value).endswith("drift.html")
        stage = lake.require("weeks", "drift")
        assert stage.facts["champion"] == 1
        errors = lake.read(stage, "findings").filter(kind="errors rose", group=patch_of(stage, WHO))
        assert errors["channel"].to_list() == ["level"]
        assert errors["change"][0] > 1.5
        assert abs(errors["since"][0] - day(AT)) <= timedelta(days=7)
        tick = sensor.evaluate_tick(dg.build_sensor_context(instance=instance))
        (request,) = tick.run_requests or []
        assert request.partition_key == "weeks"
        assert request.run_key is not None
        assert "scale of level" in request.tags["stfm/drift"]
        again = sensor.evaluate_tick(dg.build_sensor_context(instance=instance, cursor=tick.cursor))
        assert not again.run_requests
        anew = sensor.evaluate_tick(dg.build_sensor_context(instance=instance))
        assert [r.run_key for r in anew.run_requests or []] == [request.run_key], "and a lost cursor asks with one key"
