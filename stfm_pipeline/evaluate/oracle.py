"""The forecast of who knows how generated data were made: scored on the very windows of an evaluation.

It is no system: it is never trained, registered or a candidate, and its name is none that a system can have.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stfm_pipeline.errors import StfmError
from stfm_pipeline.forecaster import Forecaster
from stfm_pipeline.tasks.forecasting import Inputs
from stfm_pipeline.truth import OPTIMUM, LinearGaussian, Truth
from stfm_pipeline.windows import Problem


class Oracle(nn.Module):
    """The conditional mean under the true parameters, from the state that a window shows.

    Shapes: inputs over (b, look_back, n, 1) -> (b, horizon, n, 1), standardised. Raises `StfmError` where a window is
    too short to show the state, or cells of it are missing.
    """

    def __init__(self, truth: LinearGaussian, problem: Problem) -> None:
        super().__init__()
        p = problem
        self.truth, self.horizon, self.past = truth, p.horizon, p.past
        self.zone = p.zones.index("UTC")
        reach: dict[str | None, int] = {None: p.look_back, **dict.fromkeys(p.past, p.recent)}
        if hidden := [s for s in truth.shown if s.back >= reach.get(s.column, 0)]:
            raise StfmError(
                f"windows of '{p.dataset}' do not show the state that the optimum starts from",
                expected=f"{hidden[0].column or truth.channel}, {hidden[0].back + 1} steps of it",
                found=f"a look-back of {p.look_back} and the side columns {', '.join(p.past) or 'none'}",
                fix="lengthen the look-back",
            )
        for name in ("transition", "level", "cycle"):
            value = torch.from_numpy(getattr(truth, name)).float()
            self.register_buffer(name, value, persistent=False)
        for name in ("mean", "std", "past_mean", "past_std"):
            self.register_buffer(name, p.tensors[name], persistent=False)

    def forward(self, inputs: Inputs) -> Float[Tensor, "b h n c"]:
        if not (bool(inputs.observed.all()) and bool(inputs.past_observed.all())):
            raise StfmError(
                "the optimum is known for windows without gaps alone", fix="leave the generated data as they are"
            )
        parts = self.get_buffer
        known = parts("level") + parts("cycle")[inputs.calendar[:, :, self.zone, 0] - 1]
        x = (inputs.x * parts("std") + parts("mean"))[..., 0] - known
        side = inputs.past * parts("past_std") + parts("past_mean")
        state = torch.cat(
            [
                x[:, -1 - s.back] if s.column is None else side[:, -1 - s.back, :, self.past.index(s.column)]
                for s in self.truth.shown
            ],
            dim=1,
        )
        ahead = parts("level") + parts("cycle")[inputs.calendar_ahead[:, :, self.zone, 0] - 1]
        out = []
        for step in range(self.horizon):
            state = state @ parts("transition").T
            out.append(ahead[:, step] + state[:, : self.truth.n])
        return (torch.stack(out, dim=1)[..., None] - parts("mean")) / parts("std")


def oracle(truth: Truth, problem: Problem) -> Forecaster | None:
    """The oracle as a forecaster, ready to be scored beside systems; None where only a bound is known."""
    if not isinstance(truth, LinearGaussian):
        return None
    return Forecaster(OPTIMUM, problem, Oracle(truth, problem).eval(), absent={})
