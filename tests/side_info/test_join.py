from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import make_spec, tables

from stfm_pipeline.datasets.spec import Join
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.side_info.join import join_side_table
from stfm_pipeline.side_info.run import enrich

T0 = datetime(2024, 1, 1, tzinfo=UTC)
TIMES = (np.datetime64("2024-01-01T00") + np.arange(8)).astype("datetime64[us]")


def table(hours: list[int], values: list[float | None], entity: str = "a") -> pl.DataFrame:
    return pl.DataFrame(
        {"entity": [entity] * len(hours), "time": [T0 + timedelta(hours=h) for h in hours], "v": values},
        schema_overrides={"time": pl.Datetime("us", "UTC")},
    )


def past(**changes: object) -> Join:
    return Join(**{"table": "t", "columns": ("v",), "availability": "past", "tolerance": "2h", **changes})


def values(side: pl.DataFrame, rule: Join, entities: tuple[str, ...] = ("a",)) -> list[float | None]:
    found, mask = join_side_table(side, rule, TIMES, list(entities), np.zeros((len(entities),) * 2))
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
    adjacency[0, 2], adjacency[2, 1] = 1.0, 2.0
    found, mask = join_side_table(side, past(via="edges"), TIMES[:2], ["a", "b", "c", "far"], adjacency)
    assert found[0, :, 0].tolist() == pytest.approx([10, 40, 30, 0])
    assert mask[0, :, 0].tolist() == [True, True, True, False]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ContractError, match="lacks columns") as caught:
        join_side_table(table([0], [1.0]), past(columns=("w",)), TIMES, ["a"], np.zeros((1, 1)))
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
