"""Graph WaveNet on problems of every size, and on one that only neighbours can solve."""

from __future__ import annotations

from functools import cache
from statistics import median

import pytest
import torch
from torch import Tensor

from stfm_pipeline.systems.graph_wavenet import GraphWaveNet
from stfm_pipeline.tasks.forecasting import Inputs
from stfm_pipeline.windows import Problem

DAY = 24


def make_problem(n: int, edges: list[tuple[int, int]], look_back: int, horizon: int, c: int = 1) -> Problem:
    return Problem(
        dataset="made",
        kind="graph",
        look_back=look_back,
        horizon=horizon,
        entities=tuple(str(i) for i in range(n)),
        channels=tuple(f"channel_{i}" for i in range(c)),
        minimum=(None,) * c,
        step_us=3_600_000_000,
        steps_per_day=DAY,
        zones=("UTC", "Asia/Tokyo"),
        zone="UTC",
        countries=(None, None),
        seasons=(DAY,),
        past=(),
        ahead=(),
        loss="mae",
        tensors={
            "zone": torch.arange(n) % 2,
            "edge_index": torch.tensor(edges, dtype=torch.long).reshape(-1, 2).T,
            "edge_weight": torch.linspace(0.2, 2.0, len(edges)),
        },
    )


def make_inputs(x: Tensor, horizon: int, observed: Tensor | None = None) -> Inputs:
    b, t, n, _ = x.shape
    clock = (torch.arange(t + horizon) % DAY + 1)[None, :, None, None].expand(b, -1, 2, 3)
    none = x.new_zeros(b, t, n, 0)
    ahead = x.new_zeros(b, horizon, n, 0)
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


@pytest.mark.parametrize("look_back", [1, 2, 12, 13, 14, 16, 17, 40, 168, 336])
def test_every_step_of_any_look_back_reaches_the_forecast_of_any_horizon(look_back: int) -> None:
    horizon = 1 + look_back // 2
    module = GraphWaveNet(make_problem(4, [(0, 1), (1, 2), (2, 0)], look_back, horizon, c=2), width=8)
    module.train()
    x = torch.randn(3, look_back, 4, 2, requires_grad=True)
    out = module(make_inputs(x, horizon))
    assert out.shape == (3, horizon, 4, 2)
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    assert (grad.abs().amax(dim=(0, 2)) > 0).all()


@pytest.mark.parametrize(
    ("n", "edges"), [(1, []), (5, []), (5, [(0, 1)]), (3, [(a, b) for a in range(3) for b in range(3)])]
)
def test_graphs_without_edges_with_one_and_with_all(n: int, edges: list[tuple[int, int]]) -> None:
    module = GraphWaveNet(make_problem(n, edges, 12, 6))
    x = torch.randn(2, 12, n, 1)
    module(make_inputs(x, 6)).square().sum().backward()
    assert [k for k, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert module.eval()(make_inputs(x, 6)).isfinite().all()


def test_the_published_sizes() -> None:
    """The published model has 309 400 weights at METR-LA's size, some of which nothing reads."""
    module = GraphWaveNet(make_problem(207, [(0, 1)], 12, 12))
    unread = 8 * (32 * 32 + 32) + (7 * 32 * 32 + 32 + 2 * 32)
    repeated_bias = 7 * 256
    mask_and_circle = 2 * 32
    assert sum(p.numel() for p in module.parameters()) == 309_400 - unread - repeated_bias + mask_and_circle


def test_mask_and_time_of_day_are_seen_and_an_unseen_time_is_neutral() -> None:
    module = GraphWaveNet(make_problem(3, [(0, 1)], 12, 6)).eval()
    x = torch.zeros(1, 12, 3, 1)
    plain = make_inputs(x, 6)
    hidden = make_inputs(x, 6, observed=torch.zeros(1, 12, 3, 1, dtype=torch.bool))
    assert not torch.allclose(module(plain), module(hidden))
    later = Inputs(**{**vars(plain), "calendar": (plain.calendar + 5) % DAY + 1})
    unseen = Inputs(**{**vars(plain), "calendar": torch.zeros_like(plain.calendar)})
    assert not torch.allclose(module(plain), module(later))
    assert module(unseen).isfinite().all()
    assert not module.clock[0].any()


DELAY = 3


@cache
def delayed() -> Tensor:
    """(t, 3, 1): three white noises, of which entity 1 repeats entity 0 three steps later."""
    generator = torch.Generator().manual_seed(5)
    series = torch.randn(3000, 3, 1, generator=generator)
    series[DELAY:, 1] = series[:-DELAY, 0] + 0.2 * series[DELAY:, 1]
    return series


@cache
def error_of_the_follower(edges: bool, adaptive: bool) -> float:
    """Mean absolute error on entity 1, median of three short trainings; white noise around 0 is missed by 0.8."""
    return median(one_training(seed, edges, adaptive) for seed in range(3))


def one_training(seed: int, edges: bool, adaptive: bool) -> float:
    torch.manual_seed(seed)
    problem = make_problem(3, [(0, 1), (1, 2)], 12, DELAY)
    module = GraphWaveNet(problem, width=16, skip=32, end=32, dropout=0.1, given=edges, adaptive=adaptive)
    windows = delayed().unfold(0, 12 + DELAY, 1).movedim(-1, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(120):
        window = windows[torch.randint(0, 2400, (32,))]
        loss = (module(make_inputs(window[:, :12], DELAY)) - window[:, 12:]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()
    test = windows[2450:]
    with torch.inference_mode():
        return float((module(make_inputs(test[:, :12], DELAY)) - test[:, 12:]).abs()[:, :, 1].mean())


def test_it_finds_who_follows_whom_along_a_given_edge() -> None:
    assert error_of_the_follower(edges=True, adaptive=False) < 0.5 * error_of_the_follower(edges=False, adaptive=False)


def test_it_finds_who_follows_whom_without_being_told() -> None:
    assert error_of_the_follower(edges=False, adaptive=True) < 0.75 * error_of_the_follower(edges=False, adaptive=False)
