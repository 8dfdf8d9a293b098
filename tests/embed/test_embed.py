from __future__ import annotations

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import make_spec, tables
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from stfm_pipeline.embed import spatial
from stfm_pipeline.embed.frequency import dominant_periods
from stfm_pipeline.embed.run import embed
from stfm_pipeline.embed.spatial import balanced_patches, laplacian_eigenvectors, normalized_coordinates
from stfm_pipeline.embed.spatial import embed as embed_places
from stfm_pipeline.embed.temporal import calendar, holiday_codes, vocabulary
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
    vectors = laplacian_eigenvectors(csr_array(weights), 4)
    both = np.maximum(weights, weights.T)
    root = 1 / np.sqrt(both.sum(1))
    laplacian = np.eye(9) - root[:, None] * both * root[None]
    values = [v @ laplacian @ v for v in vectors.T]
    assert np.allclose(laplacian @ vectors, vectors * values, atol=1e-9)
    assert values == sorted(values)
    assert (vectors[np.abs(vectors).argmax(0), np.arange(4)] > 0).all()
    assert (laplacian_eigenvectors(csr_array(np.zeros((3, 3))), 2) == 0).all()


def test_patches_of_a_grid_are_rectangles() -> None:
    xy = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), -1).reshape(-1, 2)
    patch = balanced_patches(xy, 8)
    assert np.bincount(patch).tolist() == [8] * 8
    for code in range(8):
        span = np.ptp(xy[patch == code], axis=0) + 1
        assert span.prod() == 8


@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 5))
@settings(deadline=None)
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


@pytest.mark.parametrize("zone", ["America/New_York", "Europe/Zurich", "Asia/Kolkata", "Australia/Lord_Howe"])
@pytest.mark.parametrize("start", ["2024-03-09T00", "2024-03-30T00", "2024-10-26T00", "2024-12-30T00"])
def test_the_calendar_agrees_with_the_standard_library_hour_by_hour(zone: str, start: str) -> None:
    times = hours(start, 72)
    table = calendar(times, [zone], HOUR, None)
    for row in table.to_dicts():
        local = row["time"].astimezone(ZoneInfo(zone))
        assert row["tod"] == local.hour
        assert row["dow"] == local.weekday()
        shift = local.utcoffset()
        assert shift is not None
        assert abs(row["offset"] - shift.total_seconds() / 3600) <= 0.5
        angle = (local.hour + local.minute / 60) / 24 * 2 * np.pi
        assert (row["day_sin"], row["day_cos"]) == pytest.approx((np.sin(angle), np.cos(angle)), abs=1e-6)


def test_days_of_a_clock_change_have_23_and_25_hours() -> None:
    table = calendar(hours("2024-01-01T05", 366 * 24), ["America/New_York"], HOUR, None)
    days = table.with_columns(day=pl.col("time").dt.convert_time_zone("America/New_York").dt.date())
    sizes = {d: n for d, n in days.group_by("day").len().iter_rows() if n != 24}
    assert sizes == {date(2024, 3, 10): 23, date(2024, 11, 3): 25}
    assert days.filter(pl.col("day") == date(2024, 3, 10))["tod"].to_list() == [0, 1, *range(3, 24)]
    assert days.filter(pl.col("day") == date(2024, 11, 3))["tod"].to_list() == [0, 1, 1, *range(2, 24)]


def test_a_holiday_is_a_civil_day_in_each_zone() -> None:
    table = calendar(hours("2024-07-03T00", 72), ["America/New_York", "Asia/Tokyo"], HOUR, "US")
    for code, zone in enumerate(["America/New_York", "Asia/Tokyo"]):
        for row in table.filter(zone=code).to_dicts():
            day = row["time"].astimezone(ZoneInfo(zone)).date()
            assert row["holiday"] == {date(2024, 7, 3): 2, date(2024, 7, 4): 1}.get(day, 0), (zone, row["time"])


