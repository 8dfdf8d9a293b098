from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import NAMES, START, make_spec, tables
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stfm_pipeline.datasets.rules import Outliers
from stfm_pipeline.datasets.spec import Channel, Facts, Harmonize, Split, Task
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.harmonize.split import draw, parts_of
from stfm_pipeline.stage import Result
from stfm_pipeline.tables import Signal, dense_observations, long_observations


def signal_of(result: Result) -> Signal:
    names = result.tables["entities"]["entity"].to_list()
    return Signal.from_frame(result.tables["signal"], names, ["count", "level"])


def test_every_check_holds_and_the_mask_is_exactly_the_gaps() -> None:
    raw = tables()
    result = harmonize(make_spec(), raw)
    assert [c.name for c in result.checks if not c.passed] == []
    signal = signal_of(result)
    assert signal.values.shape == (60 * 24, 6, 2)
    assert signal.observed[..., 0].all(), "an hour without a row counts 0 events"
    assert signal.observed[..., 1].sum() == raw["observations"]["level"].is_not_null().sum()
    assert (signal.values[~signal.observed] == 0).all()


def test_unsorted_rows_give_the_same_table_and_are_counted() -> None:
    raw = tables()
    shuffled = raw | {"observations": raw["observations"].sample(fraction=1, shuffle=True, seed=1)}
    a, b = harmonize(make_spec(), raw), harmonize(make_spec(), shuffled)
    assert a.tables["signal"].equals(b.tables["signal"])
    assert a.facts["report"]["rows_out_of_order"] == 0
    assert b.facts["report"]["rows_out_of_order"] > 100


