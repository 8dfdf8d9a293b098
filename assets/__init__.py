"""Dagster's view of the road: one file per stage, and nothing in it but reading, calling, publishing."""

from __future__ import annotations

import warnings
from typing import Any

import dagster as dg


def definitions(resources: dict[str, Any]) -> dg.Definitions:
    """All assets, jobs, schedules and sensors."""
    from assets import data, drift, evaluation, jobs, landing, scoring, systems
    from assets.common import console

    assets = [*data.assets, *systems.assets, *evaluation.assets, *scoring.assets, *drift.assets]
    with warnings.catch_warnings():
        # Code references work but are marked beta; a warning at every start helps nobody.
        warnings.simplefilter("ignore", dg.BetaWarning)
        assets = dg.with_source_code_references(assets)
    return dg.Definitions(
        assets=[landing.landed, *assets],
        jobs=jobs.jobs,
        schedules=jobs.schedules,
        sensors=jobs.sensors,
        resources=resources,
        executor=dg.in_process_executor,
        loggers={"console": console},
    )
