"""Graph WaveNet: gated dilated convolutions over time, diffusion over given and learned edges (Wu et al., IJCAI 2019).

Sizes are the published ones: 32 channels, 256 in the skip connection, 512 at the end, kernel 2, four blocks of
dilations 1 and 2, two diffusion steps on the walks along and against the given edges and on an adjacency learned from
embeddings of 10, dropout 0.3, batch norm. What differs from the published model:

- Inputs are value, mask and time of day per step. The time of day is a point on the circle instead of a fraction, and
  the circle's middle where training never saw it.
- The four blocks see 13 steps, and shorter look-backs are padded, as published. A longer look-back is cut into at most
  16 patches, each of which enters as one step, under dilations 1, 2, 4 and 8: the receptive field is the look-back
  whatever its length, and each layer halves the steps that the next one needs.
- A layer is computed only for steps that reach the forecast, and its skip connection for the last alone: the same
  numbers in less time. The last layer has no diffusion, whose outcome would go nowhere.
- Given edges have no loops: the published matrices have 1 on their diagonal, here W_0 x is the node's own part. Without
  given edges the learned adjacency works alone. Above 1024 nodes the learned one is factored, see `SelfAdaptive`.
- Weight decay is decoupled (AdamW), the loss is over observed cells in standard units.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from stfm_pipeline.backbones.calendar import circle
from stfm_pipeline.backbones.graph import SelfAdaptive, Transition
from stfm_pipeline.backbones.graph_wavenet import GatedConv, Layer, taps
from stfm_pipeline.systems.spec import System, Training
from stfm_pipeline.tasks.forecasting import Inputs
from stfm_pipeline.windows import Problem

SHORT = (1, 2) * 4
LONG = (1, 2, 4, 8)


class GraphWaveNet(nn.Module):
    """Shapes: inputs over (b, look_back, n, c) -> (b, horizon, n, c). Inside, time comes first: (t, n, b, width).

    `given` and `adaptive` say which edges to use; with neither, every entity is forecast from its own past.
    """

    zone: Tensor
    clock: Tensor

    def __init__(
        self,
        problem: Problem,
        width: int = 32,
        skip: int = 256,
        end: int = 512,
        order: int = 2,
        embedding: int = 10,
        dropout: float = 0.3,
        given: bool = True,
        adaptive: bool = True,
    ) -> None:
        super().__init__()
        p = problem
        self.horizon, self.c = p.horizon, p.c
        dilations = SHORT if p.look_back <= 1 + sum(SHORT) else LONG
        self.steps = 1 + sum(dilations)
        self.patch = math.ceil(p.look_back / self.steps)
        self.pad = self.steps * self.patch - p.look_back
        self.register_buffer("zone", p.tensors["zone"].clone(), persistent=False)
        self.register_buffer("clock", circle(p.steps_per_day), persistent=False)
        edges = p.tensors["edge_index"], p.tensors["edge_weight"]
        ways = (False, True) if given and len(edges[1]) else ()
        self.given = nn.ModuleList(Transition(*edges, p.n, reverse=way) for way in ways)
        self.adaptive = SelfAdaptive(p.n, embedding) if adaptive and p.n > 1 else None
        self.values = nn.Linear(self.patch * p.c, width)
        self.mask = nn.Linear(self.patch * p.c, width, bias=False)
        self.time = nn.Linear(self.patch * 2, width, bias=False)
        supports = len(self.given) + (self.adaptive is not None)
        *inner, last = taps(dilations)
        self.layers = nn.ModuleList(Layer(width, t, supports, order, dropout) for t in inner)
        self.last = GatedConv(width, last)
        self.skip = nn.Linear(len(dilations) * width, skip)
        nn.init.uniform_(self.skip.weight, -(width**-0.5), width**-0.5)
        self.end = nn.Linear(skip, end)
        self.head = nn.Linear(end, p.horizon * p.c)

    def forward(self, inputs: Inputs) -> Float[Tensor, "b h n c"]:
        supports = [*self.given, *([self.adaptive()] if self.adaptive is not None else [])]
        x, skips = self._stem(inputs), []
        for layer in self.layers:
            x, step = layer(x, supports)
            skips.append(step)
        skips.append(self.last(x)[0][-1])
        out = self.end(F.relu(self.skip(torch.cat(skips, dim=-1))))
        answer: Tensor = self.head(F.relu(out)).unflatten(-1, (self.horizon, self.c)).permute(1, 2, 0, 3)
        return answer

    def _stem(self, inputs: Inputs) -> Float[Tensor, "t n b d"]:
        # The clock is the same for all nodes of a zone, so it is mapped once per zone.
        clock = self.time(self._patches(self.clock[inputs.calendar[..., 0]])).index_select(1, self.zone)
        seen = self._patches(inputs.observed).to(inputs.x.dtype)
        out: Tensor = self.values(self._patches(inputs.x)) + self.mask(seen) + clock
        return out

    def _patches(self, x: Shaped[Tensor, "b l n f"]) -> Shaped[Tensor, "t n b p"]:
        x = F.pad(x, (0, 0, 0, 0, self.pad, 0))
        return x.view(len(x), self.steps, self.patch, *x.shape[2:]).permute(1, 3, 0, 2, 4).flatten(3)


SYSTEM = System(
    name="graph-wavenet",
    title="Graph WaveNet",
    summary="Gated dilated convolutions over time with diffusion over given and learned edges.",
    reference="Wu et al., Graph WaveNet for Deep Spatial-Temporal Graph Modeling, IJCAI 2019",
    branch="primitive",
    objective="regression",
    backbone="graph",
    dependencies="both",
    build=GraphWaveNet,
    training=Training(learning_rate=1e-3, batch_size=64, weight_decay=1e-4, precision="bf16"),
)
