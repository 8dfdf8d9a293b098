"""A module that sees how far values are from what is usual at their time, and answers in the same terms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stfm_pipeline.tasks.forecasting import Inputs
from stfm_pipeline.windows import CALENDAR, Problem


class Anomaly(nn.Module):
    """Takes the climatology of training from the look-back of a module and adds it to its forecast.

    `climatology` of the problem is (time of day, month, n, c), 1 long in what is no phase. At a time of day or in a
    month that training never saw it is 0. An answer of another shape is handed on as it is, to be refused.
    """

    zone: Tensor
    usual: Tensor

    def __init__(self, inner: nn.Module, problem: Problem) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("zone", problem.tensors["zone"].clone())
        self.register_buffer("usual", problem.tensors["climatology"].clone())

    def forward(self, inputs: Inputs) -> Any:
        shown = torch.where(inputs.observed, inputs.x - self.at(inputs.calendar), 0.0)
        answer = self.inner(replace(inputs, x=shown))
        usual = self.at(inputs.calendar_ahead)
        if isinstance(answer, tuple) and len(answer) == 2:
            return _sum(answer[0], usual), answer[1]
        return _sum(answer, usual)

    def at(self, calendar: Int[Tensor, "b t z k"]) -> Float[Tensor, "b t n c"]:
        """What is usual at these times."""
        known = torch.ones(calendar.shape[:3], dtype=torch.bool, device=calendar.device)
        index = []
        for size, feature in zip(self.usual.shape, ("tod", "month"), strict=False):
            code = torch.zeros_like(calendar[..., 0])
            if size > 1:
                code = calendar[..., CALENDAR.index(feature)] - 1
                known = known & (code >= 0)
            index.append(code.clamp(min=0)[:, :, self.zone])
        node = torch.arange(len(self.zone), device=calendar.device)
        return torch.where(known[:, :, self.zone, None], self.usual[index[0], index[1], node], 0.0)


def _sum(answer: Any, usual: Tensor) -> Any:
    return answer + usual if isinstance(answer, Tensor) and answer.shape == usual.shape else answer
