"""DLinear: trend and remainder, each through one linear map (Zeng et al., AAAI 2023), weights shared by all series.

Reversible normalisation replaces the paper's plain input: each series is centred and scaled by its own window where
the mask allows, and the forecast is put back.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stfm_pipeline.backbones.norm import masked_moments
from stfm_pipeline.systems.spec import System, Training
from stfm_pipeline.tasks.forecasting import Inputs
from stfm_pipeline.windows import Problem


class DLinear(nn.Module):
    """Shapes: (b, look_back, n, c) -> (b, horizon, n, c). `kernel` is the moving average's length in steps."""

    def __init__(self, problem: Problem, kernel: int = 25) -> None:
        super().__init__()
        self.kernel = kernel
        self.trend = nn.Linear(problem.look_back, problem.horizon)
        self.remainder = nn.Linear(problem.look_back, problem.horizon)
        for layer in (self.trend, self.remainder):
            nn.init.constant_(layer.weight, 1 / problem.look_back)
            nn.init.zeros_(layer.bias)

    def forward(self, inputs: Inputs) -> Float[Tensor, "b h n c"]:
        mean, std = masked_moments(inputs.x, inputs.observed)
        x = ((inputs.x - mean) / std * inputs.observed).movedim(1, -1)
        series = x.flatten(0, 2).unsqueeze(1)
        padded = F.pad(series, (self.kernel // 2, (self.kernel - 1) // 2), mode="replicate")
        trend = F.avg_pool1d(padded, self.kernel, stride=1).view_as(x)
        out = self.trend(trend) + self.remainder(x - trend)
        answer: Tensor = out.movedim(-1, 1) * std + mean
        return answer


SYSTEM = System(
    name="dlinear",
    title="DLinear",
    summary="Trend and remainder of each series through a linear map, with reversible normalisation.",
    reference="Zeng et al., Are Transformers Effective for Time Series Forecasting?, AAAI 2023",
    branch="primitive",
    objective="regression",
    backbone="linear",
    dependencies="temporal",
    build=DLinear,
    training=Training(learning_rate=1e-3),
)
