from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stfm_pipeline.errors import ContractError
from stfm_pipeline.lake import Lake
from stfm_pipeline.tables import UTC as UTC_US
from stfm_pipeline.tables import Edges, Entities, Signal, entity_hash, grid_of, observations, scatter, to_utc, validate

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
        **{c: pl.lit(None, pl.String) for c in ("zone", "country", "text")}
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


@pytest.mark.parametrize(
    ("column", "values", "rule"),
    [
        ("entity", [None, "b"], "entity"),
        ("entity", ["", "b"], "entity"),
        ("time", [None, T0], "time"),
    ],
)
def test_rows_without_a_key_are_refused_with_the_rule_and_the_row(column: str, values: list[object], rule: str) -> None:
    with pytest.raises(ContractError, match="1 of 2 rows break the contract") as caught:
        validate("observations", rows(**{column: values}), observations(["v"]), "mend the reader")
    assert f"{rule}|" in (caught.value.expected or "")
    assert len(caught.value.offenders) == 1
    assert "'v': 1.0" in caught.value.offenders[0]
    assert caught.value.fix == "mend the reader"


@pytest.mark.parametrize(
    ("lon", "lat", "good"),
    [
        (180.0, 90.0, True),
        (-180.0, -90.0, True),
        (None, None, True),
        (180.1, 0.0, False),
        (-181.0, 0.0, False),
        (0.0, 90.5, False),
        (0.0, -91.0, False),
    ],
)
def test_coordinates_are_degrees(lon: float | None, lat: float | None, good: bool) -> None:
    frame = pl.DataFrame(
        {"entity": ["a"], "lon": [lon], "lat": [lat], "zone": [None], "country": [None], "text": [None]},
        schema={"entity": pl.String, "lon": pl.Float64, "lat": pl.Float64}
        | dict.fromkeys(("zone", "country", "text"), pl.String),
    )
    if good:
        assert validate("entities", frame, Entities, "").equals(frame)
    else:
        with pytest.raises(ContractError, match="break the contract"):
            validate("entities", frame, Entities, "")


def test_an_entity_listed_twice_is_refused() -> None:
    frame = pl.DataFrame({"entity": ["a", "a"], "lon": [0.0, 1.0], "lat": [0.0, 0.0]}).with_columns(
        **{c: pl.lit(None, pl.String) for c in ("zone", "country", "text")}
    )
    with pytest.raises(ContractError, match="2 of 2 rows") as caught:
        validate("entities", frame, Entities, "")
    assert "primary_key" in str(caught.value)


def test_edges_have_weights_that_are_not_negative() -> None:
    frame = pl.DataFrame({"source": ["a"], "target": ["b"], "weight": [-1.0], "time": [None]})
    with pytest.raises(ContractError, match="weight"):
        validate("edges", frame, Edges, "")


def test_columns_come_out_in_the_order_and_types_of_the_contract() -> None:
    frame = rows(v=[1, 2]).with_columns(pl.col("time").dt.convert_time_zone("Asia/Tokyo"), extra=pl.lit("x"))
    good = validate("observations", frame.select("v", "extra", "time", "entity"), observations(["v"]), "")
    assert good.schema == {"entity": pl.String, "time": UTC_US, "v": pl.Float64}
    assert good["time"].to_list() == [T0, T0], "the instant stays, whatever zone it was written in"


def test_a_signal_survives_a_delta_table_of_many_rows(lake: Lake) -> None:
    t = 120_000
    times = np.arange(t).astype("datetime64[m]").astype("datetime64[us]")
    values = np.arange(t * 2, dtype=np.float32).reshape(t, 1, 2)
    observed = np.random.default_rng(0).random((t, 1, 2)) < 0.9
    signal = Signal(times, ("a",), ("x", "y"), values, observed)
    stage = lake.publish("d", "harmonized", {"signal": signal.to_frame()}, fingerprint="f", facts={}, inputs={})
    back = Signal.from_frame(lake.read(stage, "signal"), signal.entities, signal.channels)
    assert np.array_equal(back.times, times)
    assert np.array_equal(back.values, values)
    assert np.array_equal(back.observed, observed)
    assert back.step_us == 60_000_000


def test_a_signal_whose_mask_has_another_shape_is_refused() -> None:
    times = np.array(["2024-01-01T00", "2024-01-01T01"], "datetime64[us]")
    with pytest.raises(ContractError, match="shapes disagree"):
        Signal(times, ("a",), ("x",), np.zeros((2, 1, 1), np.float32), np.ones((2, 1, 2), np.bool_))


def test_the_hash_of_entities_depends_on_their_order_and_their_borders() -> None:
    assert len({entity_hash(e) for e in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""])}) == 4


@given(
    st.dictionaries(
        st.tuples(st.integers(0, 5), st.sampled_from("abc")), st.one_of(st.none(), st.floats(width=32)), max_size=12
    )
)
def test_scattering_puts_every_finite_value_in_its_cell_and_masks_the_rest(
    cells: dict[tuple[int, str], float | None],
) -> None:
    times = (np.datetime64("2024-01-01T00", "h") + np.arange(6)).astype("datetime64[us]")
    frame = pl.DataFrame(
        {
            "entity": [e for _, e in cells],
            "time": [T0 + timedelta(hours=h) for h, _ in cells],
            "v": list(cells.values()),
        },
        schema={"entity": pl.String, "time": UTC_US, "v": pl.Float64},
    )
    values, observed = scatter(frame, times, ["c", "a", "b"], ["v"])
    assert values.dtype == np.float32
    for n, entity in enumerate("cab"):
        for hour in range(6):
            value = cells.get((hour, entity))
            known = value is not None and bool(np.isfinite(value))
            assert observed[hour, n, 0] == known
            assert values[hour, n, 0] == (np.float32(value) if known else 0)


def test_rows_off_the_clock_are_an_error_and_strangers_are_left_out() -> None:
    times = np.array(["2024-01-01T00", "2024-01-01T01"], "datetime64[us]")
    values, observed = scatter(rows(), times, ["b"], ["v"])
    assert values[0, 0, 0] == 2.0
    assert observed.sum() == 1
    off = rows(time=[T0, datetime(2024, 1, 1, 0, 7, tzinfo=UTC)])
    with pytest.raises(ContractError, match="off the regular clock"):
        scatter(off, times, ["a", "b"], ["v"])


def test_cells_of_a_grid_are_a_rectangle_row_after_row() -> None:
    cells = pl.DataFrame({"row": [0, 0, 1, 1], "col": [0, 1, 0, 1]})
    assert grid_of(cells) == (2, 2)
    for bad in (cells[:3], cells[[0, 2, 1, 3]], pl.concat([cells, cells[:1]])):
        with pytest.raises(ContractError, match="row after row"):
            grid_of(bad)
