"""The daemon's part of retraining: the sensor asks until a decision comes, three times, and not beside a run."""

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
    result = defs.resolve_sensor_def("enough_new_data")(dg.build_sensor_context(instance=instance))
    assert isinstance(result, list | dg.SkipReason)
    return [(r.run_key, r.partition_key) for r in result] if isinstance(result, list) else []


def test_a_season_more_than_the_last_decision_asks_until_it_is_answered(
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
    job = defs.resolve_job_def("retrain")
    tags = {"dagster/partition": "live", "asked_by": f"data up to {end}"}
    for times in range(3):
        assert asked(instance) == [(f"live {end} {times}", "live")]
        run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
        assert asked(instance) == [], "one is running"
        instance.report_run_failed(run)
    assert asked(instance) == [], "three of them failed: more of the same would, too"
    land(rows("observations", 56, 56.5), "observations-56.csv", lake, settings)
    down_the_road(lake, settings)
    assert len(asked(instance)) == 1, "other data are another occasion"


def test_the_job_and_the_schedule() -> None:
    assert defs.resolve_job_def("retrain").partitions_def == dg.DynamicPartitionsDefinition(name="dataset")
    assert defs.resolve_schedule_def("weekly_retraining").job_name == "retrain"
    sensor = defs.resolve_sensor_def("enough_new_data")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == 300
