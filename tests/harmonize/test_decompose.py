"""Parts sum to the signal, look back alone, and are what the papers say they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import NAMES, make_spec, tables
from pydantic import ValidationError

from stfm_pipeline.datasets.rules import Decompose
from stfm_pipeline.datasets.spec import Harmonize
from stfm_pipeline.harmonize import decompose
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.stage import Result
from stfm_pipeline.tables import Signal

HOUR = 3_600_000_000


def signal_of(values: np.ndarray, observed: np.ndarray | None = None, start: int = 0) -> Signal:
    """One channel of (t, n) values on an hourly clock."""
    times = np.datetime64("2023-01-01", "us") + (start + np.arange(len(values))) * np.timedelta64(HOUR, "us")
    names = tuple(f"e{i}" for i in range(values.shape[1]))
    seen = np.ones(values.shape, np.bool_) if observed is None else observed
    kept = np.where(seen, values, 0).astype(np.float32)
    return Signal(times, names, ("v",), kept[..., None], seen[..., None])


def gappy(t: int = 500, n: int = 3) -> Signal:
    rng = np.random.default_rng(0)
    return signal_of(rng.normal(0, 5, (t, n)).cumsum(axis=0) + 100, rng.random((t, n)) < 0.8)


def test_the_transform_a_trous_is_that_of_its_paper_where_nothing_is_missing() -> None:
    x = np.random.default_rng(0).normal(0, 1, (300, 2))
    parts = decompose.components(signal_of(x), np.zeros((0, 2, 1)), Decompose(levels=3))
    assert parts.channels == ("v.detail1", "v.detail2", "v.detail3", "v.smooth")
    smooth = x.astype(np.float32).astype(np.float64)
    for level in range(3):
        coarser = smooth.copy()
        coarser[2**level :] = (smooth[2**level :] + smooth[: -(2**level)]) / 2
        assert np.allclose(parts.values[7:, :, level], (smooth - coarser)[7:], atol=1e-5)
        smooth = coarser
    assert np.allclose(parts.values[7:, :, 3], smooth[7:], atol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 7, 24, 168])
def test_trailing_sums_are_those_of_the_last_steps_wherever_a_series_starts(width: int) -> None:
    x = np.random.default_rng(width).normal(0, 1, (400, 2))
    found = decompose.trailing_sum(x, width)
    for t in range(400):
        assert np.allclose(found[t], x[max(0, t - width + 1) : t + 1].sum(axis=0))
    assert np.array_equal(decompose.trailing_sum(x[100:], width)[width - 1 :], found[100 + width - 1 :])


@pytest.mark.parametrize("rule", [Decompose(period=24), Decompose(levels=5), Decompose(period=7, levels=2)])
def test_parts_sum_to_what_is_observed_and_later_values_change_none(rule: Decompose) -> None:
    signal = gappy()
    profile = np.random.default_rng(1).normal(0, 3, (rule.period or 0, 3, 1))
    parts = decompose.components(signal, profile, rule)
    assert decompose.check(signal, parts, profile, rule).passed
    assert np.array_equal(parts.observed, np.repeat(signal.observed, len(parts.channels), axis=2))
    assert (parts.values[~parts.observed] == 0).all()
    changed = Signal(signal.times, signal.entities, signal.channels, signal.values.copy(), signal.observed)
    changed.values[300:] *= -3
    assert np.array_equal(decompose.components(changed, profile, rule).values[:300], parts.values[:300])
    first = 300 - decompose.reach(rule)
    late = Signal(
        signal.times[first:], signal.entities, signal.channels, signal.values[first:], signal.observed[first:]
    )
    assert np.array_equal(decompose.components(late, profile, rule).values[300 - first :], parts.values[300:])
    parts.values[10] += 1
    assert len(decompose.check(signal, parts, profile, rule).details) >= 2


def test_a_season_and_a_trend_that_were_put_in_are_found() -> None:
    rng = np.random.default_rng(0)
    t = np.arange(24 * 60)
    season = 5 * np.sin(t * 2 * np.pi / 24)
    wave = season + 0.01 * t + rng.normal(0, 0.1, len(t))
    noise = rng.normal(0, 1, len(t))
    signal = signal_of(np.stack([wave, noise, np.full(len(t), 3.0)], axis=1), rng.random((len(t), 3)) < 0.9, start=5)
    table, strength = decompose.fit(signal, slice(0, 24 * 40), 24)
    profile = decompose.profile_of(table, 3, 1)
    phase = decompose.phases(signal.times, HOUR, 24)
    assert np.allclose(profile[phase, 0, 0], season, atol=0.1)
    assert np.allclose(profile.sum(axis=0), 0, atol=1e-9)
    rows = {r["entity"]: r for r in strength.to_dicts()}
    assert rows["e0"]["seasonal"] > 0.99
    assert rows["e0"]["trend"] > 0.99
    assert rows["e1"]["seasonal"] < 0.5
    assert (rows["e2"]["seasonal"], rows["e2"]["trend"]) == (None, None), "a constant has no parts to compare"
    parts = decompose.components(signal, profile, Decompose(period=24)).values[48:]
    seen = signal.observed[48:, 0, 0]
    assert np.abs(parts[seen, 0, 1] - (0.01 * (t[48:] - 11.5))[seen]).max() < 0.6, "the mean of the last day"
    assert np.abs(parts[seen, 0, 2]).max() < 1


def run(rule: dict[str, Any], raw: Any = None) -> Result:
    harmonized = Harmonize(step="1h", decompose=Decompose.model_validate(rule))
    return harmonize(make_spec(harmonize=harmonized), raw or tables())


def test_the_stage_publishes_parts_and_profile_of_training_alone() -> None:
    result = run({"period": 24, "levels": 3})
    assert {c.name: c.details for c in result.checks if not c.passed} == {}
    names = result.facts["dense"]["components"]
    assert names[:8] == [
        f"count.{p}" for p in ("seasonal", "trend", "remainder", "detail1", "detail2", "detail3", "smooth")
    ] + ["level.seasonal"]
    parts = Signal.from_frame(result.frame("components"), NAMES, names)
    signal = Signal.from_frame(result.frame("signal"), NAMES, ["count", "level"])
    for k in range(2):
        for way in (slice(7 * k, 7 * k + 3), slice(7 * k + 3, 7 * k + 7)):
            assert np.allclose(parts.values[..., way].sum(axis=2), signal.values[..., k], atol=1e-3)
    raw, end = tables(), result.frame("split").filter(part="train")["end"][0]
    late = pl.when(pl.col("time") >= end).then(pl.col("level") * -3 + 7).otherwise("level")
    again = run({"period": 24, "levels": 3}, raw | {"observations": raw["observations"].with_columns(level=late)})
    for name in ("profile", "strength"):
        assert again.frame(name).equals(result.frame(name))
    assert not again.frame("components").equals(result.frame("components"))


@pytest.mark.parametrize(("rule", "why"), [({}, "state a `period`"), ({"period": 1}, "greater than or equal to 2")])
def test_what_makes_no_sense_is_refused(rule: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Decompose.model_validate(rule)
