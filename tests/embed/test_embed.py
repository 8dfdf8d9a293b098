from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import START, make_spec, tables
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from stfm_pipeline.datasets.spec import Embed, Tokens
from stfm_pipeline.embed import spatial
from stfm_pipeline.embed.frequency import density, dominant_periods, standardised
from stfm_pipeline.embed.places import place_table
from stfm_pipeline.embed.run import embed, extend
from stfm_pipeline.embed.spatial import balanced_patches, laplacian_eigenvectors, normalized_coordinates
from stfm_pipeline.embed.temporal import calendar, holiday_codes, vocabulary
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.settings import Settings
from stfm_pipeline.stage import Tail
from stfm_pipeline.tables import Signal, times_of

HOUR = 3_600_000_000


def hours(start: str, n: int) -> np.ndarray:
    return (np.datetime64(start, "h") + np.arange(n)).astype("datetime64[us]")


def test_civil_time_follows_daylight_saving_in_each_zone() -> None:
    table = calendar(hours("2024-11-03T04", 4), ["America/New_York", "UTC"], HOUR, [None, None])
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
    for table in ("vocabulary", "spatial", "spectrum", "density", "calendar"):
        assert a.tables[table].equals(b.tables[table]), table
    assert a.passed
    assert a.facts["patches"] == 4


