"""Seasonal naive: the same civil time one season ago; the period is chosen on val among the dataset's seasons."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stfm_pipeline.backbones.climatology import training_median
from stfm_pipeline.systems.spec import System
from stfm_pipeline.tasks.forecasting import Inputs, hide, masked_loss
from stfm_pipeline.windows import Panel, Problem


class SeasonalNaive(nn.Module):
    """Copies the latest season that has a value; without one in the look-back, the entity's training median.

    A change of the zone's offset from UTC is stepped over, so that the civil hour is copied.
    """

    zone: Tensor
    median: Tensor
    period: Tensor

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.horizon, self.loss = problem.horizon, problem.loss
        self.candidates = [p for p in problem.seasons if p <= problem.look_back] or [1]
        self.register_buffer("zone", problem.tensors["zone"].clone())
        self.register_buffer("median", torch.zeros(problem.n, problem.c))
        self.register_buffer("period", torch.tensor(self.candidates[0]))

    def fit(self, panel: Panel) -> None:
        self.median.copy_(training_median(panel))
        scores = {p: self._val_loss(panel, p) for p in self.candidates}
        self.period.fill_(min(scores, key=lambda p: scores[p]))

    @torch.no_grad()
    def _val_loss(self, panel: Panel, period: int) -> float:
        self.period.fill_(period)
        total, windows = 0.0, panel.origins("val")
        for chunk, window in panel.batches(windows, 256):
            inputs, target = hide(window, panel.problem.look_back)
            total += float(masked_loss(self(inputs)[0], target, self.loss, panel.problem.tensors["weight"])) * len(
                chunk
            )
        return total / len(windows)

    def forward(self, inputs: Inputs) -> tuple[Float[Tensor, "b h n c"], Bool[Tensor, "b h n c"]]:
        b, look_back, n, c = inputs.x.shape
        period = int(self.period)
        step = torch.arange(self.horizon, device=inputs.x.device)
        value = self.median.expand(b, self.horizon, n, c).clone()
        missing = torch.ones(value.shape, dtype=torch.bool, device=value.device)
        lag = (step // period + 1) * period
        while bool((lag <= look_back).any()) and bool(missing.any()):
            source = (look_back + step - lag).clamp(min=0)
            shift = inputs.offset_ahead - inputs.offset[:, source.clamp(max=look_back - 1)]
            at = ((look_back + step - lag)[None, :, None] + shift)[:, :, self.zone]
            inside = ((at >= 0) & (at < look_back))[..., None]
            index = at.clamp(0, look_back - 1)[..., None].expand(-1, -1, -1, c)
            found = missing & inside & inputs.observed.gather(1, index)
            value = torch.where(found, inputs.x.gather(1, index), value)
            missing &= ~found
            lag = lag + period
        return value, missing


SYSTEM = System(
    name="seasonal-naive",
    title="Seasonal naive",
    summary="The same civil time one season ago; the season is chosen on val.",
    reference="Hyndman & Athanasopoulos, Forecasting: Principles and Practice, 3rd ed. (seasonal naive method)",
    branch="baseline",
    objective="closed form",
    backbone="none",
    dependencies="temporal",
    build=SeasonalNaive,
)
