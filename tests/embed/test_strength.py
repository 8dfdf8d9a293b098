"""Seasonal strength of signals whose strength is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stfm_pipeline.embed.strength import strengths

T, PERIOD = 24 * 60, 24
WAVE = np.sin(np.arange(T) * 2 * np.pi / PERIOD)
SEEN = np.ones((T, 1, 1), np.bool_)


def series(*columns: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.stack(columns, axis=1)[:, :, None].astype(np.float32)


def seasonal(
    values: NDArray[np.float32], observed: NDArray[np.bool_], period: int, phase: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    return strengths(values, observed, period, phase)[0]


def noise(n: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(T, n))


def test_a_pure_season_is_1_and_noise_is_0() -> None:
    pulses = np.where(np.arange(T) % PERIOD == 7, 100.0, 0.0)
    assert seasonal(series(WAVE, pulses, 5 * WAVE + 40), np.ones((T, 3, 1), bool), PERIOD) == pytest.approx(1)
    white = noise(200).reshape(T, 100, 2).astype(np.float32)
    found = seasonal(white, np.ones_like(white, np.bool_), PERIOD)
    assert found.shape == (100, 2)
    assert found.mean() < 0.01
    # Two seasons only: the phase means fit half of the noise, and still it scores about 0.
    assert seasonal(white[: 2 * PERIOD], np.ones((2 * PERIOD, 100, 2), bool), PERIOD).mean() < 0.15


@pytest.mark.parametrize("seasons", [4, 60])
@pytest.mark.parametrize("share", [1.0, 0.6])
def test_equal_variance_of_season_and_noise_is_a_half(seasons: int, share: float) -> None:
    t = seasons * PERIOD
    mixed = (WAVE[:t, None] * np.sqrt(2) + noise(300)[:t])[:, :, None]
    found = seasonal(mixed, np.random.default_rng(3).random(mixed.shape) < share, PERIOD)
    assert np.nanmean(found) == pytest.approx(0.5, abs=0.02)
    assert np.isfinite(found).mean() > 0.95


def test_a_line_in_noise_has_the_trend_of_its_variance() -> None:
    line = np.linspace(-5, 5, 4 * PERIOD)[:, None]
    mixed = (line + noise(300)[: 4 * PERIOD])[:, :, None]
    trend = strengths(mixed, np.ones_like(mixed, np.bool_), PERIOD)[1]
    assert trend.mean() == pytest.approx(line.var() / (line.var() + 1), abs=0.02)


def test_gaps_change_neither_a_season_nor_noise() -> None:
    rng = np.random.default_rng(1)
    seen = rng.random((T, 2, 1)) > 0.4
    # The nights of one series are missing most of the time, as where nothing flies.
    seen[:, 0, 0] &= (np.arange(T) % PERIOD > 5) | (rng.random(T) > 0.9)
    both = series(WAVE * 3, noise(1)[:, 0])
    both[~seen] = 1e6
    season, white = seasonal(both, seen, PERIOD)[:, 0]
    assert season == pytest.approx(1, abs=1e-3)
    assert white < 0.05


def test_a_sparse_series_is_not_strong_for_being_sparse() -> None:
    rng = np.random.default_rng(2)
    white = noise(200)[:, :, None]
    half, hardly = (rng.random(white.shape) < share for share in (0.3, 0.04))
    season, trend = strengths(white, half, PERIOD)
    assert max(season.mean(), trend.mean()) < 0.03
    assert np.isnan(strengths(white, hardly, PERIOD)[0]).mean() > 0.9


def test_trend_is_told_from_season() -> None:
    slope = np.linspace(-3, 3, T)
    season, trend = strengths(series(slope + noise(1)[:, 0] / 10, slope + WAVE), np.ones((T, 2, 1), bool), PERIOD)
    assert season[0, 0] < 0.05
    assert trend[0, 0] == pytest.approx(1, abs=0.01)
    assert season[1, 0] == pytest.approx(1, abs=0.01)
    assert trend[1, 0] == pytest.approx(1, abs=0.01)
    assert strengths(series(WAVE), SEEN, PERIOD)[1][0, 0] < 0.05


def test_civil_phases_follow_a_clock_change() -> None:
    clock = np.arange(T)
    clock[T // 2 :] += 1
    civil = np.sin(clock * 2 * np.pi / PERIOD) ** 3
    by_clock = seasonal(series(civil), SEEN, PERIOD, phase=clock % PERIOD)[0, 0]
    assert by_clock == pytest.approx(1)
    assert seasonal(series(civil), SEEN, PERIOD)[0, 0] < by_clock - 0.02


@pytest.mark.parametrize(
    ("values", "seen", "period"),
    [
        (np.full(T, 3.7), SEEN, PERIOD),
        (WAVE, np.zeros_like(SEEN), PERIOD),
        (WAVE, np.arange(T)[:, None, None] < PERIOD, PERIOD),
        (WAVE, SEEN, T),
        (WAVE, SEEN, 1),
    ],
    ids=["constant", "unobserved", "one season", "season as long as the series", "no season"],
)
def test_what_cannot_be_judged_is_not_a_number(
    values: NDArray[np.float64], seen: NDArray[np.bool_], period: int
) -> None:
    season, trend = strengths(series(values), seen, period)
    assert np.isnan(season).all()
    assert np.isnan(trend).all()
