"""Filters mask what they say, look at nothing that comes later, and are counted."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import NAMES, make_spec, tables
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stfm_pipeline.datasets.rules import Coarsen, Filter, Hampel, Spikes, Stuck
from stfm_pipeline.datasets.spec import DatasetSpec, Facts, Harmonize
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize import coarsen, filters
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.tables import Signal

STUCK = Stuck(kind="stuck", steps=3)
SPIKES = Spikes(kind="spikes", change=2)
HAMPEL = Hampel(kind="hampel", window=7, threshold=3)


def masked(series: list[float | None], rule: Filter) -> list[int]:
    """Where a filter masks a series in which None is missing."""
    values = np.array([0 if v is None else v for v in series], np.float32)[:, None, None]
    observed = np.array([v is not None for v in series])[:, None, None]
    before = observed.copy()
    counts = filters.mask(values, observed, (rule,), ("v",))
    gone = np.flatnonzero(before & ~observed)
    assert (values[~observed] == 0).all()
    assert counts == [{"kind": rule.kind, "before": {"v": before.sum()}, "after": {"v": before.sum() - len(gone)}}]
    return gone.tolist()


@pytest.mark.parametrize(
    ("series", "gone"),
    [
        ([1, 5, 5, 5, 5, 5, 2, 2], [4, 5]),
        ([5, 5, 5, None, 5, 5, 5, 5], [7]),
        ([0, 0, 0, 0, 0, 0, 0, 0], [3, 4, 5, 6, 7]),
    ],
)
def test_a_value_that_goes_on_is_masked_until_it_changes_or_is_missing(
    series: list[float | None], gone: list[int]
) -> None:
    assert masked(series, STUCK) == gone


def test_a_value_that_may_go_on_does() -> None:
    assert masked([0] * 6 + [1] * 6, Stuck(kind="stuck", steps=3, besides=(0,))) == [9, 10, 11]


@pytest.mark.parametrize(
    ("series", "gone"),
    [
        ([1, 2, 9, 3, 4], [2]),
        ([1, 2, 9, 9, 9], [2]),
        ([1, None, 5, 5], []),
        ([1, None, 5.1, 5], [2]),
        ([1, None, None, 90, 91], []),
    ],
)
def test_a_spike_is_masked_and_a_new_level_is_accepted_with_its_second_value(
    series: list[float | None], gone: list[int]
) -> None:
    assert masked(series, SPIKES) == gone


def test_a_value_far_from_the_median_of_the_window_behind_it_is_masked() -> None:
    assert masked([1, 2, 1, 2, 1, 2, 9, 2, 1, 9, 2, 1], HAMPEL) == [6, 9]
    assert masked([1, None, None, None, 2, None, 90], HAMPEL) == [], "fewer than half of the window are observed"
    assert masked([1, 1, 1, 1, 1, 1, 9], HAMPEL) == [], "without spread it cannot judge"


@pytest.mark.parametrize("window", [3, 4, 25])
def test_the_trailing_median_is_that_of_numpy(window: int) -> None:
    rng = np.random.default_rng(window)
    values = rng.standard_t(2, (700, 3)).astype(np.float32)
    observed = rng.random(values.shape) < 0.8
    rule = Hampel(kind="hampel", window=window, threshold=4)
    found, known = filters.hampel(values, observed, rule), np.where(observed, values, np.nan)
    for t, n in [(t, n) for t in range(700) for n in range(3)]:
        seen = known[max(0, t - window + 1) : t + 1, n]
        seen = seen[np.isfinite(seen)]
        expected = False
        if observed[t, n] and 2 * len(seen) >= window:
            spread = np.float32(1.4826) * np.median(np.abs(seen - np.median(seen)))
            expected = bool(spread > 0 and np.abs(values[t, n] - np.median(seen)) > np.float32(4) * spread)
        assert found[t, n] == expected, (t, n)
    assert found.any()


@given(st.integers(0, 10_000), st.integers(1, 119))
@settings(max_examples=25, deadline=None)
def test_later_values_change_nothing_and_only_those_within_reach_count(seed: int, cut: int) -> None:
    rng, rules = np.random.default_rng(seed), (SPIKES, STUCK, HAMPEL, SPIKES)
    values = rng.integers(0, 4, (120, 2, 1)).astype(np.float32) * rng.choice([1, 1, 1, 9], (120, 2, 1)).astype(
        np.float32
    )
    observed = rng.random(values.shape) < 0.9
    values[~observed] = 0

    def run(part: slice) -> tuple[np.ndarray, np.ndarray]:
        v, o = values[part].copy(), observed[part].copy()
        filters.mask(v, o, rules, ("v",))
        return v, o

    whole, early = run(slice(None)), run(slice(0, cut))
    late = run(slice(max(0, cut - filters.reach(rules)), None))
    for all_, before, after in zip(whole, early, late, strict=True):
        assert np.array_equal(all_[:cut], before)
        assert np.array_equal(all_[cut:], after[len(after) - (120 - cut) :])


def test_the_stage_counts_what_each_filter_saw_and_left() -> None:
    rules = (Stuck(kind="stuck", steps=1, besides=(0,), channels=("count",)), HAMPEL)
    result = harmonize(make_spec(harmonize=Harmonize(step="1h", filters=rules)), tables())
    assert [c.name for c in result.checks if not c.passed] == []
    plain = Signal.from_frame(harmonize(make_spec(), tables()).frame("signal"), NAMES, ["count", "level"])
    signal = Signal.from_frame(result.frame("signal"), NAMES, ["count", "level"])
    first, second = result.facts["filtered"]
    assert (first["kind"], list(first["before"]), second["kind"]) == ("stuck", ["count"], "hampel")
    assert first["before"]["count"] == plain.observed[..., 0].sum() > first["after"]["count"]
    assert second["before"] == {"count": first["after"]["count"], "level": plain.observed[..., 1].sum()}
    assert second["after"] == {c: signal.observed[..., k].sum() for k, c in enumerate(signal.channels)}
    assert (signal.values[~signal.observed] == 0).all()
    assert json.dumps(result.facts), "facts are plain numbers"


def test_a_series_with_too_little_in_training_is_masked_whole_and_named() -> None:
    raw = tables()
    gap = (pl.col("entity") == "b") & (pl.col("time").dt.month() == 3)
    raw["observations"] = raw["observations"].with_columns(level=pl.when(~gap).then("level"))
    spec = make_spec(harmonize=Harmonize(step="1h", min_observed=0.5))
    result = harmonize(spec, raw)
    signal = Signal.from_frame(result.frame("signal"), NAMES, ["count", "level"])
    before = Signal.from_frame(harmonize(make_spec(), raw).frame("signal"), NAMES, ["count", "level"])
    assert result.facts["few_observed"] == {"count": [], "level": ["b"]}
    assert result.facts["masked"]["level"]["few_observed"] == before.observed[:, 1, 1].sum() > 0
    used = result.frame("mask")
    assert used.filter(~pl.col("used")).select("entity", "channel").rows() == [("b", "level")]
    share = before.observed[: result.facts["parts"]["train"][1], 1, 1].mean()
    assert used.filter(entity="b", channel="level")["observed"].item() == pytest.approx(share)
    assert not signal.observed[:, 1, 1].any()
    assert result.frame("entities")["entity"].to_list() == list(NAMES)
    others = [0, 2, 3, 4, 5]
    assert np.array_equal(signal.observed[:, others], before.observed[:, others])
    with pytest.raises(ContractError, match=r"'level' has no observed value[\s\S]*loosen the filters"):
        harmonize(make_spec(harmonize=Harmonize(step="1h", min_observed=0.99)), raw)


def test_a_series_that_comes_after_training_is_masked_and_counts_as_never_observed() -> None:
    raw, stop = tables(), harmonize(make_spec(), tables()).frame("split")["end"][0]
    late = (pl.col("entity") != "c") | (pl.col("time") >= stop)
    raw["observations"] = raw["observations"].with_columns(level=pl.when(late).then("level"))
    result = harmonize(make_spec(harmonize=Harmonize(step="1h", min_observed=0.01)), raw)
    assert result.frame("mask").filter(observed=0).select("entity", "channel", "used").rows() == [("c", "level", False)]
    assert result.facts["few_observed"] == {"count": [], "level": []}
    assert (
        result.facts["masked"]["level"]["few_observed"] == raw["observations"].filter(entity="c")["level"].count() > 0
    )
    assert "mask" not in harmonize(make_spec(), raw).tables


def test_blocks_are_means_of_their_observed_cells_where_enough_of_them_are() -> None:
    values = np.arange(15, dtype=np.float32).reshape(1, 15, 1)
    observed = np.ones((1, 15, 1), np.bool_)
    observed[0, [0, 1, 5, 14]] = False
    values[~observed] = 0
    mean, seen = coarsen.blocks(values, observed, (3, 5), Coarsen(by=2, at_least=0.5))
    assert seen[0, :, 0].tolist() == [False, True, True, True, True, False]
    assert mean[0, :, 0].tolist() == [0, (2 + 3 + 7 + 8) / 4, (4 + 9) / 2, 10.5, 12.5, 0]
    mean, seen = coarsen.blocks(values, observed, (3, 5), Coarsen(by=2, at_least=0))
    assert mean[0, :, 0].tolist() == [6, 5, 6.5, 10.5, 12.5, 0]
    assert seen[0, :, 0].tolist() == [True] * 5 + [False], "of nothing there is no mean"


def _grid(height: int, width: int) -> pl.DataFrame:
    row, col = np.divmod(np.arange(height * width), width)
    lon, lat = (177 + col * 2.0 + 180) % 360 - 180, row * 1.0
    names = [f"c{i}" for i in range(height * width)]
    return pl.DataFrame({"entity": names, "lon": lon, "lat": lat, "zone": "UTC", "text": None, "row": row, "col": col})


def test_a_block_lies_in_the_middle_of_its_cells_also_across_the_date_line() -> None:
    found = coarsen.cells(_grid(3, 4), Coarsen(by=2))
    assert found["entity"].to_list() == ["block 0-0", "block 0-1", "block 1-0", "block 1-1"]
    assert found["lat"].to_list() == [0.5, 0.5, 2, 2]
    assert found["lon"].to_list() == [178, -178, 178, -178]


def grid_spec(**changes: object) -> DatasetSpec:
    return make_spec(kind="grid", joins=(), facts=Facts(), **changes)


def test_a_coarser_grid_has_its_blocks_as_entities() -> None:
    cells = _grid(2, 3).with_columns(entity=pl.Series(NAMES))
    raw = {"observations": tables()["observations"], "entities": cells}
    spec = grid_spec(harmonize=Harmonize(step="1h", coarsen=Coarsen(by=2)))
    result = harmonize(spec, raw)
    assert [c.name for c in result.checks if not c.passed] == []
    assert (result.facts["grid"], result.facts["entities"]) == ([1, 2], 2)
    fine = Signal.from_frame(harmonize(grid_spec(), raw).frame("signal"), NAMES, ["count", "level"])
    coarse = Signal.from_frame(result.frame("signal"), result.frame("entities")["entity"].to_list(), ["count", "level"])
    assert np.allclose(coarse.values[:, 0, 0], fine.values[:, [0, 1, 3, 4], 0].mean(axis=1))
    assert result.frame("mask")["used"].all(), "a grid says which of its cells are ever observed"
    with pytest.raises(ContractError, match="edges link cells"):
        harmonize(spec, raw | {"edges": tables()["edges"]})


@pytest.mark.parametrize(
    ("harmonize", "why"),
    [
        ({"filters": [{"kind": "stuck", "steps": 2, "channels": ["levle"]}]}, "names the channel 'levle'"),
        ({"filters": [{"kind": "spike", "change": 2}]}, "does not match any of the expected tags"),
        ({"filters": [{"kind": "hampel", "window": 2, "threshold": 3}]}, "greater than or equal to 3"),
        ({"coarsen": {"by": 2}}, "makes blocks of a grid's cells"),
        ({"min_observed": 1.5}, "less than or equal to 1"),
    ],
)
def test_rules_that_make_no_sense_are_refused(harmonize: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        DatasetSpec.model_validate(make_spec().model_dump() | {"harmonize": {"step": "1h", **harmonize}})


@pytest.mark.parametrize("rule", [{"filters": [STUCK.model_dump()]}, {"decompose": {"levels": 2}}])
def test_nothing_looks_back_from_one_clip_into_another(rule: dict[str, object]) -> None:
    task = {"look_back": 6, "horizon": 6, "clip": 12}
    with pytest.raises(ValidationError, match="clips have nothing before them"):
        DatasetSpec.model_validate(make_spec().model_dump() | {"task": task, "harmonize": {"step": "1h", **rule}})