def test_steps_of_five_minutes_and_of_a_day_have_their_own_times_of_day() -> None:
    fine = calendar(hours("2024-01-01", 1) + np.arange(288) * np.timedelta64(300, "s"), ["UTC"], HOUR // 12, None)
    assert fine["tod"].to_list() == list(range(288))
    daily = calendar(hours("2024-01-01", 240)[::24], ["UTC"], HOUR * 24, None)
    assert daily["tod"].to_list() == [0] * 10
    counts = vocabulary(daily, datetime(2024, 1, 8, tzinfo=UTC), HOUR * 24)
    assert counts.filter(feature="tod")["count"].to_list() == [7]


def test_a_vocabulary_counts_the_training_part_alone() -> None:
    table = calendar(hours("2024-01-01", 48), ["UTC"], HOUR, None)
    counts = vocabulary(table, datetime(2024, 1, 1, 6, tzinfo=UTC), HOUR)
    assert counts.filter(feature="tod")["count"].to_list() == [1] * 6 + [0] * 18
    assert counts.filter(feature="dow")["count"].to_list() == [6] + [0] * 6
    assert counts.filter(feature="tod")["code"].to_list() == list(range(24))


def test_patches_do_not_depend_on_the_order_in_which_entities_are_listed() -> None:
    xy = np.random.default_rng(0).normal(size=(50, 2))
    order = np.random.default_rng(1).permutation(50)
    assert np.array_equal(balanced_patches(xy, 7)[order], balanced_patches(xy[order], 7))


def test_coordinates_keep_their_shape_on_the_ground() -> None:
    xy = normalized_coordinates(np.array([10.0, 11.0, 10.0]), np.array([60.0, 60.0, 60.5]))
    east, north = xy[1] - xy[0], xy[2] - xy[0]
    assert np.abs(xy).max() == pytest.approx(1)
    assert north[1] / east[0] == pytest.approx(1, abs=0.02), "at 60 degrees a degree east is half a degree north"
    assert np.isnan(normalized_coordinates(np.full(2, np.nan), np.full(2, np.nan))).all()


def test_entities_without_a_place_are_patched_along_their_edges() -> None:
    names = list("abcdef")
    entities = pl.DataFrame({"entity": names, "lon": [None] * 6, "lat": [None] * 6}).cast(
        {"lon": pl.Float64, "lat": pl.Float64}
    )
    ties = [("a", "c"), ("c", "e"), ("e", "a"), ("b", "d"), ("d", "f"), ("f", "b")]
    edges = pl.DataFrame(
        {
            "source": [s for s, _ in ties] + ["a"],
            "target": [t for _, t in ties] + ["b"],
            "weight": [1.0] * 6 + [0.01],
        }
    )
    table = embed_places(entities, edges, 2, 3)
    patch = dict(table.select("entity", "patch").iter_rows())
    assert patch["a"] == patch["c"] == patch["e"] != patch["b"] == patch["d"] == patch["f"]
    assert table["x"].null_count() == 6


@given(st.integers(0, 50), st.integers(2, 12), st.integers(1, 15))
@settings(deadline=None)
def test_eigenvectors_are_orthonormal_and_short_of_entities_zero(seed: int, n: int, k: int) -> None:
    weights = np.random.default_rng(seed).random((n, n)) + 0.01
    vectors = laplacian_eigenvectors(csr_array(weights), k)
    real = min(k, n - 1)
    assert vectors.shape == (n, k)
    assert np.allclose(vectors[:, :real].T @ vectors[:, :real], np.eye(real), atol=1e-9)
    assert (vectors[:, real:] == 0).all()
    assert np.array_equal(vectors, laplacian_eigenvectors(csr_array(weights.T.copy()), k)), "directions count alike"


def test_periods_are_looked_for_in_the_training_part_and_gaps_do_not_pass_for_swings() -> None:
    t = np.arange(24 * 40)
    rng = np.random.default_rng(0)
    values = (10 + np.sin(t * 2 * np.pi / 24)).astype(np.float32)[:, None, None]
    values[24 * 30 :] = 10 + 50 * np.sin(t[24 * 30 :] * 2 * np.pi / 7)[:, None, None]
    observed = rng.random(values.shape) < 0.8
    values = np.where(observed, values, 0).astype(np.float32)
    signal = Signal(hours("2024-01-01", len(t)), ("a",), ("x",), values, observed)
    found = dominant_periods(signal, slice(0, 24 * 30), 3)
    assert found["period"][0] == pytest.approx(24)
    assert found["power"][0] > 0.5
    assert found["rank"].to_list() == [1, 2, 3]
    assert found["power"].is_sorted(descending=True)


@pytest.mark.parametrize("band", [0, 2000])
def test_a_large_sparse_graph_gets_the_eigenvectors_that_the_dense_way_gives(
    band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    n = 300
    places = rng.random((n, 2))
    far = np.linalg.norm(places[:, None] - places, axis=2)
    weights = np.where(far < 0.13, np.exp(-far), 0)
    np.fill_diagonal(weights, 0)
    weights[-3:] = weights[:, -3:] = 0
    weights[-1, -2] = 1.0
    dense = laplacian_eigenvectors(csr_array(weights), 6)
    monkeypatch.setattr(spatial, "DENSE", 0)
    monkeypatch.setattr(spatial, "BAND", band)
    sparse = laplacian_eigenvectors(csr_array(weights), 6)
    assert (dense != 0).any(axis=0).sum() >= 4
    assert np.array_equal((dense != 0).any(axis=0), (sparse != 0).any(axis=0)), (
        "repeated eigenvalues are left out alike"
    )
    assert np.allclose(dense, sparse, atol=1e-6)


@pytest.mark.parametrize("band", [0, 2000])
@pytest.mark.parametrize(("height", "width"), [(12, 12), (12, 19)])
def test_repeated_eigenvalues_of_a_grid_are_left_out_the_sparse_way_too(
    height: int, width: int, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, column = np.divmod(np.arange(height * width), width)
    apart = np.abs(row[:, None] - row) + np.abs(column[:, None] - column)
    grid = csr_array((apart == 1).astype(float))
    monkeypatch.setattr(spatial, "DENSE", 10_000)
    dense = laplacian_eigenvectors(grid, 8)
    monkeypatch.setattr(spatial, "DENSE", 0)
    monkeypatch.setattr(spatial, "BAND", band)
    sparse = laplacian_eigenvectors(grid, 8)
    assert (dense != 0).any(axis=0).all() == (height != width), "a square has each wave in both directions"
    assert np.allclose(dense, sparse, atol=1e-6)


def test_patches_of_a_square_grid_are_equal_rectangles() -> None:
    rows, columns = np.divmod(np.arange(64 * 64), 64)
    patch = balanced_patches(np.stack([columns, rows], axis=1).astype(float), 16)
    assert len(set(np.bincount(patch).tolist())) == 1
    for code in np.unique(patch):
        inside = patch == code
        height, width = np.ptp(rows[inside]) + 1, np.ptp(columns[inside]) + 1
        assert height * width == inside.sum()
