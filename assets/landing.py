"""What lands: a sensor that watches the folders, a job that takes files in, and the event that raw waits for."""

import hashlib
import json
import time
from datetime import UTC, datetime, timedelta

import dagster as dg

from assets.common import DATASETS
from resources import LakeResource, TrackingResource

AGAIN = 600.0
IN_PROGRESS = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]

landed = dg.AssetSpec(
    "landed",
    description="Files that were taken in since the source's archive was made, each checked by contract.",
    partitions_def=DATASETS,
    group_name="raw_data",
    kinds={"file"},
)


@dg.op(description="Checks every file that waits in a landing folder, then takes it or sets it aside with its reason.")
def take_in_files(context: dg.OpExecutionContext, lake: LakeResource, tracking: TrackingResource) -> None:
    from assets.common import relay_logs
    from stfm_pipeline.landing import take_in

    with relay_logs(context):
        taken = take_in(lake.open(), tracking.settings())
    rows = [dg.TableRecord({"source": t.source, "file": t.name, "taken": t.accepted, "why": t.reason}) for t in taken]
    context.log_event(
        dg.AssetObservation("landed", metadata={"files": dg.MetadataValue.table(rows)})
        if rows
        else dg.AssetObservation("landed", description="no file waited")
    )


@dg.job(description="Takes in what has landed.")
def take_in() -> None:
    take_in_files()


@dg.sensor(
    job_name="take_in",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Has files taken in that lie in landing folders, and tells raw of datasets that are behind.",
)
def landing(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.landing import behind, waiting
    from stfm_pipeline.settings import Settings

    settings = Settings()
    files = waiting(settings)
    # One that was killed may be said to be in progress for ever; two at once wait for each other.
    recent = datetime.now(UTC) - timedelta(seconds=AGAIN)
    asked = dg.RunsFilter(job_name="take_in", statuses=IN_PROGRESS, created_after=recent)
    busy = context.instance.get_runs(asked, limit=1)
    before = json.loads(context.cursor or "{}")
    # What could not be taken, as with an archive out of reach, is tried again, but not at every look.
    asked: tuple[str, float] = before.get("asked", ("", 0.0))
    stamps = [(str(p), p.stat().st_mtime_ns) for paths in files.values() for p in paths if p.exists()]
    found = hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]
    if files and not busy and (found != asked[0] or time.time() - asked[1] > AGAIN):
        requests, asked = [dg.RunRequest(job_name="take_in")], (found, time.time())
    else:
        requests = []
    # Derived from what lies there, so that a crash between taking a file and saying so loses nothing.
    told: dict[str, tuple[str, float]] = before.get("told", {})
    late = behind(Lake(settings.lake_uri), settings)
    news = {n: d for n, d in late.items() if n not in told or told[n][0] != d or time.time() - told[n][1] > AGAIN}
    events = [
        dg.AssetMaterialization(
            "landed", partition=name, metadata={"parts": digest}, tags={"dagster/data_version": digest}
        )
        for name, digest in news.items()
    ]
    if not requests and not events:
        why = "being taken in" if busy else "what waits was asked for a moment ago" if files else "nothing has landed"
        return dg.SkipReason(why)
    now = {n: told[n] for n in late if n in told} | {n: (d, time.time()) for n, d in news.items()}
    return dg.SensorResult(run_requests=requests, asset_events=events, cursor=json.dumps({"asked": asked, "told": now}))
