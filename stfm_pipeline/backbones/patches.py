"""Entities as tokens of patches and back, and attention inside a patch and across patches."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from stfm_pipeline.backbones.transformer import PreNormLayer


def to_patches(x: Float[Tensor, "b n d"], cell: Int[Tensor, "p s"]) -> Float[Tensor, "b p s d"]:
    """Entities at the places of patches; one that pads a short patch stands in several (see `embed.patches`)."""
    return x.index_select(1, cell.flatten()).view(len(x), *cell.shape, x.shape[-1])


def from_patches(x: Float[Tensor, "b p s d"], home: Int[Tensor, " n"]) -> Float[Tensor, "b n d"]:
    """Each entity from the one place that is its own: the inverse of `to_patches`."""
    return x.flatten(1, 2).index_select(1, home)


class PatchBlock(nn.Module):
    """Attention inside each patch, then across patches between the same places (Fang et al., KDD 2025).

    Costs s^2 p + p^2 s instead of (s p)^2. Shapes: (b, p, s, d) -> (b, p, s, d).
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inside, self.across = (PreNormLayer(width, heads, hidden, dropout) for _ in range(2))

    def forward(self, x: Float[Tensor, "b p s d"]) -> Float[Tensor, "b p s d"]:
        x = self.inside(x.flatten(0, 1)).view(x.shape).transpose(1, 2).contiguous()
        out: Tensor = self.across(x.flatten(0, 1)).view(x.shape).transpose(1, 2)
        return out
