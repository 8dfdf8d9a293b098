from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import START, make_spec, tables

from stfm_pipeline.datasets.spec import Facts, Harmonize, Outliers, Split, Task
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.stage import Result
from stfm_pipeline.tables import Signal


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


def test_outliers_are_judged_by_training_values_alone() -> None:
    raw = tables()
    spec = make_spec(harmonize=Harmonize(step="1h", outliers=Outliers(threshold=8)))
    spiked = raw["observations"].with_columns(
        level=pl.when(pl.col("time") == START + timedelta(hours=30), pl.col("entity") == "c")
        .then(900.0)
        .otherwise("level")
    )
    raw["observations"] = spiked
    result = harmonize(spec, raw)
    assert result.facts["masked"]["level"]["outliers"] == 1
    assert not signal_of(result).observed[30, 2, 1]


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
    assert row["mean"] == pytest.approx(cells.mean(), rel=1e-12)
    assert row["std"] == pytest.approx(cells.std(), rel=1e-12)


def test_a_frozen_split_keeps_its_dates_when_data_is_appended() -> None:
    first = harmonize(make_spec(), tables(days=60))
    longer = harmonize(make_spec(), tables(days=70), frozen=first.tables["split"])
    before, after = first.tables["split"], longer.tables["split"]
    assert before["start"].to_list() == after["start"].to_list()
    assert after["end"].to_list()[:3] == before["end"].to_list()[:3]
    assert after["end"][3] - before["end"][3] == timedelta(days=10)


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
