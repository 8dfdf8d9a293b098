"""PatchSTG: attention inside spatial patches and across them (Fang et al., KDD 2025), on graphs and grids.

Entities are embedded as by STID (own past, identity, place, civil time, side information), stand in the universal
patches of the embedded stage, and take turns in attending to their own patch and to the same place of every other one.
Sizes are the published ones where they do not hang on the data: five blocks, one head, a feed-forward network as wide
as the tokens. What differs: STID's linear path beside it all, and embeddings of 32 each, which suit smaller sets.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from stfm_pipeline.backbones.patches import PatchBlock, from_patches, to_patches
from stfm_pipeline.systems.spec import System, Training
from stfm_pipeline.systems.stid import STID
from stfm_pipeline.windows import Problem


class Patched(nn.Module):
    """Blocks over patches of entities. Shapes: (b, n, d) -> (b, n, d)."""

    cell: Tensor
    home: Tensor

    def __init__(self, problem: Problem, *blocks: PatchBlock) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        for name in ("cell", "home"):
            self.register_buffer(name, problem.tensors[f"patch_{name}"].clone(), persistent=False)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return from_patches(self.blocks(to_patches(x, self.cell)), self.home)


class PatchSTG(STID):
    """Shapes: inputs over (b, look_back, n, c) -> (b, horizon, n, c)."""

    def __init__(
        self, problem: Problem, width: int = 32, heads: int = 1, layers: int = 5, dropout: float = 0.1
    ) -> None:
        super().__init__(problem, width, layers=0)
        whole = self.head.in_features
        blocks = (PatchBlock(whole, heads, whole, dropout) for _ in range(layers))
        self.layers = nn.Sequential(Patched(problem, *blocks))


SYSTEM = System(
    name="patchstg",
    title="PatchSTG",
    summary="STID's embeddings under attention inside spatial patches and across them.",
    reference="Fang et al., Efficient Large-Scale Traffic Forecasting with Transformers (PatchSTG), KDD 2025",
    branch="primitive",
    objective="regression",
    backbone="transformer",
    dependencies="both",
    build=PatchSTG,
    needs=("past", "ahead"),
    training=Training(learning_rate=2e-3, batch_size=16, precision="bf16"),
)
