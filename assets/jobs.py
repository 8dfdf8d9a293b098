"""The whole road as a job, and the dataset partitions kept in step."""

import dagster as dg

from assets import drift, landing, retraining
from assets.common import DATASETS

road = dg.define_asset_job(
    "road",
    selection=dg.AssetSelection.all() - dg.AssetSelection.assets("forecasts"),
    description="From raw data to a champion, for one dataset. Unchanged stages are reused.",
)


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Adds a partition for every dataset that has a spec.",
)
def datasets_in_step(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    from stfm_pipeline.datasets.catalog import all_datasets, broken_datasets

    missing = sorted(set(all_datasets()) - set(context.instance.get_dynamic_partitions("dataset")))
    broken = [f"not usable: {error}" for error in broken_datasets().values()]
    for line in broken:
        context.log.warning(line)
    if not missing:
        return dg.SkipReason("\n".join(["every dataset has its partition", *broken]))
    return dg.SensorResult(dynamic_partitions_requests=[DATASETS.build_add_request(missing)])


follow = dg.AutomationConditionSensorDefinition(
    "follow",
    target=dg.AssetSelection.assets("raw", "harmonized", "embedded", "enriched", "forecasts"),
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description="Brings tables and forecasts that were made before up to date when something lands for them.",
)

jobs = [road, landing.take_in, retraining.retraining]
schedules = [retraining.weekly_retraining]
sensors = [datasets_in_step, landing.landing, retraining.enough_new_data, follow, drift.retrain_on_drift]
