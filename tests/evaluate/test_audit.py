"""A forecast that knows what nobody can know stands out; honest ones do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.foreign_models import ridge, truth

from stfm_pipeline.evaluate.audit import Audit, Finding
from stfm_pipeline.evaluate.compare import compare
from stfm_pipeline.evaluate.exchange import export, window_set
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.windows import load_panel


@pytest.fixture
def folder(enriched: Lake, settings: Settings, tmp_path: Path) -> Path:
    panel = load_panel(enriched, "synthetic", settings.cache)
    export(panel, window_set(panel, "test"), tmp_path / "windows", {})
    return tmp_path / "windows"


def audit(folder: Path, lake: Lake, settings: Settings, forecast: np.ndarray) -> dict[str, Finding]:
    path = folder.parent / "mine.npz"
    np.savez(path, window=np.load(folder / "series.npz")["window"], forecast=forecast)
    return {f.name: f for f in compare("synthetic", [path], lake, settings).findings}


def test_honest_forecasts_raise_no_suspicion_and_a_clock_that_is_off_does(
    folder: Path, enriched: Lake, settings: Settings
) -> None:
    found = audit(folder, enriched, settings, ridge(folder))
    # The synthetic rhythm keeps UTC; what goes by civil time alone is an hour off once summer time has begun.
    off = {"historical-average", "historical-median"}
    assert {n for n, f in found.items() if f.suspect} == off
    assert {found[n].shift for n in off} == {1}
    assert set(found) == {"mine", "constant", "last-value", "seasonal-naive", *off}


@pytest.mark.parametrize("shift", [-1, 1, 2])
def test_truth_shifted_by_a_step_is_told_with_its_shift(
    shift: int, folder: Path, enriched: Lake, settings: Settings
) -> None:
    found = audit(folder, enriched, settings, truth(folder, shift))["mine"]
    assert found.suspect
    assert found.shift == shift
    assert "better than its own" in found.suspicions[0]


def test_a_shift_is_told_where_nothing_is_forecast_for_targets_that_nobody_observed(
    folder: Path, enriched: Lake, settings: Settings
) -> None:
    s = np.load(folder / "series.npz")
    seen = np.isfinite(np.stack([s["values"][i : i + 12] for i in s["origin"]]))
    found = audit(folder, enriched, settings, np.where(seen, truth(folder, 1), np.nan))["mine"]
    assert (found.shift, found.suspect) == (1, True)
    honest = audit(folder, enriched, settings, np.where(seen, ridge(folder), np.nan))["mine"]
    assert honest.gain is not None
    assert honest.gain < 0
    assert not honest.suspect


@pytest.mark.parametrize(("windows", "horizon"), [(200, 12), (9, 4)])
def test_one_channel_of_seven_that_is_shifted_is_told(windows: int, horizon: int) -> None:
    noise = torch.randn(windows + horizon, 3, 7, generator=torch.Generator().manual_seed(0))
    target, later = (torch.stack([noise[i + k : i + k + horizon] for i in range(windows)]) for k in (0, 1))
    forecast = torch.zeros_like(target)
    forecast[..., 4] = later[..., 4]
    forecast[..., 5] = target[..., 5] / 2
    seen = torch.ones_like(target, dtype=torch.bool)
    one = Audit(windows, horizon, 7)
    one.add(forecast, target, seen, torch.zeros_like(target), seen)
    found = one.finding("mine", 24, np.zeros(horizon))
    assert (found.shift, found.gain) == (1, pytest.approx(1, abs=1e-6))
    assert "better than its own" in found.suspicions[0]


def test_forecasts_filed_one_window_late_are_told(folder: Path, enriched: Lake, settings: Settings) -> None:
    made = ridge(folder)
    found = audit(folder, enriched, settings, np.concatenate([made[1:], made[-1:]]))["mine"]
    assert found.suspect
    assert found.shift == 1


def test_targets_with_a_little_noise_are_told(folder: Path, enriched: Lake, settings: Settings) -> None:
    std = np.load(folder / "series.npz")["std"]
    noise = np.random.default_rng(0).normal(0, 0.1, truth(folder).shape) * std
    found = audit(folder, enriched, settings, truth(folder) + noise)["mine"]
    assert any("foresees" in s for s in found.suspicions)


def test_a_forecast_whose_first_step_is_the_truth_is_told(folder: Path, enriched: Lake, settings: Settings) -> None:
    made = ridge(folder)
    made[:, 0] = truth(folder)[:, 0]
    found = audit(folder, enriched, settings, made)["mine"]
    assert any("targets of step 1 exactly" in s for s in found.suspicions)
