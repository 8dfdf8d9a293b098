"""STID: spatial and temporal identity with an MLP (Shao et al., CIKM 2022), extended by side information.

A node's history, its own embedding, the civil time of day and day of week, and what is known beside the signal are
concatenated and pass residual layers. Weather enters with its last day, the timetable with the whole horizon.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stfm_pipeline.backbones.mlp import ResidualMLP
from stfm_pipeline.systems.spec import System, Training
from stfm_pipeline.tasks.forecasting import Inputs
from stfm_pipeline.windows import Problem


class STID(nn.Module):
    """Shapes: inputs over (b, look_back, n, c) -> (b, horizon, n, c)."""

    zone: Tensor
    places: Tensor

    def __init__(self, problem: Problem, width: int = 32, layers: int = 3, dropout: float = 0.15) -> None:
        super().__init__()
        p = problem
        self.horizon, self.c = p.horizon, p.c
        self.register_buffer("zone", p.tensors["zone"].clone())
        self.register_buffer("places", p.places, persistent=False)
        side = 2 * p.recent * len(p.past) + 2 * p.horizon * len(p.ahead)
        self.history = nn.Linear(2 * p.look_back * p.c, width)
        self.place = nn.Linear(self.places.shape[1], width, bias=False)
        self.node = nn.Parameter(torch.empty(p.n, width))
        nn.init.xavier_uniform_(self.node)
        self.tod = nn.Embedding(p.steps_per_day + 1, width, padding_idx=0)
        self.dow = nn.Embedding(8, width, padding_idx=0)
        self.holiday = nn.Embedding(4, width, padding_idx=0)
        self.side = nn.Linear(side, width) if side else None
        blocks = 5 if side else 4
        self.layers = nn.Sequential(*(ResidualMLP(blocks * width, dropout) for _ in range(layers)))
        self.head = nn.Linear(blocks * width, p.horizon * p.c)
        self.direct = nn.ModuleList(nn.Linear(p.look_back + p.horizon * len(p.ahead), p.horizon) for _ in range(p.c))

    def forward(self, inputs: Inputs) -> Float[Tensor, "b h n c"]:
        b, _, n, _ = inputs.x.shape
        history = self.history(torch.cat([_per_node(inputs.x), _per_node(inputs.observed.to(inputs.x.dtype))], dim=-1))
        # One embedding per zone, not per node; and all blocks as narrow as the first, or the layers would be wide.
        first, middle = inputs.calendar_ahead[:, 0], inputs.calendar_ahead[:, self.horizon // 2]
        when = torch.cat([self.tod(first[..., 0]), self.dow(first[..., 1]) + self.holiday(middle[..., 2])], dim=-1)
        where = (self.node + self.place(self.places)).to(history.dtype)
        parts = [history, where.expand(b, n, -1), when.index_select(1, self.zone).to(history.dtype)]
        if self.side is not None:
            parts.append(self.side(self._side(inputs)))
        out: Tensor = self.head(self.layers(torch.cat(parts, dim=-1))).view(b, n, self.horizon, self.c).movedim(1, 2)
        ahead = _per_node(inputs.ahead)
        linear = [layer(torch.cat([inputs.x[..., k].mT, ahead], dim=-1)) for k, layer in enumerate(self.direct)]
        return out + torch.stack(linear, dim=-1).movedim(1, 2)

    def _side(self, inputs: Inputs) -> Tensor:
        known = [inputs.past, inputs.past_observed, inputs.ahead, inputs.ahead_observed]
        return torch.cat([_per_node(k.to(inputs.x.dtype)) for k in known], dim=-1)


def _per_node(x: Float[Tensor, "b t n k"]) -> Float[Tensor, "b n tk"]:
    return x.movedim(2, 1).flatten(2)


SYSTEM = System(
    name="stid",
    title="STID",
    summary="Spatial and temporal identity with an MLP, extended by weather and timetable.",
    reference="Shao et al., Spatial-Temporal Identity: A Simple yet Effective Baseline, CIKM 2022",
    branch="primitive",
    objective="regression",
    backbone="mlp",
    dependencies="both",
    build=STID,
    needs=("past", "ahead"),
    training=Training(learning_rate=2e-3, batch_size=8, precision="bf16"),
)