def twice(raw: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    first = raw["observations"].head(1).with_columns(count=pl.lit(40.0), level=pl.lit(99.0))
    return raw | {"observations": pl.concat([raw["observations"], first])}


def test_duplicates_are_an_error_that_names_them() -> None:
    with pytest.raises(ContractError, match="2 rows share an entity and a step") as caught:
        harmonize(make_spec(), twice(tables()))
    assert caught.value.offenders == [f"a at {START:%Y-%m-%d %H:%M:%S}"]
    assert "harmonize.duplicates" in str(caught.value)


@pytest.mark.parametrize("rule", ["first", "last", "mean"])
def test_duplicates_follow_the_stated_rule(rule: str) -> None:
    raw = tables()
    before = raw["observations"]["count"][0]
    expected = {"first": before, "last": 40.0, "mean": (before + 40) / 2}[rule]
    result = harmonize(make_spec(harmonize=Harmonize(step="1h", duplicates=rule)), twice(raw))
    assert signal_of(result).values[0, 0, 0] == expected


def test_codes_ranges_and_infinities_become_the_mask_and_are_counted() -> None:
    raw = tables()
    level = raw["observations"]["level"].to_list()
    level[:4] = [-99.0, 5000.0, float("inf"), float("nan")]
    raw["observations"] = raw["observations"].with_columns(pl.Series("level", level))
    result = harmonize(make_spec(), raw)
    assert result.facts["masked"]["level"]["missing_code"] == 1
    assert result.facts["masked"]["level"]["out_of_range"] == 1
    assert not signal_of(result).observed[0, :4, 1].any()


def test_a_channel_of_nan_only_is_refused() -> None:
    raw = tables()
    raw["observations"] = raw["observations"].with_columns(level=pl.lit(float("nan")))
    with pytest.raises(ContractError, match="channel 'level' has no observed value"):
        harmonize(make_spec(), raw)


def test_a_split_without_windows_is_refused() -> None:
    with pytest.raises(ContractError, match="without a single window") as caught:
        harmonize(make_spec(task=Task(look_back=48, horizon=400)), tables())
    assert set(caught.value.offenders) == {"val", "gate", "test"}
    with pytest.raises(ContractError, match="longer than the data"):
        harmonize(make_spec(split=Split(ratios=None, counts=(9000, 1, 0, 1))), tables())


def test_the_planted_spikes_are_masked_and_nothing_else() -> None:
    raw, plain = tables(), make_spec()
    spec = make_spec(harmonize=Harmonize(step="1h", outliers=Outliers(threshold=8)))
    before = signal_of(harmonize(plain, raw))
    planted = [(30, 2, 900.0), (31, 4, -900.0), (1430, 0, 700.0)]
    for hour, n, value in planted:
        at = (pl.col("time") == START + timedelta(hours=hour)) & (pl.col("entity") == NAMES[n])
        assert before.observed[hour, n, 1]
        raw["observations"] = raw["observations"].with_columns(level=pl.when(at).then(value).otherwise("level"))
    assert harmonize(plain, raw).facts["masked"]["level"].get("outliers") is None
    result = harmonize(spec, raw)
    after = signal_of(result)
    assert (result.facts["masked"]["level"]["outliers"], result.facts["masked"]["count"]["outliers"]) == (3, 0)
    gone = np.argwhere(before.observed[..., 1] & ~after.observed[..., 1]).tolist()
    assert gone == [[hour, n] for hour, n, _ in planted]
    assert all(after.values[hour, n, 1] == 0 for hour, n, _ in planted)


def test_outliers_are_judged_by_training_values_alone() -> None:
    """A level that moves for good after training stays far away, however much of it there is."""
    raw = tables()
    spec = make_spec(harmonize=Harmonize(step="1h", outliers=Outliers(threshold=8)))
    end = harmonize(spec, raw).tables["split"].filter(part="train")["end"][0]
    late = pl.col("time") >= end
    moved = raw["observations"].with_columns(level=pl.when(late).then(pl.col("level") + 500).otherwise("level"))
    result = harmonize(spec, raw | {"observations": moved})
    assert result.facts["masked"]["level"]["outliers"] == moved.filter(late)["level"].count()
    assert not signal_of(result).observed[864:, :, 1].any()
    assert result.passed


def test_a_series_without_spread_keeps_its_values_and_gets_a_deviation_of_one() -> None:
    raw = tables()
    flat = pl.when(pl.col("entity") == "b", pl.col("time") != START).then(5.0).otherwise("level")
    raw["observations"] = raw["observations"].with_columns(level=flat)
    rule = Harmonize(step="1h", outliers=Outliers(threshold=8), scale_per="entity")
    result = harmonize(make_spec(harmonize=rule), raw)
    assert result.facts["masked"]["level"]["outliers"] == 0
    only = raw["observations"].with_columns(level=pl.when(pl.col("entity") == "b").then(5.0).otherwise("level"))
    scale = harmonize(make_spec(harmonize=rule), raw | {"observations": only}).tables["scaler"]
    row = scale.filter(entity="b", channel="level").to_dicts()[0]
    assert (row["offset"], row["scale"]) == (5.0, 1.0)


@pytest.mark.parametrize("per", ["channel", "entity"])
def test_nothing_after_the_training_part_reaches_the_scaler_or_the_edges(per: str) -> None:
    spec = make_spec(harmonize=Harmonize(step="1h", scale_per=per))
    raw = tables()
    first = harmonize(spec, raw)
    end = first.tables["split"].filter(part="train")["end"][0]
    late = pl.col("time") >= end
    raw["observations"] = raw["observations"].with_columns(
        level=pl.when(late).then(pl.col("level") * -7 + 3).otherwise("level"),
        count=pl.when(late).then(pl.col("count") + 50).otherwise("count"),
    )
    extra = pl.DataFrame({"source": ["a"], "target": ["d"], "weight": [9.0], "time": [end + timedelta(hours=1)]})
    raw["edges"] = pl.concat([raw["edges"], extra.with_columns(pl.col("time").dt.cast_time_unit("us"))])
    second = harmonize(spec, raw)
    assert first.tables["scaler"].equals(second.tables["scaler"])
    assert first.tables["edges"].equals(second.tables["edges"])
    assert not first.tables["signal"].equals(second.tables["signal"])


def test_scaler_reproduces_mean_and_deviation_of_training_cells() -> None:
    result = harmonize(make_spec(), tables())
    signal, stop = signal_of(result), result.facts["parts"]["train"][1]
    cells = signal.values[:stop, :, 1][signal.observed[:stop, :, 1]].astype(float)
    row = result.tables["scaler"].filter(entity="a", channel="level").to_dicts()[0]
    assert row["offset"] == pytest.approx(cells.mean(), rel=1e-12)
    assert row["scale"] == pytest.approx(cells.std(), rel=1e-12)


def test_a_frozen_split_keeps_its_dates_when_data_is_appended() -> None:
    first = harmonize(make_spec(), tables(days=60))
    longer = harmonize(make_spec(), tables(days=70), frozen=first.tables["split"])
    before, after = first.tables["split"], longer.tables["split"]
    assert before["start"].to_list() == after["start"].to_list()
    assert after["end"].to_list()[:3] == before["end"].to_list()[:3]
    assert after["end"][3] - before["end"][3] == timedelta(days=10)


@pytest.mark.parametrize("days", [70, 20])
def test_a_frozen_split_is_drawn_anew_where_the_clock_starts_earlier_or_ends_before_its_parts(
    days: int, caplog: pytest.LogCaptureFixture
) -> None:
    old = harmonize(make_spec(), tables(days=60)).tables["split"]
    raw = tables(days=days)
    if days > 60:
        raw["observations"] = raw["observations"].with_columns(pl.col("time") - pl.duration(days=10))
    fresh = harmonize(make_spec(), raw)
    again = harmonize(make_spec(), raw, frozen=old)
    assert again.tables["split"].equals(fresh.tables["split"])
    assert "the split is drawn anew" in caplog.text


def test_facts_that_do_not_match_fail_their_check() -> None:
    result = harmonize(make_spec(facts=Facts(steps=7, entities=6)), tables())
    assert [c.name for c in result.checks if not c.passed] == ["facts_match"]


def test_entities_that_the_index_lacks_are_named() -> None:
    raw = tables()
    stranger = raw["observations"].head(1).with_columns(entity=pl.lit("zz"))
    raw["observations"] = pl.concat([raw["observations"], stranger])
    with pytest.raises(ContractError, match="lacks") as caught:
        harmonize(make_spec(), raw)
    assert caught.value.offenders == ["zz"]


def test_rows_inside_a_step_are_floored_to_it() -> None:
    raw = tables()
    raw["observations"] = raw["observations"].with_columns(pl.col("time") + timedelta(minutes=17))
    result = harmonize(make_spec(), raw)
    assert result.facts["report"]["rows_off_the_clock"] == len(raw["observations"])
    assert result.tables["signal"].equals(harmonize(make_spec(), tables()).tables["signal"])
    assert result.tables["signal"]["time"][0] == datetime(2023, 2, 20, tzinfo=UTC)
    assert np.isfinite(signal_of(result).values).all()


@pytest.mark.parametrize("code", [-99.9, 0.1, 1e-7, 65535.0])
def test_a_missing_code_is_found_although_values_are_stored_in_single_precision(code: float) -> None:
    raw = tables()
    raw["observations"] = raw["observations"].with_columns(
        level=pl.when(pl.col("time") == START).then(code).otherwise("level")
    )
    channels = (
        Channel(name="count", unit="1", absent=0),
        Channel(name="level", unit="m", missing=(-1.0, code)),
    )
    result = harmonize(make_spec(channels=channels), raw)
    rows = raw["observations"].filter(pl.col("time") == START)
    assert result.facts["masked"]["level"]["missing_code"] == len(rows)
    assert not signal_of(result).observed[0, :, 1].any()


def test_limits_of_a_range_are_inside_it() -> None:
    raw = tables()
    level = raw["observations"]["level"].to_list()
    level[:4] = [0.1, 0.3, 0.0999, 0.3001]
    raw["observations"] = raw["observations"].with_columns(pl.Series("level", level))
    channels = (make_spec().channels[0], Channel(name="level", unit="m", minimum=0.1, maximum=0.3))
    assert signal_of(harmonize(make_spec(channels=channels), raw)).observed[0, :4, 1].tolist() == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("unknown", [None, float("nan"), float("inf")])
def test_a_step_without_a_row_counts_nothing_but_a_row_without_a_count_is_unknown(unknown: float | None) -> None:
    raw = tables()
    rows = raw["observations"].filter(~((pl.col("time") == START) & (pl.col("entity") == "b")))
    at = (pl.col("time") == START) & (pl.col("entity") == "a")
    raw["observations"] = rows.with_columns(count=pl.when(at).then(unknown).otherwise("count"))
    signal = signal_of(harmonize(make_spec(), raw))
    assert (signal.observed[0, 0, 0], signal.values[0, 0, 0]) == (False, 0)
    assert (signal.observed[0, 1, 0], signal.values[0, 1, 0]) == (True, 0)
    assert not signal.observed[0, 1, 1], "a measurement has no value for a step without a row"


@pytest.mark.parametrize("rule", ["first", "last"])
def test_of_several_rows_in_a_step_the_earliest_or_latest_counts_however_they_are_sorted(rule: str) -> None:
    raw = tables()
    rows = raw["observations"]
    late = rows.with_columns(pl.col("time") + timedelta(minutes=40), level=pl.col("level") + 100)
    early = rows.with_columns(pl.col("time") + timedelta(minutes=5))
    shuffled = pl.concat([late, early]).sample(fraction=1, shuffle=True, seed=3)
    spec = make_spec(harmonize=Harmonize(step="1h", duplicates=rule))
    found = signal_of(harmonize(spec, raw | {"observations": shuffled}))
    known = signal_of(harmonize(make_spec(), raw))
    shift = 100 if rule == "last" else 0
    assert np.allclose(found.values[..., 1], np.where(known.observed[..., 1], known.values[..., 1] + shift, 0))


def test_the_mean_of_duplicates_leaves_out_what_is_not_a_number() -> None:
    raw = tables()
    first = raw["observations"].head(1)
    more = [first.with_columns(count=pl.lit(v)) for v in (float("nan"), 7.0, None)]
    rows = pl.concat([raw["observations"], *(m.cast(first.schema) for m in more)])
    spec = make_spec(harmonize=Harmonize(step="1h", duplicates="mean"))
    found = signal_of(harmonize(spec, raw | {"observations": rows})).values[0, 0, 0]
    assert found == (first["count"][0] + 7) / 2


def test_a_gap_in_the_clock_is_filled_with_masked_steps() -> None:
    raw = tables()
    hole = pl.col("time").is_between(START + timedelta(hours=100), START + timedelta(hours=109))
    raw["observations"] = raw["observations"].filter(~hole)
    result = harmonize(make_spec(), raw)
    signal = signal_of(result)
    assert result.facts["steps"] == 1440
    assert not signal.observed[100:110, :, 1].any()
    assert signal.observed[100:110, :, 0].all()
    assert (signal.values[100:110] == 0).all()


def test_a_stated_clock_cuts_rows_off_and_says_how_many() -> None:
    rule = Harmonize(step="1h", start=START + timedelta(days=5), end=START + timedelta(days=55))
    raw = tables()
    result = harmonize(make_spec(harmonize=rule), raw)
    inside = pl.col("time").is_between(rule.start, rule.end, closed="left")
    assert result.facts["steps"] == 50 * 24
    assert result.facts["report"]["rows_outside_the_clock"] == len(raw["observations"].filter(~inside))
    assert result.facts["start"].startswith("2023-02-25T00:00")
    assert result.facts["end"].startswith("2023-04-16T00:00")


@pytest.mark.parametrize(
    "rule",
    [
        {"step": "1h", "start": datetime(2023, 2, 21)},
        {"step": "0h"},
        {"step": "1 hour"},
        {"step": "1mo"},
        {"step": "7h"},
    ],
)
def test_a_clock_that_cannot_be_kept_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises((ContractError, ValidationError), match=r"edges carry a zone|not a step length|divides a day"):
        harmonize(make_spec(harmonize=Harmonize(**rule)), tables())


def test_a_stray_time_does_not_make_the_clock() -> None:
    raw = tables()
    for year in (13, 9999):
        stray = raw["observations"].head(1).with_columns(time=datetime(year, 3, 1, tzinfo=UTC))
        frame = raw | {"observations": pl.concat([raw["observations"], stray.cast(raw["observations"].schema)])}
        with pytest.raises(ContractError, match=r"of the clock is one gap[\s\S]*`start` or `end`") as caught:
            harmonize(make_spec(), frame)
        assert str(year) in str(caught.value)


def test_a_clock_that_no_observation_lies_on_is_refused() -> None:
    for edge in ({"start": datetime(2030, 1, 1, tzinfo=UTC)}, {"end": datetime(2000, 1, 1, tzinfo=UTC)}):
        with pytest.raises(ContractError, match="no observation lies on the clock"):
            harmonize(make_spec(harmonize=Harmonize(step="1h", **edge)), tables())


def test_days_are_those_of_utc() -> None:
    raw = tables()
    assert "zone" in raw["entities"].columns
    daily = make_spec(zone="UTC", harmonize=Harmonize(step="1d", duplicates="mean"), seasons=(7,))
    with pytest.raises(ContractError, match=r"steps of 1d are days of UTC"):
        harmonize(daily, raw)


def test_an_edge_counts_from_the_day_its_evidence_lies_in_training() -> None:
    raw = tables()
    end = harmonize(make_spec(), raw).tables["split"].filter(part="train")["end"][0]
    dates = [None, end - timedelta(hours=5), end, end + timedelta(microseconds=1)]
    raw["edges"] = pl.DataFrame(
        {"source": ["a"] * 4, "target": ["b"] * 4, "weight": [1.0, 2.0, 4.0, 8.0], "time": dates},
        schema_overrides={"time": pl.Datetime("us", "UTC")},
    )
    assert harmonize(make_spec(), raw).tables["edges"].to_dicts() == [{"source": "a", "target": "b", "weight": 7.0}]


def test_without_entities_the_order_is_sorted_and_zones_come_from_the_spec() -> None:
    raw = {k: v for k, v in tables().items() if k not in ("entities", "edges")}
    result = harmonize(make_spec(), raw | {"observations": raw["observations"].reverse()})
    assert result.tables["entities"]["entity"].to_list() == list(NAMES)
    assert result.tables["entities"]["zone"].unique().to_list() == ["America/New_York"]
    assert result.tables["edges"].is_empty()


def test_per_entity_each_series_has_its_own_moments_and_a_thin_one_those_of_its_channel() -> None:
    raw = tables()
    thin = pl.when(pl.col("entity") == "f", pl.col("time") < START + timedelta(days=40)).then(None).otherwise("level")
    raw["observations"] = raw["observations"].with_columns(level=thin)
    result = harmonize(make_spec(harmonize=Harmonize(step="1h", scale_per="entity")), raw)
    signal = signal_of(result)
    scale = {(r["entity"], r["channel"]): r for r in result.tables["scaler"].to_dicts()}
    train = signal.values[:864, :, 1].astype(float), signal.observed[:864, :, 1]
    assert not train[1][:, 5].any()
    for n, entity in enumerate(NAMES[:5]):
        cells = train[0][:, n][train[1][:, n]]
        assert scale[entity, "level"]["offset"] == pytest.approx(cells.mean(), rel=1e-12)
        assert scale[entity, "level"]["scale"] == pytest.approx(cells.std(), rel=1e-12)
        assert scale[entity, "level"]["count"] == len(cells)
    cells = train[0][train[1]]
    assert scale["f", "level"]["offset"] == pytest.approx(cells.mean(), rel=1e-12)
    assert scale["f", "level"]["count"] == 0


@given(
    st.integers(2, 3000),
    st.lists(st.integers(1, 20), min_size=4, max_size=4),
)
def test_shares_cut_the_clock_into_parts_that_touch_and_leave_nothing_out(t: int, weights: list[int]) -> None:
    times = np.arange(t).astype("datetime64[h]").astype("datetime64[us]")
    total = sum(weights)
    shares = tuple(w / total for w in weights)
    table = draw(times, Split(ratios=shares), Task(look_back=1, horizon=1))
    parts = parts_of(table, times)
    assert table["start"].to_list()[1:] == table["end"].to_list()[:-1]
    assert (table["start"][0], table["end"][3]) == (stamp(times[0]), stamp(times[-1] + np.timedelta64(1, "h")))
    assert parts["test"].stop == t
    for name, share in zip(("train", "val", "gate", "test"), shares, strict=True):
        whole = table.filter(part=name).select((pl.col("end") - pl.col("start")).dt.total_hours()).item()
        assert abs(whole - share * t) <= 1


def stamp(time: np.datetime64) -> datetime:
    return time.astype(datetime).replace(tzinfo=UTC)


def _both(times: list[datetime], values: np.ndarray) -> tuple[dict[str, pl.DataFrame], dict[str, pl.DataFrame]]:
    """The same observations of two channels, dense and long; `values` (t, n, c)."""
    stamps = pl.Series("time", times).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    names = [f"s{i}" for i in range(values.shape[1])]
    # One entity more than the source has columns: nothing of it was observed.
    entities = pl.DataFrame({"entity": [*names, "silent"]})
    dense = dense_observations(stamps, {"count": values[..., 0], "level": values[..., 1]})
    return (
        {"observations": dense, "entities": entities},
        {"observations": long_observations(dense, names), "entities": entities},
    )


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_dense_observations_give_what_the_same_long_rows_give(data: st.DataObject) -> None:
    seed, rule = data.draw(st.integers(0, 10_000)), data.draw(st.sampled_from(["first", "last", "mean"]))
    rng = np.random.default_rng(seed)
    hours = rng.permutation(np.sort(rng.choice(400, size=300, replace=bool(seed % 2))))
    if seed % 3 == 0:
        hours = np.sort(hours)
    hours = np.append(hours, [0, 399])
    values = rng.normal(0, 5, (len(hours), 3, 2)).round(2)
    values[rng.random(values.shape) < 0.2] = np.nan
    values[..., 1][rng.random(values.shape[:2]) < 0.1] = -99
    times = [
        START + timedelta(hours=int(h), minutes=int(m))
        for h, m in zip(hours, rng.integers(0, 60, len(hours)), strict=True)
    ]
    spec = make_spec(harmonize=Harmonize(step="1h", duplicates=rule), joins=(), facts=Facts())
    dense, long = (harmonize(spec, raw) for raw in _both(times, values))
    assert dense.facts == long.facts
    for name in dense.tables:
        if name == "signal" and rule == "mean":
            ours, theirs = (
                Signal.from_frame(r.tables[name], ["s0", "s1", "s2", "silent"], spec.channel_names)
                for r in (dense, long)
            )
            assert np.array_equal(ours.observed, theirs.observed)
            assert np.allclose(ours.values, theirs.values, rtol=1e-6)
        elif name != "scaler" or rule != "mean":
            assert dense.tables[name].equals(long.tables[name]), name


def test_dense_rows_of_one_step_are_an_error_unless_a_rule_says_otherwise() -> None:
    times = [START, START + timedelta(minutes=10), *(START + timedelta(hours=h) for h in range(1, 300))]
    for raw in _both(times, np.ones((301, 3, 2))):
        with pytest.raises(ContractError, match=r"6 rows share an entity and a step of 1h[\s\S]*2023-02-20 00:00:00"):
            harmonize(make_spec(joins=(), facts=Facts()), raw)


def test_rows_at_different_minutes_of_one_step_are_no_duplicates() -> None:
    """As where sensors report one after the other: every row is of another time, and most of its cells are empty."""
    values = np.full((600, 2, 2), np.nan)
    values[::2, 0], values[1::2, 1] = 1.5, 2.5
    times = [START + timedelta(hours=h, minutes=m) for h in range(300) for m in (0, 5)]
    rows, entities = _both(times, values)[0]["observations"], pl.DataFrame({"entity": ["s0", "s1"]})
    seen = np.isfinite(values[..., 0])
    dense = dense_observations(rows["time"], {"count": values[..., 0], "level": values[..., 1]}, seen)
    spec = make_spec(joins=(), facts=Facts())
    raws = [{"observations": o, "entities": entities} for o in (dense, long_observations(dense, ["s0", "s1"]))]
    one, other = (harmonize(spec, raw) for raw in raws)
    assert one.tables["signal"].equals(other.tables["signal"])
    signal = Signal.from_frame(one.tables["signal"], ["s0", "s1"], spec.channel_names)
    assert signal.observed.all()
    assert (signal.values == np.array([1.5, 2.5], np.float32)[None, :, None]).all()


def test_a_part_that_is_little_but_a_gap_is_refused() -> None:
    times = [START, *(START + timedelta(hours=h) for h in range(3000, 4000))]
    channels = tuple(c.model_copy(update={"absent": None}) for c in make_spec().channels)
    spec = make_spec(joins=(), facts=Facts(), channels=channels)
    result = harmonize(spec, _both(times, np.ones((1001, 3, 2)))[1])
    (failed,) = [c for c in result.checks if not c.passed]
    assert failed.name == "every_part_is_observed"


def test_dense_lists_that_do_not_fit_the_entities_are_refused() -> None:
    dense, _ = _both([START + timedelta(hours=h) for h in range(300)], np.ones((300, 3, 2)))
    spec = make_spec(joins=(), facts=Facts())
    with pytest.raises(ContractError, match=r"one value per entity[\s\S]*at most 2"):
        harmonize(spec, dense | {"entities": dense["entities"].head(2)})
    with pytest.raises(ContractError, match="columns are missing"):
        harmonize(spec, dense | {"observations": dense["observations"].drop("level")})
    naive = dense["observations"].with_columns(pl.col("time").dt.replace_time_zone(None))
    with pytest.raises(ContractError, match="times carry no time zone"):
        harmonize(spec, dense | {"observations": naive})


def test_single_precision_is_kept_only_where_it_loses_nothing() -> None:
    stamps = pl.Series("time", [START]).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    exact, fine = np.array([[0.5, np.nan]]), np.array([[0.1, 2.0]])
    kept = dense_observations(stamps, {"a": exact, "b": fine, "c": np.array([[2**24 + 1, 1]])})
    assert [kept.schema[c] for c in "abc"] == [pl.List(pl.Float32), pl.List(pl.Float64), pl.List(pl.Float64)]
    assert kept["b"][0][0] == 0.1


def test_a_dataset_that_goes_on_is_held_to_its_entities_alone() -> None:
    promised = Facts(steps=9, entities=2, edges=3, missing={"level": 0.25})
    found = {"steps": 10, "entities": 2, "edges": 4, "observed_share": {"level": 0.5}}
    assert list(promised.unlike(found, goes_on=False)) == ["steps", "edges", "missing level"]
    assert promised.unlike(found, goes_on=True) == {}
    assert list(promised.unlike(found | {"entities": 3}, goes_on=True)) == ["entities"]
    assert promised.unlike({"steps": 9, "entities": 2, "edges": 3, "observed_share": {"level": 0.7504}}, False) == {}


def test_facts_name_channels_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"facts.missing names the channel 'height'"):
        type(make_spec()).model_validate(make_spec().model_dump() | {"facts": {"missing": {"height": 0.1}}})