def test_categories_that_training_never_saw_are_reported() -> None:
    spec = make_spec()
    result = embed(spec, harmonize(spec, tables()).tables)
    counts = result.tables["vocabulary"].filter(feature="holiday")["count"].to_list()
    assert counts[1] == 24 + 23, "20 February 2023 is a holiday in the US; Zurich's began an hour before the data"
    features = {"tod", "dow", "holiday"}
    assert not features & {u.split()[0] for u in result.facts["unseen_categories"]}
    nowhere = make_spec(country=None)
    cut = embed(nowhere, harmonize(nowhere, tables()).tables)
    assert [u for u in cut.facts["unseen_categories"] if u.split()[0] in features] == ["holiday 1", "holiday 2"]
    seen = result.tables["vocabulary"].filter(pl.col("count") > 0)
    assert seen.filter(feature="month")["code"].to_list() == [1, 2], "February and March"
    assert seen.filter(feature="week")["code"].to_list() == [6, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("zone", ["America/New_York", "Europe/Zurich", "Asia/Kolkata", "Australia/Lord_Howe"])
@pytest.mark.parametrize("start", ["2024-03-09T00", "2024-03-30T00", "2024-10-26T00", "2024-12-30T00"])
def test_the_calendar_agrees_with_the_standard_library_hour_by_hour(zone: str, start: str) -> None:
    times = hours(start, 72)
    table = calendar(times, [zone], HOUR, [None])
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
    table = calendar(hours("2024-01-01T05", 366 * 24), ["America/New_York"], HOUR, [None])
    days = table.with_columns(day=pl.col("time").dt.convert_time_zone("America/New_York").dt.date())
    sizes = {d: n for d, n in days.group_by("day").len().iter_rows() if n != 24}
    assert sizes == {date(2024, 3, 10): 23, date(2024, 11, 3): 25}
    assert days.filter(pl.col("day") == date(2024, 3, 10))["tod"].to_list() == [0, 1, *range(3, 24)]
    assert days.filter(pl.col("day") == date(2024, 11, 3))["tod"].to_list() == [0, 1, 1, *range(2, 24)]


def test_a_holiday_is_a_civil_day_in_each_zone() -> None:
    table = calendar(hours("2024-07-03T00", 72), ["America/New_York", "Asia/Tokyo"], HOUR, ["US", "US"])
    for code, zone in enumerate(["America/New_York", "Asia/Tokyo"]):
        for row in table.filter(zone=code).to_dicts():
            day = row["time"].astimezone(ZoneInfo(zone)).date()
            assert row["holiday"] == {date(2024, 7, 3): 2, date(2024, 7, 4): 1}.get(day, 0), (zone, row["time"])


def test_steps_of_five_minutes_and_of_a_day_have_their_own_times_of_day() -> None:
    fine = calendar(hours("2024-01-01", 1) + np.arange(288) * np.timedelta64(300, "s"), ["UTC"], HOUR // 12, [None])
    assert fine["tod"].to_list() == list(range(288))
    daily = calendar(hours("2024-01-01", 240)[::24], ["UTC"], HOUR * 24, [None])
    assert daily["tod"].to_list() == [0] * 10
    counts = vocabulary(daily, datetime(2024, 1, 8, tzinfo=UTC), HOUR * 24)
    assert counts.filter(feature="tod")["count"].to_list() == [7]


def test_a_vocabulary_counts_the_training_part_alone() -> None:
    table = calendar(hours("2024-01-01", 48), ["UTC"], HOUR, [None])
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
    table, made = place_table(entities, edges, Embed(eigenvectors=2, patch_size=3), Settings())
    patch = dict(table.select("entity", "patch").iter_rows())
    assert patch["a"] == patch["c"] == patch["e"] != patch["b"] == patch["d"] == patch["f"]
    assert table["x"].null_count() == 6
    assert not table["located"].any()
    assert made["patch"]["of"] == "eigenvectors"


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


def noise(t: int, share: float, level: float = 1.0) -> Signal:
    rng = np.random.default_rng(0)
    values = (50 + level * rng.normal(size=(t, 2, 1))).astype(np.float32)
    observed = rng.random(values.shape) < share
    return Signal(hours("2024-01-01", t), ("a", "b"), ("x",), np.where(observed, values, 0), observed)


def test_the_density_of_white_noise_is_flat_at_its_variance_whatever_is_missing() -> None:
    for share in (1.0, 0.5):
        table = density(noise(24 * 400, share, 3.0), slice(0, 24 * 300), 6, 24)
        # One-sided: the variance is spread over half the sampling rate of 24 a day.
        assert np.abs(table["power"].to_numpy() - np.log10(9 / 12)).max() < 0.15, share


def test_bands_grow_with_frequency_and_say_where_power_is() -> None:
    t = np.arange(24 * 60)
    values = np.sin(t * 2 * np.pi / 24)[:, None, None].repeat(2, axis=1).astype(np.float32)
    values[:, 1] = 0.1
    signal = Signal(hours("2024-01-01", len(t)), ("daily", "flat"), ("x",), values, np.ones(values.shape, bool))
    table = density(signal, slice(0, len(t)), 8, 168)
    own, low, high = (table.filter(entity="daily")[k].to_numpy() for k in ("power", "low", "high"))
    assert len(own) == 8
    assert low[own.argmax()] <= 1 <= high[own.argmax()]
    assert (low[1:] > high[:-1]).all()
    assert (low[0], high[-1]) == pytest.approx((24 / 672, 12))
    assert table.filter(entity="flat")["power"].null_count() == 8
    assert len(density(signal, slice(0, 6), 8, 168)) == 2 * 3, "six steps have three frequencies"


def test_log_power_is_standardised_over_entities_that_have_any() -> None:
    signal = noise(24 * 60, 1.0)
    louder = np.concatenate([signal.values, signal.values * 3, np.ones_like(signal.values[:, :1])], axis=1)
    names = ("a", "b", "c", "d", "still")
    grown = Signal(signal.times, names, ("x",), louder, np.ones(louder.shape, bool))
    found = standardised(density(grown, slice(0, len(louder)), 4, 24), 5)
    assert found.shape == (5, 4)
    assert np.allclose(found[:4].mean(axis=0), 0, atol=1e-6)
    assert np.allclose(found[:4].std(axis=0), 1, atol=1e-5)
    assert (found[2:4].mean(axis=1) > found[:2].mean(axis=1)).all()
    assert (found[4] == 0).all()


def test_months_and_weeks_are_civil() -> None:
    table = calendar(hours("2024-12-29T00", 96), ["Pacific/Auckland", "UTC"], HOUR, [None, None])
    for code, zone in enumerate(["Pacific/Auckland", "UTC"]):
        for row in table.filter(zone=code).to_dicts():
            local = row["time"].astimezone(ZoneInfo(zone))
            assert (row["month"], row["week"]) == (local.month - 1, local.isocalendar().week - 1)


def test_entities_of_one_zone_in_two_countries_have_holidays_of_their_own() -> None:
    spec, raw = make_spec(), tables()
    raw["entities"] = raw["entities"].with_columns(
        zone=pl.lit("Europe/Zurich"), country=pl.Series(["FR", "FR", "DE", "DE", None, None])
    )
    result = embed(spec, harmonize(spec, raw).tables)
    assert result.tables["zones"].rows() == [
        (0, "Europe/Zurich", "DE"),
        (1, "Europe/Zurich", "FR"),
        (2, "Europe/Zurich", "US"),
    ]
    holidays = result.tables["calendar"].filter(pl.col("time").dt.convert_time_zone("Europe/Zurich").dt.hour() == 12)
    off = {code: holidays.filter(zone=code, holiday=1)["time"].dt.date().to_list() for code in range(3)}
    easter = date(2023, 4, 10)
    assert off == {0: [date(2023, 4, 7), easter], 1: [easter], 2: [date(2023, 2, 20)]}, "Good Friday is not French"


def test_what_lands_after_the_split_only_lengthens_the_calendar() -> None:
    spec, raw = make_spec(embed=Embed(tokens=Tokens(codebook=4))), tables(62)
    until = pl.col("time") < START + timedelta(days=60)
    short = raw | {"observations": raw["observations"].filter(until)}
    before = harmonize(spec, short)
    first = embed(spec, before.frames)
    grown = harmonize(spec, raw, before.frame("split")).frames
    whole = embed(spec, grown)
    more = extend(spec, first.facts, times_of(grown["signal"]["time"]))
    tail = more.tables["calendar"]
    assert isinstance(tail, Tail)
    assert len(tail.frame) == 2 * 24 * 2
    assert pl.concat([first.frame("calendar"), tail.frame]).equals(whole.frame("calendar"))
    assert more.facts == whole.facts
    for table in set(whole.tables) - {"calendar"}:
        assert first.frame(table).equals(whole.frame(table)), table


def test_clips_that_are_constant_each_by_itself_do_not_swing() -> None:
    values = np.repeat(np.array([0.1, 0.7, 0.3, 0.9], np.float32), 10).reshape(-1, 1, 1)
    signal = Signal(hours("2024-01-01", 40), ("a",), ("x",), values, np.ones(values.shape, bool))
    assert len(dominant_periods(signal, slice(0, 40), 3, 10)) == 0
    assert density(signal, slice(0, 40), 3, 24, 10)["power"].null_count() == 3


def test_spectra_of_clips_know_nothing_of_the_order_of_clips() -> None:
    rng = np.random.default_rng(0)
    clips = rng.normal(size=(40, 20, 1, 1)) + 9 * (-1) ** np.arange(40)[:, None, None, None]
    both = []
    for order in (np.arange(40), rng.permutation(40)):
        values = clips[order].reshape(-1, 1, 1).astype(np.float32)
        signal = Signal(hours("2024-01-01", 800), ("a",), ("x",), values, np.ones(values.shape, bool))
        train = slice(0, 800)
        both.append((dominant_periods(signal, train, 3, 20), density(signal, train, 4, 24, 20)))
    (periods, power), (again, power_again) = both
    assert periods["period"].to_list() == again["period"].to_list()
    assert np.allclose(power["power"], power_again["power"], atol=1e-4)
    assert max(periods["period"].to_list()) <= 20, "no clip shows a longer period than its own length"
