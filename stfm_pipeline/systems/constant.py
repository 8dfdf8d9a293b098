"""Constant: each entity's training median, whatever the window shows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stfm_pipeline.backbones.climatology import training_median
from stfm_pipeline.systems.spec import System
from stfm_pipeline.tasks.forecasting import Inputs
from stfm_pipeline.windows import Panel, Problem


class Constant(nn.Module):
    median: Tensor

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.horizon = problem.horizon
        self.register_buffer("median", torch.zeros(problem.n, problem.c))

    def fit(self, panel: Panel) -> None:
        self.median.copy_(training_median(panel))

    def forward(self, inputs: Inputs) -> Float[Tensor, "b h n c"]:
        return self.median.expand(len(inputs.x), self.horizon, -1, -1).clone()


SYSTEM = System(
    name="constant",
    title="Constant",
    summary="The training median of each entity.",
    reference="Hyndman & Athanasopoulos, Forecasting: Principles and Practice, 3rd ed.",
    branch="baseline",
    objective="closed form",
    backbone="none",
    dependencies="temporal",
    build=Constant,
)
