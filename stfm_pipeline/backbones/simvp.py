"""Convolutions of SimVP: units that halve or double a frame, and gated spatiotemporal attention between them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

SCALE = 0.01


class ConvUnit(nn.Module):
    """Convolution of 3 x 3, group norm, SiLU. Shapes: (f, d, h, w) -> (f, e, h, w), halved or doubled if asked."""

    def __init__(self, inputs: int, outputs: int, down: bool = False, up: bool = False) -> None:
        super().__init__()
        width = outputs * 4 if up else outputs
        self.conv = nn.Conv2d(inputs, width, 3, stride=2 if down else 1, padding=1)
        self.shuffle = nn.PixelShuffle(2) if up else nn.Identity()
        self.norm = nn.GroupNorm(2, outputs)

    def forward(self, x: Float[Tensor, "f d h w"]) -> Float[Tensor, "f e i j"]:
        out: Tensor = F.silu(self.norm(self.shuffle(self.conv(x))))
        return out


class Gate(nn.Module):
    """Large-kernel attention: a cell's channels weighted by a sigmoid of what lies around it (Tan et al., 2022).

    A kernel of `reach` cells is a small depthwise one, a dilated depthwise one and a map over channels, as published.
    Shapes: (b, d, h, w) -> (b, d, h, w).
    """

    def __init__(self, width: int, reach: int, dilation: int = 3) -> None:
        super().__init__()
        near, far = 2 * dilation - 1, -(-reach // dilation) // 2 * 2 + 1
        self.into = nn.Conv2d(width, width, 1)
        self.near = nn.Conv2d(width, width, near, padding=near // 2, groups=width)
        self.far = nn.Conv2d(width, width, far, padding=far // 2 * dilation, dilation=dilation, groups=width)
        self.mix = nn.Conv2d(width, 2 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        near = self.near(F.gelu(self.into(x)))
        # In bf16 and channels-last, oneDNN's gradient of a dilated depthwise weight holds what memory held before.
        with torch.autocast(x.device.type, enabled=False):
            far = self.far(near.float())
        value, gate = self.mix(far).chunk(2, dim=1)
        out: Tensor = self.out(value * torch.sigmoid(gate)) + x
        return out


class Feed(nn.Module):
    """Feed-forward network whose hidden cells see their neighbours. Shapes: (b, d, h, w) -> (b, d, h, w)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.into = nn.Conv2d(width, hidden, 1)
        self.near = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.out = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        out: Tensor = self.out(F.gelu(self.near(self.into(x))))
        return out


class GatedBlock(nn.Module):
    """Gate and feed-forward, each after a batch norm, scaled, and added. Shapes: (b, d, h, w) -> (b, d, h, w)."""

    def __init__(self, width: int, hidden: int, reach: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.parts = nn.ModuleList([Gate(width, reach), Feed(width, hidden)])
        self.scales = nn.ParameterList(torch.full((width, 1, 1), SCALE) for _ in range(2))

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        for norm, part, scale in zip(self.norms, self.parts, self.scales, strict=True):
            x = x + scale * part(norm(x))
        return x
