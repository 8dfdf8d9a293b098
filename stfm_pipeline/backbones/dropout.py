"""Dropout whose mask costs little on a CPU, where drawing one Bernoulli number per cell takes a third of a step."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 256
BITS = {2: torch.int16, 4: torch.int32}


class Dropout(nn.Module):
    """Zeroes cells in training with probability `p` and scales the others by 1 / (1 - p). Shapes: (...) -> (...).

    On a CPU every cell is decided by one byte of a 64-bit random word from torch's global generator, so there `p` is
    rounded to a multiple of 1/256; the scale is that of the rounded `p`, and the expectation stays exact.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout probability {p} is not in [0, 1)")
        self.p = p
        self.dropped = min(max(round(p * LEVELS), 1), LEVELS - 1) if p else 0

    def forward(self, x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
        if not self.training or not self.dropped:
            return x
        if x.device.type != "cpu" or x.element_size() not in BITS:
            return F.dropout(x, self.p)
        out: Tensor = _Drop.apply(x, self.dropped)  # type: ignore[no-untyped-call]
        return out

    def extra_repr(self) -> str:
        return f"p={self.p}"


def keep_bits(shape: torch.Size, dropped: int, bits: torch.dtype) -> Tensor:
    """Integers of type `bits`: all ones where a cell is kept, 0 where it is dropped."""
    words = torch.empty(-(-shape.numel() // 8), dtype=torch.int64)
    # Without a range, the top bit of every word would stay 0.
    drawn = words.random_(-(2**63), None).view(torch.uint8)[: shape.numel()].view(shape)
    return drawn.ge_(dropped).to(bits).neg_()


class _Drop(torch.autograd.Function):
    """Bitwise `and` with the mask: integers of one width are what the CPU is quick at, unlike booleans."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        ctx.scale = LEVELS / (LEVELS - dropped)
        keep = keep_bits(x.shape, dropped, BITS[x.element_size()])
        ctx.save_for_backward(keep)
        return _masked(x, keep, ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return _masked(grad, keep, ctx.scale), None


def _masked(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    return (x.view(keep.dtype) & keep).view(x.dtype).mul_(scale)
