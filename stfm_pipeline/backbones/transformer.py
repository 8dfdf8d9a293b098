"""Transformer encoder layers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stfm_pipeline.backbones.dropout import Dropout


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch norm over all tokens, which suits series better than layer norm (Zerveas et al., KDD 2021)."""

    def forward(self, x: Float[Tensor, "s l d"]) -> Float[Tensor, "s l d"]:
        return super().forward(x.flatten(0, 1)).view_as(x)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each added and then normalised. Shapes: (s, l, d) -> (s, l, d)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, width))
        self.norms = nn.ModuleList(TokenBatchNorm(width) for _ in range(2))
        self.drop = Dropout(dropout)

    def forward(self, x: Float[Tensor, "s l d"]) -> Float[Tensor, "s l d"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # The fused kernel is made for wide heads; at a width of 4 it is slower, and backward in bf16 four times so.
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = self.norms[0](x + self.drop(self.out(mixed)))
        answer: Tensor = self.norms[1](x + self.drop(self.feed(x)))
        return answer


class PreNormLayer(nn.Module):
    """Self-attention and a feed-forward network, each added to what it was given. Shapes: (s, l, d) -> (s, l, d)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.drop = Dropout(dropout)

    def forward(self, x: Float[Tensor, "s l d"]) -> Float[Tensor, "s l d"]:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.drop(self.out(mixed))
        answer: Tensor = x + self.drop(self.feed(self.norms[1](x)))
        return answer
