from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from fixtures.scene import TIMES, join, scene_of, table
from fixtures.synthetic import START, make_spec, tables
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.sparse import csr_array

from stfm_pipeline.datasets.spec import Join
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.side_info.run import enrich


def past(**changes: object) -> Join:
    return Join(**{"table": "t", "columns": ("v",), "availability": "past", "tolerance": "2h", **changes})


def joined(
    side: pl.DataFrame, rule: Join, entities: Sequence[str] = ("a",), adjacency: Any = None, times: Any = TIMES
) -> tuple[Any, Any]:
    found = join(side, rule, scene_of(entities, adjacency, times))
    return found.values, found.observed


def values(side: pl.DataFrame, rule: Join, entities: tuple[str, ...] = ("a",)) -> list[float | None]:
    found, mask = joined(side, rule, entities)
    return [float(v) if o else None for v, o in zip(found[:, 0, 0], mask[:, 0, 0], strict=True)]


def test_the_latest_known_value_is_carried_as_long_as_the_tolerance_allows() -> None:
    side = table([0, 1, 5], [10.0, None, 50.0])
    assert values(side, past()) == [10, 10, 10, None, None, 50, 50, 50]


def test_a_lag_delays_when_a_value_is_known() -> None:
    assert values(table([0, 5], [10.0, 50.0]), past(lag="2h")) == [None, None, 10, 10, 10, None, None, 50]


def test_what_is_planned_stands_on_its_own_step_and_absent_rows_are_filled() -> None:
    rule = Join(table="t", columns=("v",), availability="ahead", absent=0.0)
    assert values(table([2, 4], [7.0, 9.0]), rule) == [0, 0, 7, 0, 9, 0, 0, 0]


def test_edges_carry_the_weighted_mean_and_a_station_keeps_its_own() -> None:
    side = pl.concat([table([0], [10.0], "a"), table([0], [40.0], "b")])
    adjacency = np.zeros((4, 4))
    adjacency[0, 2], adjacency[2, 1], adjacency[0, 1] = 1.0, 2.0, 5.0
    found, mask = joined(side, past(via="edges"), ["a", "b", "c", "far"], csr_array(adjacency), TIMES[:2])
    assert found[0, :, 0].tolist() == pytest.approx([10, 40, 30, 0])
    assert mask[0, :, 0].tolist() == [True, True, True, False]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ContractError, match="lacks columns") as caught:
        joined(table([0], [1.0]), past(columns=("w",)))
    assert caught.value.offenders == ["w"]


def test_changing_side_values_changes_nothing_before_they_were_known() -> None:
    spec, raw = make_spec(), tables()
    harmonized = harmonize(spec, raw).tables
    before = enrich(spec, raw, harmonized)
    moment = raw["weather"]["time"].sort()[700]
    raw["weather"] = raw["weather"].with_columns(
        temp_c=pl.when(pl.col("time") >= moment).then(pl.col("temp_c") + 100).otherwise("temp_c")
    )
    after = enrich(spec, raw, harmonized)
    early = pl.col("time") < moment
    assert before.tables["past"].filter(early).equals(after.tables["past"].filter(early))
    assert not before.tables["past"].filter(~early).equals(after.tables["past"].filter(~early))
    assert before.passed
    assert before.facts["dense"] == {"signal": ["count", "level"], "past": ["temp_c"], "ahead": ["planned"]}


def test_no_value_is_used_that_is_not_a_number() -> None:
    side = table([0, 1, 2], [10.0, float("nan"), float("inf")])
    assert values(side, past()) == [10, 10, 10, None, None, None, None, None]
    ahead = Join(table="t", columns=("v",), availability="ahead")
    assert values(side, ahead) == [10, *[None] * 7]


def test_a_measurement_says_how_old_it_may_be() -> None:
    with pytest.raises(ValidationError, match="state `tolerance`"):
        past(tolerance=None)
    assert Join(table="t", columns=("v",), availability="ahead").tolerance is None


@pytest.mark.parametrize("column", ["entity", "time"])
def test_a_key_is_no_column_to_join(column: str) -> None:
    with pytest.raises(ValidationError, match=r"`time`, `entity`, and names that begin with _ are taken"):
        past(columns=(column,))


def test_a_joined_column_of_text_is_named() -> None:
    side = table([0], [1.0]).with_columns(v=pl.lit("hot"))
    with pytest.raises(ContractError, match="something else than numbers") as caught:
        values(side, past())
    assert caught.value.offenders == ["v: ['hot']"]


@pytest.mark.parametrize("name", ["weather", "plan"])
@pytest.mark.parametrize("wrong", ["names", "years", "values"])
def test_a_join_that_finds_nothing_is_refused_with_both_sides_of_it(name: str, wrong: str) -> None:
    raw = tables()
    changes = {
        "names": pl.lit("zz").alias("entity"),
        "years": pl.col("time").dt.offset_by("-3y"),
        "values": pl.lit(None, pl.Float64).alias(raw[name].columns[-1]),
    }
    raw[name] = raw[name].with_columns(changes[wrong])
    if name == "weather":
        raw[name] = raw[name].unique(["entity", "time"])
    with pytest.raises(ContractError, match=rf"'{name}': joined columns have no observed value[\s\S]*names of the ent"):
        enrich(make_spec(), raw, harmonize(make_spec(), raw).tables)


