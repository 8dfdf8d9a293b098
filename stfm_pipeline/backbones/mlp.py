"""Residual multilayer perceptron."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from stfm_pipeline.backbones.dropout import ReluDropoutLinear


class ResidualMLP(nn.Module):
    """x + W2 dropout(relu(W1 x)). Shapes: (..., d) -> (..., d)."""

    def __init__(self, width: int, dropout: float = 0.15) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), ReluDropoutLinear(width, width, dropout))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        # As rows of one matrix a linear layer's result is memory of its own, which may be written over without a copy.
        rows = x.flatten(end_dim=-2)
        out: Tensor = self.layers(rows).add_(rows)
        return out.view(x.shape)
