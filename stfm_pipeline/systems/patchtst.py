"""PatchTST: each series alone as a sequence of overlapping patches through a transformer (Nie et al., ICLR 2023).

The supervised model with the small sizes its authors use on ETTh1 (width 16, 4 heads, feed-forward 128, 3 layers).
Reversible normalisation sees observed cells only. Attention carries no scores from layer to layer, unlike the
published code; batch norm, learned positions and the flattened head are as published.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from stfm_pipeline.backbones.dropout import Dropout
from stfm_pipeline.backbones.norm import masked_moments
from stfm_pipeline.backbones.transformer import EncoderLayer
from stfm_pipeline.systems.spec import System, Training
from stfm_pipeline.tasks.forecasting import Inputs
from stfm_pipeline.windows import Problem


class PatchTST(nn.Module):
    """Shapes: (b, look_back, n, c) -> (b, horizon, n, c). `patch` and `stride` are in steps."""

    def __init__(
        self,
        problem: Problem,
        patch: int = 16,
        stride: int = 8,
        width: int = 16,
        heads: int = 4,
        hidden: int = 128,
        layers: int = 3,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.patch = min(patch, problem.look_back)
        self.stride = min(stride, self.patch)
        self.pad = nn.ReplicationPad1d((0, self.stride))
        count = (problem.look_back - self.patch) // self.stride + 2
        self.embed = nn.Linear(self.patch, width)
        self.position = nn.Parameter(nn.init.uniform_(self.embed.weight.new_empty(count, width), -0.02, 0.02))
        self.drop = Dropout(dropout)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, hidden, dropout) for _ in range(layers)))
        self.head = nn.Linear(count * width, problem.horizon)

    def forward(self, inputs: Inputs) -> Float[Tensor, "b h n c"]:
        mean, std = masked_moments(inputs.x, inputs.observed)
        x = ((inputs.x - mean) / std * inputs.observed).movedim(1, -1)
        series = self.pad(x.flatten(0, 2).unsqueeze(1)).squeeze(1)
        tokens = self.embed(series.unfold(-1, self.patch, self.stride)) + self.position
        out = self.head(self.layers(self.drop(tokens)).flatten(1)).view(*x.shape[:-1], -1)
        answer: Tensor = out.movedim(-1, 1) * std + mean
        return answer


SYSTEM = System(
    name="patchtst",
    title="PatchTST",
    summary="Overlapping patches of each series through a transformer, with reversible normalisation.",
    reference="Nie et al., A Time Series is Worth 64 Words, ICLR 2023",
    branch="primitive",
    objective="regression",
    backbone="transformer",
    dependencies="temporal",
    build=PatchTST,
    training=Training(learning_rate=2e-4, batch_size=64, precision="bf16"),
)