def test_with_a_tolerance_of_0h_a_value_holds_for_its_own_step() -> None:
    assert values(table([0, 5], [10.0, 50.0]), past(tolerance="0h")) == [10, *[None] * 4, 50, None, None]


def test_a_value_from_before_the_clock_is_carried_into_it() -> None:
    assert values(table([-1], [10.0]), past()) == [10, 10, *[None] * 6]
    assert values(table([-3], [10.0]), past()) == [None] * 8


def test_a_report_within_a_step_is_known_only_when_a_whole_step_has_passed() -> None:
    side = table([0], [10.0]).with_columns(pl.col("time") + timedelta(minutes=30))
    assert values(side, past()) == [None, 10, 10, *[None] * 5]


def test_of_two_reports_of_one_time_the_last_one_counts() -> None:
    assert values(table([0] * 40, [float(i) for i in range(40)]), past(tolerance="0h")) == [39, *[None] * 7]


def test_rows_in_any_order_give_the_same_join() -> None:
    side = table([5, 0, 2], [50.0, 10.0, 20.0])
    assert values(side, past()) == values(side.sort("time"), past()) == [10, 10, 20, 20, 20, 50, 50, 50]


@pytest.mark.parametrize("rule", [past(), Join(table="t", columns=("v",), availability="ahead")], ids=["past", "ahead"])
def test_side_times_are_instants_whatever_their_zone_and_naive_ones_are_refused(rule: Join) -> None:
    side = table([0, 5], [10.0, 50.0])
    zoned = side.with_columns(pl.col("time").dt.convert_time_zone("America/New_York"))
    assert values(zoned, rule) == values(side, rule)
    with pytest.raises(ContractError, match="side table 't': times carry no time zone"):
        values(side.with_columns(pl.col("time").dt.replace_time_zone(None)), rule)


def test_an_entity_gets_its_own_value_and_no_other() -> None:
    side = pl.concat([table([0], [10.0], "a"), table([0], [99.0], "stranger")])
    found, mask = joined(side, past(), ["z", "a"], np.ones((2, 2)), TIMES[:2])
    assert found[0, :, 0].tolist() == [0, 10]
    assert mask[0, :, 0].tolist() == [False, True]


def test_along_edges_only_stations_with_a_value_share_the_weight() -> None:
    side = pl.concat([table([0, 1], [10.0, 20.0], "a"), table([0], [40.0], "b")])
    adjacency = np.zeros((3, 3))
    adjacency[2, 0], adjacency[2, 1] = 1.0, 3.0
    found, mask = joined(side, past(via="edges", tolerance="0h"), ["a", "b", "c"], csr_array(adjacency), TIMES[:2])
    assert found[:, 2, 0].tolist() == pytest.approx([(10 + 3 * 40) / 4, 20])
    assert mask[:, :, 0].tolist() == [[True, True, True], [True, False, True]]


@given(
    st.lists(st.tuples(st.integers(-3, 10), st.floats(-100, 100, width=32)), unique_by=lambda r: r[0], max_size=10),
    st.integers(0, 3),
    st.integers(0, 4),
)
def test_as_of_is_the_newest_row_that_was_known_and_is_not_too_old(
    rows: list[tuple[int, float]], lag: int, tolerance: int
) -> None:
    side = table([h for h, _ in rows], [v for _, v in rows])
    expected: list[float | None] = []
    for step in range(8):
        known = {h: v for h, v in rows if h + lag <= step <= h + lag + tolerance}
        expected.append(known[max(known)] if known else None)
    assert values(side, past(lag=f"{lag}h", tolerance=f"{tolerance}h")) == expected


def test_a_station_that_starts_late_is_no_leak() -> None:
    raw = tables()
    late = pl.col("time") > START + timedelta(days=45)
    raw["weather"] = (
        raw["weather"].with_columns(pl.col("entity").replace("d", "b")).filter((pl.col("entity") == "a") | late)
    )
    harmonized = harmonize(make_spec(), raw).tables
    assert enrich(make_spec(), raw, harmonized).passed


def test_side_scalers_come_from_the_training_part() -> None:
    raw = tables()
    harmonized = harmonize(make_spec(), raw).tables
    end = harmonized["split"].filter(part="train")["end"][0]
    late = pl.col("time") >= end
    changed = raw | {
        "weather": raw["weather"].with_columns(temp_c=pl.when(late).then(900.0).otherwise("temp_c")),
        "plan": raw["plan"].with_columns(planned=pl.when(late).then(77.0).otherwise("planned")),
    }
    before, after = enrich(make_spec(), raw, harmonized), enrich(make_spec(), changed, harmonized)
    for side in ("past", "ahead"):
        assert not before.tables[side].equals(after.tables[side])
        assert before.tables[f"{side}_scaler"].equals(after.tables[f"{side}_scaler"])


def test_every_entity_has_a_text_even_where_the_source_has_none() -> None:
    raw = tables()
    raw["entities"] = raw["entities"].with_columns(text=pl.when(pl.col("entity") != "c").then("text"))
    result = enrich(make_spec(), raw, harmonize(make_spec(), raw).tables)
    texts = dict(result.tables["text"].iter_rows())
    assert (texts["a"], texts["c"]) == ("Place a.", "Entity c.")
