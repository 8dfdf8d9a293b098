"""SimVP on grids of every size, and on a field that only neighbours can forecast."""

from __future__ import annotations

from statistics import fmean

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from stfm_pipeline.backbones.simvp import Gate
from stfm_pipeline.systems.simvp import SimVP
from stfm_pipeline.tasks.forecasting import Inputs
from stfm_pipeline.windows import Problem

DAY = 24


def make_problem(grid: tuple[int, int], look_back: int, horizon: int, c: int = 1) -> Problem:
    n = grid[0] * grid[1]
    return Problem(
        dataset="made",
        kind="grid",
        look_back=look_back,
        horizon=horizon,
        entities=tuple(str(i) for i in range(n)),
        channels=tuple(f"channel_{i}" for i in range(c)),
        minimum=(None,) * c,
        step_us=3_600_000_000,
        steps_per_day=DAY,
        zones=("Asia/Tokyo", "UTC"),
        zone="UTC",
        countries=(None, None),
        seasons=(DAY,),
        past=(),
        ahead=(),
        loss="mse",
        tensors={"zone": torch.ones(n, dtype=torch.long)},
        grid=grid,
    )


def make_inputs(x: Tensor, horizon: int, observed: Tensor | None = None) -> Inputs:
    b, t, n, _ = x.shape
    clock = (torch.arange(t + horizon) % DAY + 1)[None, :, None, None].expand(b, -1, 2, 3).clamp(max=3)
    none, ahead = x.new_zeros(b, t, n, 0), x.new_zeros(b, horizon, n, 0)
    return Inputs(
        x=x,
        observed=torch.ones_like(x, dtype=torch.bool) if observed is None else observed,
        calendar=clock[:, :t],
        calendar_ahead=clock[:, t:],
        offset=torch.zeros(b, t, 2, dtype=torch.long),
        offset_ahead=torch.zeros(b, horizon, 2, dtype=torch.long),
        past=none,
        past_observed=none.bool(),
        ahead=ahead,
        ahead_observed=ahead.bool(),
    )


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (25, 53), (33, 49), (54, 18)])
@pytest.mark.parametrize(("look_back", "horizon"), [(1, 4), (4, 1)])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_every_cell_of_any_grid_reaches_the_forecast_of_any_horizon(
    grid: tuple[int, int], look_back: int, horizon: int, layers: int
) -> None:
    n = grid[0] * grid[1]
    module = SimVP(make_problem(grid, look_back, horizon, c=2), width=4, hidden=8, blocks=1, layers=layers)
    x = torch.randn(2, look_back, n, 2, requires_grad=True)
    out = module(make_inputs(x, horizon))
    assert out.shape == (2, horizon, n, 2)
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    assert (grad.abs().amax(dim=(0, 1, 3)) > 0).all()


def test_cells_lie_row_after_row_in_what_goes_in_and_what_comes_out() -> None:
    """With all but one cell unobserved, what its value changes most in the skip connection alone is that cell."""
    torch.manual_seed(0)
    grid, cell = (6, 9), 3 * 9 + 7
    module = SimVP(make_problem(grid, 2, 2), width=4, hidden=8, blocks=1).eval()
    for layer in module.direct:
        torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(module.out.weight)
    x = torch.zeros(1, 2, 54, 1)
    lit = x.clone()
    lit[:, :, cell] = 3.0
    change = (module(make_inputs(lit, 2)) - module(make_inputs(x, 2))).abs()[0, 0, :, 0].view(grid)
    near = F.pad(change, (2, 2, 2, 2))[3 : 3 + 5, 7 : 7 + 5].sum()
    assert near > 0.5 * change.sum()


def test_mask_and_civil_time_are_seen_and_an_unseen_time_is_neutral() -> None:
    torch.manual_seed(0)
    module = SimVP(make_problem((4, 5), 6, 3), width=4, hidden=8, blocks=1).eval()
    x = torch.zeros(1, 6, 20, 1)
    plain = make_inputs(x, 3)
    hidden = make_inputs(x, 3, observed=torch.zeros(1, 6, 20, 1, dtype=torch.bool))
    assert not torch.allclose(module(plain), module(hidden))

    def at(zone: int, code: int) -> Tensor:
        calendar = plain.calendar_ahead.clone()
        calendar[:, :, zone] = code
        answer: Tensor = module(Inputs(**{**vars(plain), "calendar_ahead": calendar}))
        return answer

    assert torch.equal(at(0, 2), at(0, 3)), "nobody lives in the zone of Tokyo"
    assert not torch.allclose(at(1, 2), at(1, 3))
    for table in (module.tod, module.dow, module.holiday):
        assert not table.weight[0].any()


def carried(steps: int, side: int = 8, keep: float = 0.9) -> Tensor:
    """(t, n, 1): noise that a steady wind carries one cell eastwards a step, round and round."""
    generator = torch.Generator().manual_seed(3)
    field, series = torch.zeros(side, side), []
    for _ in range(steps):
        noise = torch.randn(side, side, generator=generator)
        field = keep * field.roll(1, dims=1) + (1 - keep**2) ** 0.5 * noise
        series.append(field.flatten())
    return torch.stack(series)[50:, :, None]


def test_it_learns_where_the_wind_carries_a_field() -> None:
    look_back, horizon, keep = 3, 2, 0.9
    series = carried(600)
    windows = series.unfold(0, look_back + horizon, 1).movedim(-1, 1)
    train, test = windows[:400], windows[420:]
    torch.manual_seed(0)
    module = SimVP(make_problem((8, 8), look_back, horizon), width=8, hidden=32, blocks=1)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    for _ in range(100):
        batch = train[torch.randint(len(train), (16,))]
        loss = F.mse_loss(module(make_inputs(batch[:, :look_back], horizon)), batch[:, look_back:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = test[:, :look_back], test[:, look_back:]
    with torch.inference_mode():
        error = float(F.mse_loss(module.eval()(make_inputs(x, horizon)), y))
    persistence = float(F.mse_loss(x[:, -1:].expand_as(y), y))
    optimum = fmean(1 - keep ** (2 * h) for h in (1, 2))
    assert optimum < error
    assert persistence - error > 0.9 * (persistence - optimum)


def test_gradients_in_bf16_hold_nothing_that_memory_held_before() -> None:
    torch.manual_seed(0)
    gate = Gate(64, 9)
    x = torch.randn(8, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    found = []
    for left in (0.0, float("nan"), 1e30):
        held = [torch.full((1 << k,), left) for k in range(10, 22)]
        del held
        gate.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            gate(x).float().square().mean().backward()
        found.append([p.grad.clone() for p in gate.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
