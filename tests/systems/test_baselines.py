"""Baselines by hand: what they copy, what they average, when they fall back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.systems.catalog import get_system
from stfm_pipeline.tasks.forecasting import Inputs, hide
from stfm_pipeline.windows import Panel, load_panel


@pytest.fixture
def panel(enriched: Lake, settings: Settings) -> Panel:
    return load_panel(enriched, "synthetic", settings.cache)


def inputs_at(panel: Panel, origin: int) -> Inputs:
    return hide(panel.arrays.gather(torch.tensor([origin]), panel.problem), panel.problem.look_back)[0]


def baseline(name: str, panel: Panel) -> torch.nn.Module:
    module = get_system(name).build(panel.problem)
    module.fit(panel)  # type: ignore[operator]
    return module


def test_last_value_is_the_latest_observed_one_and_falls_back_on_the_median(panel: Panel) -> None:
    inputs = inputs_at(panel, 700)
    observed = inputs.observed.clone()
    observed[0, -3:, 1, 1], observed[0, -4, 1, 1] = False, True
    observed[0, :, 2, 1] = False
    value, fallback = baseline("last-value", panel)(dataclasses.replace(inputs, observed=observed))
    assert (value[0, :, 1, 1] == inputs.x[0, -4, 1, 1]).all()
    assert fallback[0, :, 2, 1].all()
    assert not fallback[0, :, 1, 1].any()
    train = panel.parts["train"]
    cells = panel.arrays.values[train, 2, 1][panel.arrays.observed[train, 2, 1]]
    assert float(value[0, 0, 2, 1]) == pytest.approx(float(np.median(cells.numpy())), abs=1e-6)


def test_seasonal_naive_copies_the_civil_hour_across_a_change_of_clocks(panel: Panel) -> None:
    module = baseline("seasonal-naive", panel)
    assert int(module.period) == 24
    offsets = panel.arrays.offset[:, 0]
    switch = int((offsets.diff() != 0).nonzero()[0]) + 1
    assert int(offsets[switch] - offsets[switch - 1]) == 1
    inputs = inputs_at(panel, switch)
    value, _ = module(inputs)
    for h in range(12):
        target = switch + h
        civil = target + int(offsets[target])
        (source,) = [s for s in range(target - 30, target) if s + int(offsets[s]) == civil - 24]
        assert float(value[0, h, 0, 0]) == float(panel.arrays.values[source, 0, 0]), h


def test_the_historical_median_is_that_of_the_civil_time_of_week_with_its_fallbacks(panel: Panel) -> None:
    module = baseline("historical-median", panel)
    train = panel.parts["train"]
    known = np.where(panel.arrays.observed[train], panel.arrays.values[train], np.nan)
    tod, dow = (panel.arrays.calendar[train, 1, k].numpy() - 1 for k in (0, 1))
    levels = set()
    for day in range(7):
        for hour in range(24):
            at = tod == hour
            weekday = at & ((dow >= 5) == (day >= 5))
            chain = [known[at & (dow == day), 4, 1], known[weekday, 4, 1], known[at, 4, 1]]
            level = next(k for k, cells in enumerate(chain) if np.isfinite(cells).sum() >= 3)
            levels.add(level)
            expected = float(np.nanmedian(chain[level]))
            assert float(module.table[day * 24 + hour, 4, 1]) == pytest.approx(expected, abs=1e-6)
    assert {0, 1} <= levels, "both the time of week and its fallback speak in this data"
    inputs = inputs_at(panel, 700)
    value, fallback = module(inputs)
    civil = inputs.calendar_ahead[0, :, 1] - 1
    rows = [int(d) * 24 + int(t) for t, d in zip(civil[:, 0], civil[:, 1], strict=True)]
    assert torch.equal(value[0, :, 4], module.table[rows, 4])
    assert not fallback.any()
    unseen = dataclasses.replace(inputs, calendar_ahead=torch.zeros_like(inputs.calendar_ahead))
    value, fallback = module(unseen)
    assert fallback.all()
    assert torch.equal(value[0, 0], module.median)


def test_the_constant_is_the_training_median_whatever_the_window_shows(panel: Panel) -> None:
    module = baseline("constant", panel)
    a, b = module(inputs_at(panel, 400)), module(inputs_at(panel, 900))
    assert torch.equal(a, b)
    assert torch.equal(a[0, 3], module.median)
