"""Retraining: a job to ask for, a schedule, and a sensor that asks when enough has landed."""

import dagster as dg
from pydantic import Field

from assets.common import DATASETS
from assets.landing import IN_PROGRESS
from resources import LakeResource, TrackingResource


class Retraining(dg.Config):
    """Where training starts (`warm`, `scratch`), which systems (empty: those trained before), and how much."""

    start: str = "warm"
    systems: list[str] = Field(default=[])
    budget: str = "quick"
    device: str = "auto"


@dg.op(description="Draws a new split, trains, scores and decides, in a run of its own over the dataset's assets.")
def retrain_dataset(
    context: dg.OpExecutionContext, config: Retraining, lake: LakeResource, tracking: TrackingResource
) -> None:
    from assets.common import relay_logs
    from stfm_pipeline.retrain import retrain

    with relay_logs(context):
        retrain(context.partition_key, lake.open(), tracking.settings(), **config.model_dump())


@dg.job(
    name="retrain",
    partitions_def=DATASETS,
    description="A new split on the present clock, the systems trained again, and a decision on the champion.",
)
def retraining() -> None:
    retrain_dataset()


@dg.schedule(
    job=retraining,
    cron_schedule="0 3 * * 1",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Every Monday 03:00 UTC, each dataset that has a champion is retrained, from its weights.",
)
def weekly_retraining(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
    lake = LakeResource().open()
    names = context.instance.get_dynamic_partitions("dataset")
    trained = [n for n in names if lake.stage(n, "champion") is not None]
    return [dg.RunRequest(run_key=None, partition_key=name) for name in trained]


@dg.sensor(
    job_name="retrain",
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks for a retraining when a dataset has grown by a season, or its `retrain_after`, since a decision.",
)
def enough_new_data(context: dg.SensorEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
    from stfm_pipeline.retrain import due

    def busy(name: str) -> bool:
        asked = dg.RunsFilter(job_name="retrain", statuses=IN_PROGRESS, tags={"dagster/partition": name})
        return bool(context.instance.get_runs(asked, limit=1))

    there = context.instance.get_dynamic_partitions("dataset")
    late = {name: end for name, end in due(LakeResource().open()).items() if name in there}
    free = {name: end for name, end in late.items() if not busy(name)}
    if not free:
        return dg.SkipReason("being retrained" if late else "no dataset has grown enough")
    return [
        dg.RunRequest(run_key=f"{name} {end}", partition_key=name, tags={"asked_by": f"data up to {end}"})
        for name, end in free.items()
    ]
