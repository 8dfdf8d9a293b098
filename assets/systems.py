"""Every system in `stfm_pipeline/systems/` as an asset, there by being there."""

from collections.abc import Iterator

import dagster as dg

from assets.common import DATASETS, events, relay_logs
from resources import ComputeResource, LakeResource, TrackingResource
from stfm_pipeline.fingerprint import code_version
from stfm_pipeline.systems.catalog import code_of, module_names
from stfm_pipeline.training import TRAINING_CODE, train_system


def system_asset(module: str) -> dg.AssetsDefinition:
    name = module.replace("_", "-")

    @dg.asset(
        name=module,
        deps=["enriched"],
        partitions_def=DATASETS,
        group_name="training_objectives",
        description=f"The system '{name}', trained on the enriched table and logged to MLflow with its intervals.",
        code_version=code_version(*TRAINING_CODE, code_of(name)),
        check_specs=[
            dg.AssetCheckSpec("forecasts_are_finite", asset=module, description="Every val forecast is a number.")
        ],
        kinds={"torch", "mlflow"},
    )
    def asset(
        context: dg.AssetExecutionContext, lake: LakeResource, tracking: TrackingResource, compute: ComputeResource
    ) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
        from stfm_pipeline.pictures import learning_curve, markdown_image

        tables = lake.open()
        with relay_logs(context):
            outcome = train_system(
                context.partition_key,
                name,
                tables,
                tracking.settings(),
                budget=compute.budget,
                device=compute.device,
                start=compute.start or None,
            )
        metadata: dict[str, object] = {}
        if outcome.stage is not None:
            seeds = outcome.stage.facts["seeds"]
            metadata = {
                "models": dg.MetadataValue.json({f"seed {s['seed']}": s["uri"] for s in seeds}),
                "started": seeds[0]["started"],
                "training_seconds": sum(s["seconds"] for s in seeds),
                "peak_mb": max(s["peak_mb"] for s in seeds),
            }
            curve = tables.read(outcome.stage, "curve")
            if len(curve):
                rows = curve.filter(curve["seed"] == outcome.stage.facts["chosen"]).drop("seed").to_dicts()
                metadata["picture"] = dg.MetadataValue.md(markdown_image(learning_curve(rows), "learning curve"))
        yield from events(context, module, ["forecasts_are_finite"], outcome, metadata)

    return asset


assets = [system_asset(module) for module in module_names()]
