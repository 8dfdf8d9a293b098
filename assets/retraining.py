"""Retraining: a job to ask for, a schedule, and a sensor that asks when enough has landed."""

import dagster as dg
from pydantic import Field

from assets.common import DATASETS
from assets.landing import IN_PROGRESS
from resources import LakeResource, TrackingResource

# How often the same data ask for a retraining that does not come to a decision.
ATTEMPTS = 3


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

    there = context.instance.get_dynamic_partitions("dataset")
    requests = []
    for name, end in due(LakeResource().open()).items():
        why = f"data up to {end}"
        tried = context.instance.get_runs(
            dg.RunsFilter(job_name="retrain", tags={"dagster/partition": name}), limit=100
        )
        # A run that was killed, or failed, is asked for again.
        times = sum(run.tags.get("asked_by") == why for run in tried)
        if name in there and times < ATTEMPTS and not any(run.status in IN_PROGRESS for run in tried):
            requests.append(dg.RunRequest(run_key=f"{name} {end} {times}", partition_key=name, tags={"asked_by": why}))
    return requests or dg.SkipReason("no dataset has grown enough, or it is being retrained")
