"""The daemon's part of retraining: the sensor asks once per amount of data, and not beside a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from fixtures.live import begin, day, down_the_road, land, rows

from definitions import defs
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as found:
        found.add_dynamic_partitions("dataset", ["live"])
        yield found


def asked(instance: dg.DagsterInstance) -> list[tuple[str | None, str | None]]:
    context = dg.build_sensor_context(instance=instance, repository_def=defs.get_repository_def())
    result = defs.resolve_sensor_def("enough_new_data").evaluate_tick(context)
    return [(r.run_key, r.partition_key) for r in result.run_requests or []]


def test_a_season_more_than_the_last_decision_asks_once(
    instance: dg.DagsterInstance, lake: Lake, settings: Settings
) -> None:
    begin(stop=55)
    down_the_road(lake, settings)
    assert asked(instance) == [], "nothing was ever decided"
    until = {"until": str(lake.require("live", "harmonized").facts["end"])}
    decision = {"decision": pl.DataFrame({"x": [1]})}
    lake.publish("live", "champion", decision, fingerprint="x", facts=until, inputs={})
    assert asked(instance) == []
    land(rows("observations", 55, 55.5), "observations-55.csv", lake, settings)
    down_the_road(lake, settings)
    assert asked(instance) == [], "half a season"
    land(rows("observations", 55.5, 56), "observations-55b.csv", lake, settings)
    down_the_road(lake, settings)
    end = f"{day(56):%Y-%m-%dT%H:%M:%S.000000}"
    assert asked(instance) == [(f"live {end}", "live")], "the key makes it once per amount of data"
    job = defs.resolve_job_def("retrain")
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": "live"})
    assert asked(instance) == [], "one is running"


def test_the_job_and_the_schedule() -> None:
    assert defs.resolve_job_def("retrain").partitions_def == dg.DynamicPartitionsDefinition(name="dataset")
    assert defs.resolve_schedule_def("weekly_retraining").job_name == "retrain"
    sensor = defs.resolve_sensor_def("enough_new_data")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == 300
