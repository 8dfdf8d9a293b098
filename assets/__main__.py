"""Materialise a selection of one dataset into the configured instance: `python -m assets DATASET ASSET,... CONFIG`."""

import json
import logging
import sys

import dagster as dg

from definitions import defs
from stfm_pipeline.datasets.catalog import all_datasets

FAILURE = "dagster._core.definitions.events.Failure: "


def main(dataset: str, selection: str, config: str) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("stfm").setLevel(logging.INFO)
    logging.getLogger("dagster").setLevel(logging.ERROR)
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("dataset", sorted(all_datasets()))
        job = defs.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(
            instance=instance,
            partition_key=dataset,
            asset_selection=[dg.AssetKey(name) for name in selection.split(",")],
            run_config={"resources": {"compute": {"config": json.loads(config)}}, "loggers": {"console": {}}},
            tags={"dataset": dataset},
            raise_on_error=False,
        )
        if result.success:
            return 0
        for event in result.all_events:
            if event.is_failure and event.is_step_event and event.is_step_failure:
                error = event.step_failure_data.error
                cause = error.cause if error and error.cause else error
                text = (cause.message if cause else str(event.message)).strip()
                print(f"{event.step_key}: {text.removeprefix(FAILURE)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
