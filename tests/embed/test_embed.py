from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import make_spec, tables
from hypothesis import given
from hypothesis import strategies as st

from stfm_pipeline.embed.frequency import dominant_periods
from stfm_pipeline.embed.run import embed
from stfm_pipeline.embed.spatial import balanced_patches, laplacian_eigenvectors
from stfm_pipeline.embed.temporal import calendar, holiday_codes
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.tables import Signal

HOUR = 3_600_000_000


def hours(start: str, n: int) -> np.ndarray:
    return (np.datetime64(start, "h") + np.arange(n)).astype("datetime64[us]")


def test_civil_time_follows_daylight_saving_in_each_zone() -> None:
    table = calendar(hours("2024-11-03T04", 4), ["America/New_York", "UTC"], HOUR, None)
    york, utc = table.filter(zone=0), table.filter(zone=1)
    assert york["tod"].to_list() == [0, 1, 1, 2]
    assert york["offset"].to_list() == [-4, -4, -5, -5]
    assert utc["tod"].to_list() == [4, 5, 6, 7]
    assert york["dow"].to_list() == [6] * 4


def test_holidays_of_the_right_country() -> None:
    days = [date(2024, 7, 3), date(2024, 7, 4), date(2024, 7, 5), date(2024, 12, 31)]
    assert list(holiday_codes(days, "US").values()) == [2, 1, 0, 2]
    assert set(holiday_codes(days, None).values()) == {0}
    with pytest.raises(ContractError, match="holiday calendar"):
        holiday_codes(days, "XX")


def test_eigenvectors_solve_the_laplacian_and_have_a_fixed_sign() -> None:
    rng = np.random.default_rng(0)
    weights = rng.random((9, 9)) * (rng.random((9, 9)) < 0.5)
    vectors = laplacian_eigenvectors(weights, 4)
    both = np.maximum(weights, weights.T)
    root = 1 / np.sqrt(both.sum(1))
    laplacian = np.eye(9) - root[:, None] * both * root[None]
    values = [v @ laplacian @ v for v in vectors.T]
    assert np.allclose(laplacian @ vectors, vectors * values, atol=1e-9)
    assert values == sorted(values)
    assert (vectors[np.abs(vectors).argmax(0), np.arange(4)] > 0).all()
    assert (laplacian_eigenvectors(np.zeros((3, 3)), 2) == 0).all()


def test_patches_of_a_grid_are_rectangles() -> None:
    xy = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), -1).reshape(-1, 2)
    patch = balanced_patches(xy, 8)
    assert np.bincount(patch).tolist() == [8] * 8
    for code in range(8):
        span = np.ptp(xy[patch == code], axis=0) + 1
        assert span.prod() == 8


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 5))
def test_patches_are_balanced_whatever_the_points(n: int, size: int, seed: int) -> None:
    sizes = np.bincount(balanced_patches(np.random.default_rng(seed).normal(size=(n, 2)), size))
    assert sizes.sum() == n
    assert sizes.max() <= size
    assert sizes.max() - sizes.min() <= 1


def test_a_planted_period_is_found() -> None:
    t = np.arange(24 * 30)
    values = (np.sin(t * 2 * np.pi / 24)[:, None, None] + np.zeros((1, 2, 1))).astype(np.float32)
    values[:, 1] = 5
    signal = Signal(hours("2024-01-01", len(t)), ("a", "flat"), ("x",), values, np.ones(values.shape, bool))
    found = dominant_periods(signal, slice(0, len(t)), 2)
    assert found.filter(entity="a", rank=1)["period"].item() == pytest.approx(24)
    assert found.filter(entity="a", rank=1)["power"].item() == pytest.approx(1, abs=1e-6)


def test_noise_after_the_training_part_changes_no_embedding_but_the_calendar() -> None:
    spec, raw = make_spec(), tables()
    first = harmonize(spec, raw)
    end = first.tables["split"].filter(part="train")["end"][0]
    raw["observations"] = raw["observations"].with_columns(
        count=pl.when(pl.col("time") >= end).then(99.0).otherwise("count")
    )
    a, b = embed(spec, first.tables), embed(spec, harmonize(spec, raw).tables)
    for table in ("vocabulary", "spatial", "spectrum", "calendar"):
        assert a.tables[table].equals(b.tables[table]), table
    assert a.passed
    assert a.facts["patches"] == 4


def test_categories_that_training_never_saw_are_reported() -> None:
    spec = make_spec()
    result = embed(spec, harmonize(spec, tables()).tables)
    counts = result.tables["vocabulary"].filter(feature="holiday")["count"].to_list()
    assert counts[1] == 24 + 23, "20 February 2023 is a holiday in the US; Zurich's began an hour before the data"
    assert result.facts["unseen_categories"] == []
    cut = embed(spec.model_copy(update={"country": None}), harmonize(spec, tables()).tables)
    assert cut.facts["unseen_categories"] == ["holiday 1", "holiday 2"]
