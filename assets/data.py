"""raw, harmonized, embedded, enriched: the data road as assets, partitioned by dataset."""

from collections.abc import Iterator

import dagster as dg

from assets.common import DATASETS, events, relay_logs, table_metadata
from resources import LakeResource, TrackingResource
from stfm_pipeline.fingerprint import code_version
from stfm_pipeline.road import STEPS, Step, materialize

CHECKS = {
    "raw": ["canonical_contract"],
    "harmonized": [
        "regular_clock",
        "masked_values_are_finite",
        "scaler_from_training_part_alone",
        "parts_in_order",
        "facts_match",
    ],
    "embedded": ["calendar_is_complete", "patches_are_balanced", "embeddings_are_finite"],
    "enriched": ["side_information_never_from_the_future", "every_entity_has_a_text"],
}


def stage_asset(step: Step) -> dg.AssetsDefinition:
    @dg.asset(
        name=step.name,
        deps=list(step.inputs),
        partitions_def=DATASETS,
        group_name=step.survey,
        description=step.description,
        code_version=code_version(*step.modules),
        check_specs=[dg.AssetCheckSpec(name, asset=step.name) for name in CHECKS[step.name]],
        kinds={"polars", "deltalake"},
    )
    def asset(
        context: dg.AssetExecutionContext, lake: LakeResource, tracking: TrackingResource
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
        tables = lake.open()
        with relay_logs(context):
            outcome = materialize(context.partition_key, step.name, tables, tracking.settings())
        yield from events(context, step.name, CHECKS[step.name], outcome, table_metadata(tables, outcome))

    return asset


assets = [stage_asset(step) for step in STEPS.values()]
