"""Dropout whose mask costs little on a CPU, where drawing one Bernoulli number per cell takes a third of a step."""

from __future__ import annotations

from typing import Any

import numpy as np
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
        if not quick(x):
            return F.dropout(x, self.p)
        out: Tensor = _Drop.apply(x, self.dropped)  # type: ignore[no-untyped-call]
        return out

    def extra_repr(self) -> str:
        return f"p={self.p}"


class ReluDropoutLinear(nn.Linear):
    """linear(dropout(relu(x))) in few passes over memory. Shapes: (..., d) -> (..., e).

    The kept cells' scale is moved to the weights, which are fewer, and what is 0 after dropout has no gradient, so no
    mask is kept. `x` is overwritten, as by `nn.ReLU(inplace=True)`.
    """

    def __init__(self, inputs: int, outputs: int, p: float) -> None:
        super().__init__(inputs, outputs)
        self.drop = Dropout(p)

    def forward(self, x: Float[Tensor, "*s d"]) -> Float[Tensor, "*s e"]:
        dropped = self.drop.dropped
        if not self.training or not dropped or not quick(x):
            return super().forward(self.drop(F.relu(x, inplace=True)))
        kept: Tensor = _ReluDrop.apply(x, dropped)  # type: ignore[no-untyped-call]
        return F.linear(kept, self.weight * scale_of(dropped), self.bias)


def quick(x: Tensor) -> bool:
    """Whether masks are made from bytes here: on a CPU, in the widths that networks are trained in."""
    return x.device.type == "cpu" and x.element_size() in BITS


def keep_bits(x: Tensor, dropped: int) -> Tensor:
    """Integers as wide as the cells of `x`: all ones where a cell is kept, 0 where it is dropped."""
    # SFC64 is twice as fast as torch's own generator, which gives the seed: a run with the same seed repeats.
    seed = int(torch.randint(2**63 - 1, ()))
    words = torch.from_numpy(np.random.SFC64(seed).random_raw(-(-x.numel() // 8)).view(np.uint8))
    return words[: x.numel()].view(x.shape).ge_(dropped).to(BITS[x.element_size()]).neg_()


def scale_of(dropped: int) -> float:
    return LEVELS / (LEVELS - dropped)


class _Drop(torch.autograd.Function):
    """Bitwise `and` with the mask: integers of one width are what the CPU is quick at, unlike booleans."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        ctx.scale = scale_of(dropped)
        keep = keep_bits(x, dropped)
        ctx.save_for_backward(keep)
        return _masked(x, keep, ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return _masked(grad, keep, ctx.scale), None


def _masked(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    return (x.view(keep.dtype) & keep).view(x.dtype).mul_(scale)


class _ReluDrop(torch.autograd.Function):
    """relu(x) where kept, without a scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        ctx.mark_dirty(x)
        keep = keep_bits(x, dropped)
        x.relu_().view(keep.dtype).bitwise_and_(keep)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        bits = BITS[out.element_size()]
        # What is above 0 is at least 1 when read as an integer; its mask is then -1, all ones.
        passes = out.view(bits).clamp_max(1).neg_()
        return passes.bitwise_and_(grad.view(bits)).view(grad.dtype), None
