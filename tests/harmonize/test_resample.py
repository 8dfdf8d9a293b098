"""Rows of one step become one value by the channel's rule, from rows and dense tables alike."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import START, make_spec
from pydantic import ValidationError

from stfm_pipeline.datasets.spec import Channel, DatasetSpec, Facts, Harmonize
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.tables import Signal, dense_observations, long_observations

HOURS = 300


def spec_of(how: dict[str, Any], step: str = "1h", **rule: Any) -> DatasetSpec:
    channels = (Channel(name="count", unit="1", **how), Channel(name="level", unit="m", maximum=90, aggregate="last"))
    return make_spec(joins=(), facts=Facts(), channels=channels, harmonize=Harmonize(step=step, **rule))


def quarters(seed: int = 0) -> tuple[list[dict[str, pl.DataFrame]], np.ndarray]:
    """Three series every fifteen minutes, some of it missing: dense, and the same as rows."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 100, (4 * HOURS, 3, 2)).astype(float)
    values[rng.random(values.shape) < 0.4] = np.nan
    times = pl.Series([START + timedelta(minutes=15 * i) for i in range(len(values))], dtype=pl.Datetime("us", "UTC"))
    dense = dense_observations(times, {"count": values[..., 0], "level": values[..., 1]})
    names = ["a", "b", "c"]
    entities = pl.DataFrame({"entity": names})
    return [{"observations": o, "entities": entities} for o in (dense, long_observations(dense, names))], values


@pytest.mark.parametrize("at_least", [1, 3])
@pytest.mark.parametrize("how", ["mean", "sum", "min", "max", "first", "last"])
def test_an_hour_is_what_its_quarters_make(how: str, at_least: int) -> None:
    raws, values = quarters()
    spec = spec_of({"aggregate": how, "at_least": at_least})
    results = [harmonize(spec, raw) for raw in raws]
    one, other = (Signal.from_frame(r.frame("signal"), ["a", "b", "c"], spec.channel_names) for r in results)
    assert results[0].facts == results[1].facts
    assert np.array_equal(one.observed, other.observed)
    assert np.array_equal(one.values, other.values)
    hours = np.ma.masked_invalid(values[..., 0].reshape(HOURS, 4, 3))
    picked = {"first": lambda x: x[:, 0], "last": lambda x: x[:, 3]}.get(how, lambda x: getattr(x, how)(axis=1))
    expected, count = picked(hours), hours.count(axis=1)
    seen = ~np.ma.getmaskarray(expected) & (count >= at_least)
    assert np.array_equal(one.observed[..., 0], seen)
    assert np.allclose(one.values[..., 0], np.where(seen, expected.filled(0), 0), rtol=1e-6)
    lost = results[0].facts["masked"]["count"].get("too_few_rows")
    assert lost == (None if at_least == 1 else ((count > 0) & (count < at_least)).sum())
    within = np.where(values[:, :, 1] <= 90, values[:, :, 1], np.nan).reshape(HOURS, 4, 3)[:, 3]
    assert np.array_equal(one.observed[..., 1], np.isfinite(within)), "what is out of range is masked before"


def test_a_channel_without_a_rule_has_its_duplicates_refused() -> None:
    for raw in quarters()[0]:
        with pytest.raises(ContractError, match=r"share an entity and a step of 1h[\s\S]*aggregate"):
            harmonize(spec_of({}), raw)
        assert harmonize(spec_of({}, duplicates="last"), raw).passed


def test_a_clock_finer_than_the_source_is_masked_between_and_never_filled() -> None:
    for raw in quarters()[0]:
        fine = harmonize(spec_of({"aggregate": "mean"}, step="5m"), raw)
        signal = Signal.from_frame(fine.frame("signal"), ["a", "b", "c"], ["count", "level"])
        between = np.arange(len(signal.times)) % 3 != 0
        assert not signal.observed[between].any()
        assert np.array_equal(signal.observed[::3, :, 0], np.isfinite(quarters()[1][..., 0]))


def test_one_row_is_too_few_where_two_are_asked_for() -> None:
    for raw in quarters()[0]:
        with pytest.raises(ContractError, match=r"channel 'count' has no observed value[\s\S]*too_few_rows"):
            harmonize(spec_of({"aggregate": "mean", "at_least": 2}, step="15m"), raw)


def test_a_sum_too_large_for_single_precision_is_not_observed() -> None:
    raws, values = quarters()
    for raw in raws:
        huge = pl.col("count").list.eval(pl.element() * 0 + 3e38) if raw is raws[0] else pl.col("count") * 0 + 3e38
        result = harmonize(
            spec_of({"aggregate": "sum"}), raw | {"observations": raw["observations"].with_columns(huge)}
        )
        signal = Signal.from_frame(result.frame("signal"), ["a", "b", "c"], ["count", "level"])
        count = np.isfinite(values[..., 0]).reshape(HOURS, 4, 3).sum(axis=1)
        assert np.array_equal(signal.observed[..., 0], count == 1)
        assert result.passed


def test_a_number_of_rows_needs_a_rule() -> None:
    with pytest.raises(ValidationError, match="state `aggregate`"):
        Channel(name="v", unit="1", at_least=2)
