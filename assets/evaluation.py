"""The leaderboard with its report, and the champion it leads to."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from assets.common import DATASETS, events, relay_logs
from resources import LakeResource, TrackingResource
from stfm_pipeline.decision import crown
from stfm_pipeline.fingerprint import code_version
from stfm_pipeline.scoring import evaluate_dataset
from stfm_pipeline.systems.catalog import module_names


@dg.asset(
    deps=list(module_names()),
    partitions_def=DATASETS,
    group_name="downstream_tasks",
    description="Every trained system scored on the same windows. Val ranks, gate decides on promotion, test judges.",
    code_version=code_version("stfm_pipeline.evaluate"),
    check_specs=[
        dg.AssetCheckSpec(
            "scored_on_identical_cells", asset="evaluated", description="Every system was scored on the same cells."
        )
    ],
    kinds={"torch", "mlflow"},
)
def evaluated(
    context: dg.AssetExecutionContext, lake: LakeResource, tracking: TrackingResource
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    from stfm_pipeline.pictures import leaderboard_picture, markdown_image

    tables = lake.open()
    with relay_logs(context):
        outcome = evaluate_dataset(context.partition_key, tables, tracking.settings())
    metadata: dict[str, object] = {}
    if outcome.stage is not None:
        facts = outcome.stage.facts
        board = tables.read(outcome.stage, "leaderboard")
        metadata = {
            "dagster/row_count": len(board),
            "report": dg.MetadataValue.url(Path(facts["report"]).as_uri()),
            "report_path": dg.MetadataValue.path(facts["report"]),
            "leader_on_val": facts["candidate"]["system"],
            "decision": facts["decision"]["reason"],
            "ranking": dg.MetadataValue.json(facts["ranking"]),
            "picture": dg.MetadataValue.md(
                markdown_image(leaderboard_picture(board, facts["candidate"]["system"]), "test MAE by system")
            ),
        }
    yield from events(context, "evaluated", ["scored_on_identical_cells"], outcome, metadata)


@dg.asset(
    deps=["evaluated"],
    partitions_def=DATASETS,
    group_name="downstream_tasks",
    description="The registered version that beat every baseline and the last champion on data that chose neither.",
    code_version=code_version("stfm_pipeline.registry"),
    kinds={"mlflow"},
)
def champion(
    context: dg.AssetExecutionContext, lake: LakeResource, tracking: TrackingResource
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    with relay_logs(context):
        outcome = crown(context.partition_key, lake.open(), tracking.settings())
    facts = dict(outcome.stage.facts) if outcome.stage is not None else {}
    decision = facts.pop("decision", {})
    margins = [dg.TableRecord(m) for m in decision.get("margins", [])]
    metadata: dict[str, object] = {k: str(v) for k, v in facts.items() if k != "licence"}
    metadata |= {k: decision[k] for k in ("number", "level", "left", "block", "blocks", "draws") if k in decision}
    metadata |= {"margins": dg.MetadataValue.table(margins)} if margins else {}
    yield from events(context, "champion", [], outcome, metadata)


assets = [evaluated, champion]
