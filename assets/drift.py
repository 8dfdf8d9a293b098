"""What has drifted, and the sensor that asks for retraining where anything has."""

import hashlib
import json
from collections.abc import Iterator

import dagster as dg

from assets.common import DATASETS, events, relay_logs
from resources import LakeResource, TrackingResource
from stfm_pipeline.fingerprint import code_version

# The job that answers an alarm.
ANSWER = "retrain"
CHECKS = {"measured_from_the_past_alone": "Without the last block, every earlier number is the same."}


@dg.asset(
    name="drift",
    deps=["enriched", "champion"],
    partitions_def=DATASETS,
    group_name="downstream_tasks",
    description="Recent data beside the training part, and the champion's errors beside those on val and gate.",
    code_version=code_version("stfm_pipeline.drift"),
    check_specs=[dg.AssetCheckSpec(n, asset="drift", description=d) for n, d in CHECKS.items()],
    kinds={"scipy", "deltalake"},
)
def drifted(
    context: dg.AssetExecutionContext, lake: LakeResource, tracking: TrackingResource
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    from stfm_pipeline.drift import measure_drift
    from stfm_pipeline.drift.run import write_page

    tables = lake.open()
    with relay_logs(context):
        outcome = measure_drift(context.partition_key, tables, tracking.settings())
    metadata: dict[str, object] = {}
    if outcome.stage is not None:
        path = write_page(outcome.stage, tables, tracking.settings())
        facts = outcome.stage.facts
        metadata = {
            "dagster/row_count": len(tables.read(outcome.stage, "findings")),
            "page": dg.MetadataValue.url(path.as_uri()),
            "page_path": dg.MetadataValue.path(str(path)),
            "until": facts["until"],
            "alarms": dg.MetadataValue.json(facts["alarms"]),
            "notes": "; ".join(facts["notes"]),
        }
    yield from events(context, "drift", list(CHECKS), outcome, metadata)


@dg.sensor(
    job_name=ANSWER,
    minimum_interval_seconds=3600,
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Asks once for retraining for every alarm of a dataset that has a champion.",
)
def retrain_on_drift(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    lake = LakeResource().open()
    asked: dict[str, list[str]] = json.loads(context.cursor or "{}")
    requests = []
    for name in context.instance.get_dynamic_partitions("dataset"):
        found = lake.stage(name, "drift")
        if found is None or found.facts["champion"] is None:
            continue
        alarms = {json.dumps(a, sort_keys=True): f"{a['kind']} of {a['channel']}" for a in found.facts["alarms"]}
        new = sorted(set(alarms) - set(asked.get(name, [])))
        if new:
            mark = hashlib.sha256("".join(new).encode()).hexdigest()[:16]
            why = "; ".join(alarms[a] for a in new)
            tags = {"stfm/why": "drift", "stfm/drift": why[:250]}
            requests.append(
                dg.RunRequest(run_key=f"drift-{name}-{mark}", partition_key=name, job_name=ANSWER, tags=tags)
            )
        asked[name] = sorted(alarms)
    if not requests:
        return dg.SkipReason("no alarm without an answer")
    return dg.SensorResult(run_requests=requests, cursor=json.dumps(asked))


assets = [drifted]
