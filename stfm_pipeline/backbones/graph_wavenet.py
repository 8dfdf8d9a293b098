"""Gated dilated convolutions over time with diffusion over a graph, computed only where the last step needs it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stfm_pipeline.backbones.dropout import Dropout
from stfm_pipeline.backbones.graph import DiffusionConv, Support

Taps = tuple[slice, slice]


def taps(dilations: Sequence[int]) -> list[Taps]:
    """Which steps of a layer's input its early and its late tap read, so that the last step of the last layer is whole.

    Input to the first layer are the 1 + sum(dilations) steps of the receptive field; `ValueError` if some of them
    would reach nothing. With dilations that double, each layer leaves half of its steps; with repeated ones nearly all.
    """
    kept = [[0]]
    for dilation in reversed(dilations):
        kept.insert(0, sorted({step - back for step in kept[0] for back in (0, dilation)}))
    if len(kept[0]) != 1 + sum(dilations):
        raise ValueError(f"dilations {', '.join(map(str, dilations))} skip steps of their receptive field")
    out = []
    for (before, after), dilation in zip(pairwise(kept), dilations, strict=True):
        late = [before.index(step) for step in after]
        early = [before.index(step - dilation) for step in after]
        out.append((_as_slice(early), _as_slice(late)))
    return out


def _as_slice(steps: list[int]) -> slice:
    stride = steps[1] - steps[0] if len(steps) > 1 else 1
    assert steps == list(range(steps[0], steps[-1] + 1, stride)), "dilations whose steps are not evenly spaced"
    return slice(steps[0], steps[-1] + 1, stride)


class GatedConv(nn.Module):
    """tanh(filter) * sigmoid(gate), both convolutions of two taps over time, and what the late tap read.

    Shapes: (t, n, b, d) -> twice (s, n, b, d), s as many steps as a tap reads.
    """

    def __init__(self, width: int, taps: Taps) -> None:
        super().__init__()
        self.taps = taps
        self.filter = nn.Linear(2 * width, width)
        self.gate = nn.Linear(2 * width, width)

    def forward(self, x: Float[Tensor, "t n b d"]) -> tuple[Float[Tensor, "s n b d"], Float[Tensor, "s n b d"]]:
        # Every second step is no matrix to a linear map, which would copy it at each use.
        early, late = (x[steps].contiguous() for steps in self.taps)
        filtered, gate = _two_taps(self.filter, early, late), _two_taps(self.gate, early, late)
        return torch.tanh(filtered) * torch.sigmoid(gate), late


def _two_taps(layer: nn.Linear, early: Tensor, late: Tensor) -> Tensor:
    # Two products that leave whole rows of one map each: one product for everything is twice as slow.
    first, second = layer.weight.chunk(2, dim=1)
    return F.linear(early, first, layer.bias) + F.linear(late, second)


class Layer(nn.Module):
    """Gated convolution, diffusion, dropout, residual, batch norm.

    Shapes: (t, n, b, d) -> (s, n, b, d), and the gated last step (n, b, d) for the skip connection.
    """

    def __init__(self, width: int, taps: Taps, supports: int, order: int, dropout: float) -> None:
        super().__init__()
        self.gated = GatedConv(width, taps)
        self.diffusion = DiffusionConv(width, supports, order)
        self.drop = Dropout(dropout)
        self.norm = nn.BatchNorm1d(width)

    def forward(
        self, x: Float[Tensor, "t n b d"], supports: Sequence[Support]
    ) -> tuple[Float[Tensor, "s n b d"], Float[Tensor, "n b d"]]:
        h, late = self.gated(x)
        out = late + self.drop(self.diffusion(h, supports))
        return self.norm(out.flatten(0, 2)).view_as(out), h[-1]
