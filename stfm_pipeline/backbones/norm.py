"""Reversible instance normalisation over the observed part of a window (after RevIN, Kim et al., ICLR 2022)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MIN_OBSERVED = 8


def masked_moments(
    x: Float[Tensor, "b t n c"], observed: Bool[Tensor, "b t n c"]
) -> tuple[Float[Tensor, "b 1 n c"], Float[Tensor, "b 1 n c"]]:
    """Mean and deviation per series; 0 and 1 where the mask leaves fewer than eight values or they do not vary."""
    count = observed.sum(dim=1, keepdim=True)
    mean = x.sum(dim=1, keepdim=True) / count.clamp(min=1)
    variance = (((x - mean) * observed).square()).sum(dim=1, keepdim=True) / count.clamp(min=1)
    allowed = (count >= MIN_OBSERVED) & (variance > 1e-6)
    std = torch.where(allowed, variance.clamp(min=1e-6).sqrt(), 1.0)
    return torch.where(count >= MIN_OBSERVED, mean, 0.0), std
