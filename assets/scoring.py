"""What the champion forecasts from the end of the current data, for every entity."""

from collections.abc import Iterator

import dagster as dg

from assets.common import DATASETS, events, relay_logs
from assets.data import FOLLOWS
from resources import LakeResource, TrackingResource
from stfm_pipeline.fingerprint import code_version
from stfm_pipeline.forecasts import CODE, score

CHECKS = {
    "every_entity_and_step": "Every entity has every step after the last observation.",
    "forecasts_are_finite": "Every forecast and bound is a number.",
    "bounds_in_order": "A lower bound is never above the upper one.",
}


@dg.asset(
    deps=["champion", "enriched"],
    automation_condition=FOLLOWS,
    partitions_def=DATASETS,
    group_name="downstream_tasks",
    description="The champion's forecasts from the end of the current data, with intervals, for every entity.",
    code_version=code_version(*CODE),
    check_specs=[dg.AssetCheckSpec(n, asset="forecasts", description=d) for n, d in CHECKS.items()],
    kinds={"torch", "deltalake"},
)
def forecasts(
    context: dg.AssetExecutionContext, lake: LakeResource, tracking: TrackingResource
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    with relay_logs(context):
        outcome = score(context.partition_key, lake.open(), tracking.settings())
    facts = outcome.stage.facts if outcome.stage is not None else {}
    shown = {k: str(facts[k]) for k in ("model", "version", "run_id", "system", "origin", "end") if k in facts}
    yield from events(context, "forecasts", list(CHECKS), outcome, shown)


assets = [forecasts]
