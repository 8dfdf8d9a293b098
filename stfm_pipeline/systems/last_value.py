"""Last value: the latest observed value of the look-back, carried forward."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stfm_pipeline.backbones.climatology import training_median
from stfm_pipeline.systems.spec import System
from stfm_pipeline.tasks.forecasting import Inputs
from stfm_pipeline.windows import Panel, Problem


class LastValue(nn.Module):
    """Falls back on the entity's training median where the look-back holds no observation."""

    median: Tensor

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.horizon = problem.horizon
        self.register_buffer("median", torch.zeros(problem.n, problem.c))

    def fit(self, panel: Panel) -> None:
        self.median.copy_(training_median(panel))

    def forward(self, inputs: Inputs) -> tuple[Float[Tensor, "b h n c"], Bool[Tensor, "b h n c"]]:
        steps = torch.arange(1, inputs.x.shape[1] + 1, device=inputs.x.device)[None, :, None, None]
        latest = (inputs.observed * steps).amax(dim=1)
        value = inputs.x.gather(1, (latest - 1).clamp(min=0)[:, None])[:, 0]
        none = latest == 0
        value = torch.where(none, self.median, value)
        size = (-1, self.horizon, -1, -1)
        return value[:, None].expand(size).clone(), none[:, None].expand(size)


SYSTEM = System(
    name="last-value",
    title="Last value",
    summary="The latest observed value, carried forward.",
    reference="Hyndman & Athanasopoulos, Forecasting: Principles and Practice, 3rd ed. (naive method)",
    branch="baseline",
    objective="closed form",
    backbone="none",
    dependencies="temporal",
    build=LastValue,
)
