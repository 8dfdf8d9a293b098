"""Historical average: the training mean at the same civil time of the week."""

from __future__ import annotations

import numpy as np

from stfm_pipeline.backbones.climatology import Climatology
from stfm_pipeline.systems.spec import System

SYSTEM = System(
    name="historical-average",
    title="Historical average",
    summary="Mean of the training part at the same civil time of the week, per entity.",
    reference="Li et al., DCRNN, ICLR 2018 (as a baseline)",
    branch="baseline",
    objective="closed form",
    backbone="climatology",
    dependencies="temporal",
    build=lambda problem: Climatology(problem, np.nanmean),
)
