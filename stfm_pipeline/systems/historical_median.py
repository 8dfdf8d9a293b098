"""Historical median: the training median at the same civil time of the week; the baseline to beat under MAE."""

from __future__ import annotations

import numpy as np

from stfm_pipeline.backbones.climatology import Climatology
from stfm_pipeline.systems.spec import System

SYSTEM = System(
    name="historical-median",
    title="Historical median",
    summary="Median of the training part at the same civil time of the week, per entity.",
    reference="Hyndman & Athanasopoulos, Forecasting: Principles and Practice, 3rd ed. (climatology)",
    branch="baseline",
    objective="closed form",
    backbone="climatology",
    dependencies="temporal",
    build=lambda problem: Climatology(problem, np.nanmedian),
)
