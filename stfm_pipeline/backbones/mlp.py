"""Residual multilayer perceptron."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from stfm_pipeline.backbones.dropout import Dropout


class ResidualMLP(nn.Module):
    """x + W2 dropout(relu(W1 x)). Shapes: (..., d) -> (..., d)."""

    def __init__(self, width: int, dropout: float = 0.15) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.ReLU(), Dropout(dropout), nn.Linear(width, width))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        out: Tensor = x + self.layers(x)
        return out
