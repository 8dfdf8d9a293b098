"""What every asset shares: the partition set, check specs, and how an outcome becomes Dagster events."""

import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import dagster as dg

from stfm_pipeline.lake import Lake
from stfm_pipeline.large import frames_of
from stfm_pipeline.road import Outcome

DATASETS = dg.DynamicPartitionsDefinition(name="dataset")


@dg.logger(description="Problems only: the library's own log lines say what happens.")
def console(context: dg.InitLoggerContext) -> logging.Logger:
    # What went wrong is said once, at the end; `--debug` and the UI show the whole trace.
    logger = logging.Logger("dagster", level=logging.ERROR if os.environ.get("STFM_DEBUG") else logging.CRITICAL)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    return logger


class _Relay(logging.Handler):
    """Passes the library's log lines to the run's event log, so that the UI shows them."""

    def __init__(self, context: dg.AssetExecutionContext | dg.OpExecutionContext) -> None:
        super().__init__()
        self.context = context

    def emit(self, record: logging.LogRecord) -> None:
        self.context.log.log(record.levelno, record.getMessage())


def events(
    context: dg.AssetExecutionContext, key: str, checks: list[str], outcome: Outcome, metadata: dict[str, Any]
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult]:
    """Check results, then the materialisation; a failed check raises first and leaves none."""
    found = {c.name: c for c in outcome.checks}
    results = [
        dg.AssetCheckResult(
            check_name=name,
            passed=outcome.reused or name not in found or found[name].passed,
            description=(
                "kept when this version was published"
                if outcome.reused
                else found[name].description
                if name in found
                else "does not apply to this dataset"
            ),
            metadata={k: str(v) for k, v in (found[name].details if name in found else {}).items()},
        )
        for name in checks
    ]
    if outcome.stage is None:
        yield from results
        failed = [c for c in outcome.checks if not c.passed]
        broken = [f"{c.name} ({c.description})\n" + _indented(c.details) for c in failed]
        raise dg.Failure(description=f"{key} was not published, a promise is broken: " + "\n".join(broken))
    stage = outcome.stage
    shared = {
        "unchanged": outcome.reused,
        "seconds": round(outcome.seconds, 2),
        "stage_version": stage.version,
        "fingerprint": stage.fingerprint,
        "licence": str(stage.facts.get("licence", "")) or "see raw",
    }
    yield dg.MaterializeResult(
        metadata={**shared, **metadata}, check_results=results, data_version=dg.DataVersion(stage.data_version)
    )


def _indented(details: dict[str, Any]) -> str:
    lines = [line for k, v in details.items() for line in f"{k}: {v}".splitlines()]
    return "\n".join(f"    {line}" for line in lines)


class relay_logs:
    """Within the block, `stfm` log lines reach both the terminal and the run's event log."""

    def __init__(self, context: dg.AssetExecutionContext | dg.OpExecutionContext) -> None:
        self.handler = _Relay(context)
        self.log = logging.getLogger("stfm")

    def __enter__(self) -> None:
        self.log.setLevel(logging.INFO)
        self.log.addHandler(self.handler)

    def __exit__(self, *details: object) -> None:
        self.log.removeHandler(self.handler)


def table_metadata(lake: Lake, outcome: Outcome) -> dict[str, Any]:
    """Row counts, the main table's schema, the facts and a small picture."""
    from stfm_pipeline.datasets.catalog import get_dataset
    from stfm_pipeline.pictures import markdown_image, stage_picture

    stage = outcome.stage
    if stage is None:
        return {}
    # Of what is too large to hold, the first rows are shown.
    tables = {name: next(frames_of(lake.table(stage, name))) for name in stage.tables}
    main = next((n for n in ("observations", "signal", "calendar", "past") if n in tables), next(iter(tables)))
    columns = [dg.TableColumn(name, str(kind)) for name, kind in tables[main].schema.items()]
    facts = stage.facts
    metadata: dict[str, Any] = {
        "dagster/row_count": stage.blocks[main].rows,
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "rows": dg.MetadataValue.json({name: blocks.rows for name, blocks in stage.blocks.items()}),
        "facts": dg.MetadataValue.json(facts),
    }
    if "start" in facts:
        metadata["span"] = f"{facts['start']} to {facts['end']}"
    if "observed_share" in facts:
        metadata |= {f"missing_share_{name}": 1 - share for name, share in facts["observed_share"].items()}
    if picture := stage_picture(stage.name, tables, get_dataset(stage.dataset).spec, facts):
        metadata["picture"] = dg.MetadataValue.md(markdown_image(picture, f"{stage.name} of {stage.dataset}"))
    return metadata
