"""raw, harmonized, embedded, enriched: the data road as assets, partitioned by dataset."""

from collections.abc import Iterator

import dagster as dg

from assets.common import DATASETS, events, relay_logs, table_metadata
from resources import ComputeResource, LakeResource, TrackingResource
from stfm_pipeline.fingerprint import code_version
from stfm_pipeline.road import materialize
from stfm_pipeline.steps import STEPS, Step

CHECKS: dict[str, dict[str, str]] = {
    "raw": {"canonical_contract": "Types, keys, zones and coordinates are right."},
    "harmonized": {
        "regular_clock": "Every step has the stated length.",
        "masked_values_are_finite": "Observed cells are finite, unobserved cells hold 0.",
        "ranges_kept": "Observed values lie inside their channel's range.",
        "units_stated": "Every channel has a unit.",
        "learned_from_training_part_alone": "Cut off after the training part, the table teaches the same.",
        "adjacency_as_declared": "Edges are symmetric or declared directed, weights above 0, nobody is alone unnamed.",
        "components_sum_and_look_back": "Parts sum to the value they are parts of, and know nothing of what follows.",
        "every_part_is_observed": "No part of the split is little but a gap.",
        "parts_in_order": "Train, val, gate and test follow one another.",
        "no_window_crosses_the_split": "Every window forecasts steps of one part alone.",
        "facts_match": "Size, edges and gaps of the table are those of its documentation.",
    },
    "embedded": {
        "calendar_is_complete": "Every step has its civil time in every zone.",
        "patches_are_balanced": "Sizes of spatial patches differ by at most one.",
        "patches_are_partitions": "Every cell has one place of its own in one patch of each kind.",
        "embeddings_are_finite": "No coordinate or eigenvector is infinite.",
        "embeddings_are_of_this_signal": "They were made from these entities, edges and training values.",
        "encoders_have_the_weights_they_state": "A pretrained encoder has the pinned weights, a random one says so.",
        "learned_from_training_part_alone": "Cut off after train, the table gives the same spectra and tokens.",
    },
    "enriched": {
        "side_information_never_from_the_future": "The past is the same when joined from what was known by then.",
        "every_entity_has_a_text": "Every entity has a sentence about it.",
    },
}


# A stage that was made once follows what it is made from; what never was made waits to be asked for.
FOLLOWS = (
    (dg.AutomationCondition.any_deps_updated()).since_last_handled()
    & ~dg.AutomationCondition.missing()
    & ~dg.AutomationCondition.any_deps_missing()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
).with_label("follows what it is made from")


def stage_asset(step: Step) -> dg.AssetsDefinition:
    @dg.asset(
        name=step.name,
        deps=list(step.inputs) or ["landed"],
        automation_condition=FOLLOWS,
        partitions_def=DATASETS,
        group_name=step.survey,
        description=step.description,
        code_version=code_version(*step.modules),
        check_specs=[dg.AssetCheckSpec(n, asset=step.name, description=d) for n, d in CHECKS[step.name].items()],
        kinds={"polars", "deltalake"},
    )
    def asset(
        context: dg.AssetExecutionContext, lake: LakeResource, tracking: TrackingResource, compute: ComputeResource
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
        tables = lake.open()
        with relay_logs(context):
            outcome = materialize(
                context.partition_key, step.name, tables, tracking.settings(), new_split=compute.new_split
            )
        yield from events(context, step.name, list(CHECKS[step.name]), outcome, table_metadata(tables, outcome))

    return asset


assets = [stage_asset(step) for step in STEPS.values()]
