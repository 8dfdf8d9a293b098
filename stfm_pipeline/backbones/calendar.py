"""Civil time as points on circles, from the calendar's codes."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stfm_pipeline.windows import CALENDAR, Problem

CYCLES = ("tod", "dow", "month", "week")


def circle(size: int) -> Float[Tensor, "k 2"]:
    """Sine and cosine by calendar code; code 0, a category that training never saw, is the middle."""
    angle = torch.arange(size) * (2 * math.pi / size)
    return torch.cat([torch.zeros(1, 2), torch.stack([angle.sin(), angle.cos()], dim=1)])


class Cycles(nn.Module):
    """Time of day, day of week, month and week of year as sine and cosine each.

    Shapes: calendar codes (b, t, z, k) -> (b, t, z, 8).
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        for name in CYCLES:
            self.register_buffer(name, circle(len(problem.tensors[f"seen_{name}"])), persistent=False)

    def forward(self, calendar: Int[Tensor, "b t z k"]) -> Float[Tensor, "b t z f"]:
        found = [self.get_buffer(name)[calendar[..., CALENDAR.index(name)]] for name in CYCLES]
        return torch.cat(found, dim=-1)
