from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from stfm_pipeline.errors import ContractError
from stfm_pipeline.tables import Entities, Signal, observations, scatter, to_utc, validate

T0 = datetime(2024, 1, 1, tzinfo=UTC)


def rows(**changes: object) -> pl.DataFrame:
    base = {"entity": ["a", "b"], "time": [T0, T0], "v": [1.0, 2.0]}
    return pl.DataFrame({**base, **changes}).with_columns(pl.col("time").dt.cast_time_unit("us"))


def test_a_missing_column_is_named_with_what_is_there() -> None:
    with pytest.raises(ContractError, match="columns are missing") as caught:
        validate("observations", rows().drop("v"), observations(["v"]), "mend the reader")
    assert caught.value.offenders == ["v"]
    assert "mend the reader" in str(caught.value)


def test_naive_times_are_refused_with_the_fix() -> None:
    naive = rows().with_columns(pl.col("time").dt.replace_time_zone(None))
    with pytest.raises(ContractError, match="no time zone"):
        validate("observations", naive, observations(["v"]), "")
    with pytest.raises(ContractError, match="IANA zone"):
        to_utc(pl.col("time"), None)


def test_at_most_five_offenders_are_shown_and_all_are_counted() -> None:
    bad = pl.DataFrame({"entity": [f"e{i}" for i in range(9)], "lon": [999.0] * 9, "lat": [0.0] * 9}).with_columns(
        zone=pl.lit(None, pl.String), text=pl.lit(None, pl.String)
    )
    with pytest.raises(ContractError, match="9 of 9 rows") as caught:
        validate("entities", bad, Entities, "")
    assert len(caught.value.offenders) == 5
    assert "lon" in str(caught.value)


def test_a_column_of_text_where_numbers_belong_is_refused() -> None:
    with pytest.raises(ContractError, match=r"types differ|break the contract"):
        validate("observations", rows(v=["x", "y"]), observations(["v"]), "")


def test_civil_times_in_a_fold_and_in_a_gap() -> None:
    civil = pl.DataFrame({"t": [datetime(2024, 11, 3, 1, 30), datetime(2024, 3, 10, 2, 30)]})
    first = civil.select(to_utc(pl.col("t"), "America/New_York"))["t"].to_list()
    last = civil.select(to_utc(pl.col("t"), "America/New_York", fold="latest"))["t"].to_list()
    assert first == [datetime(2024, 11, 3, 5, 30, tzinfo=UTC), None]
    assert last == [datetime(2024, 11, 3, 6, 30, tzinfo=UTC), None]


def test_a_signal_survives_its_frame() -> None:
    rng = np.random.default_rng(0)
    times = np.arange(4).astype("datetime64[h]").astype("datetime64[us]")
    signal = Signal(times, ("a", "b", "c"), ("x", "y"), rng.random((4, 3, 2), np.float32), rng.random((4, 3, 2)) < 0.5)
    back = Signal.from_frame(signal.to_frame(), signal.entities, signal.channels)
    assert np.array_equal(back.values, signal.values)
    assert np.array_equal(back.observed, signal.observed)
    assert np.array_equal(back.times, signal.times)


def test_rows_off_the_clock_are_an_error_and_strangers_are_left_out() -> None:
    times = np.array(["2024-01-01T00", "2024-01-01T01"], "datetime64[us]")
    values, observed = scatter(rows(), times, ["b"], ["v"])
    assert values[0, 0, 0] == 2.0
    assert observed.sum() == 1
    off = rows(time=[T0, datetime(2024, 1, 1, 0, 7, tzinfo=UTC)])
    with pytest.raises(ContractError, match="off the regular clock"):
        scatter(off, times, ["a", "b"], ["v"])
