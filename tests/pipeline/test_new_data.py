"""The daemon's part of what lands: the sensor, the job, and the tables that follow, on a real instance."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from fixtures.live import begin, day, down_the_road, rows, write

from definitions import defs
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.lake import Lake
from stfm_pipeline.parts import folder, name_of
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as found:
        found.add_dynamic_partitions("dataset", ["live", "etth1"])
        yield found


def drop(settings: Settings, name: str, start: float, stop: float) -> Path:
    places = (folder(name_of(s), settings) for s in get_dataset("live").spec.sources)
    place = next(p for p in places if p.name.startswith("observations"))
    path = write(place / name, rows("observations", start, stop))
    past = time.time() - 60
    os.utime(path, (past, past))
    return path


def tick(instance: dg.DagsterInstance, cursor: str | None) -> tuple[dg.SensorResult, str | None]:
    context = dg.build_sensor_context(instance=instance, cursor=cursor)
    result = defs.resolve_sensor_def("landing").evaluate_tick(context)
    return result, result.cursor or cursor


def requested(instance: dg.DagsterInstance, cursor: object) -> tuple[set[tuple[str, str]], object]:
    stages = dg.AssetSelection.assets(*STEPS)
    result = dg.evaluate_automation_conditions(defs=defs, instance=instance, asset_selection=stages, cursor=cursor)
    found = {
        (key.to_user_string(), partition)
        for key in result._requested_partitions_by_asset_key
        for partition in result.get_requested_partitions(key)
    }
    return found, result.cursor


def materialised(instance: dg.DagsterInstance) -> None:
    for stage in STEPS:
        instance.report_runless_asset_event(dg.AssetMaterialization(stage, partition="live"))


def test_a_file_is_taken_in_and_what_was_made_before_follows(
    instance: dg.DagsterInstance, lake: Lake, settings: Settings
) -> None:
    begin(stop=55)
    quiet, cursor = tick(instance, None)
    assert quiet.skip_message == "nothing has landed"
    down_the_road(lake, settings)
    materialised(instance)
    nothing, automation = requested(instance, None)
    assert nothing == set()
    drop(settings, "observations-55.csv", 55, 56)
    drop(settings, "observations-again.csv", 55, 56)
    asked, cursor = tick(instance, cursor)
    assert [r.job_name for r in asked.run_requests or []] == ["take_in"]
    run = defs.resolve_job_def("take_in").execute_in_process(instance=instance, run_config={"loggers": {"console": {}}})
    assert run.success
    told, cursor = tick(instance, cursor)
    assert [(e.asset_key.to_user_string(), e.partition) for e in told.asset_events] == [("landed", "live")]
    assert not told.run_requests
    for event in told.asset_events:
        instance.report_runless_asset_event(event)
    once, cursor = tick(instance, cursor)
    assert once.skip_message == "nothing has landed", "it is said once"
    follows, automation = requested(instance, automation)
    assert follows == {(stage, "live") for stage in STEPS}, "and nothing that was never made"
    result = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        partition_key="live",
        asset_selection=[dg.AssetKey(s) for s in STEPS],
        run_config={"loggers": {"console": {}}},
    )
    assert result.success
    assert lake.require("live", "enriched").since == day(55)
    assert requested(instance, automation)[0] == set()
    assert tick(instance, cursor)[0].skip_message == "nothing has landed"


def test_what_cannot_be_taken_now_is_asked_for_again_after_a_while(
    instance: dg.DagsterInstance, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(stop=55)
    path = drop(settings, "observations-55.csv", 55, 56)
    asked, cursor = tick(instance, None)
    assert asked.run_requests
    again, cursor = tick(instance, cursor)
    assert not again.run_requests
    past = time.time() - 30
    os.utime(path, (past, past))
    other, cursor = tick(instance, cursor)
    assert other.run_requests, "it was written anew"
    monkeypatch.setattr("assets.landing.AGAIN", 0)
    later, _ = tick(instance, cursor)
    assert later.run_requests


def test_a_crash_between_taking_and_telling_loses_nothing(
    instance: dg.DagsterInstance, lake: Lake, settings: Settings
) -> None:
    from stfm_pipeline.landing import take_in

    begin(stop=55)
    down_the_road(lake, settings)
    drop(settings, "observations-55.csv", 55, 56)
    take_in(lake, settings)
    told, cursor = tick(instance, None)
    assert [e.partition for e in told.asset_events] == ["live"]
    assert tick(instance, cursor)[0].skip_message == "nothing has landed"
    down_the_road(lake, settings)
    drop(settings, "observations-56.csv", 56, 57)
    take_in(lake, settings)
    assert [e.partition for e in tick(instance, cursor)[0].asset_events] == ["live"]


def test_one_run_takes_in_at_a_time(instance: dg.DagsterInstance, settings: Settings) -> None:
    begin(stop=55)
    drop(settings, "observations-55.csv", 55, 56)
    job = defs.resolve_job_def("take_in")
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert tick(instance, None)[0].skip_message == "being taken in"
