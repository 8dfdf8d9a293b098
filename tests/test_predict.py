"""Frames in, frames out: the same numbers as the evaluation, and a clear error for every frame that cannot be used."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import polars as pl
import pytest
import torch

from stfm_pipeline.errors import FrameError
from stfm_pipeline.forecaster import Forecaster
from stfm_pipeline.lake import Lake
from stfm_pipeline.predict import frame_of
from stfm_pipeline.registry import load_model
from stfm_pipeline.settings import Settings
from stfm_pipeline.windows import Panel, load_panel


@pytest.fixture
def panel(trained: tuple[Settings, Lake]) -> Panel:
    settings, lake = trained
    return load_panel(lake, "trained", settings.cache)


@pytest.fixture
def model(trained: tuple[Settings, Lake]) -> Forecaster:
    settings, lake = trained
    return load_model(lake.require("trained", "evaluated").facts["candidate"]["uri"], settings)


@pytest.fixture
def frame(panel: Panel) -> pl.DataFrame:
    return frame_of(panel, int(panel.origins("test")[20]))


def test_a_frame_gives_what_the_evaluation_scored(model: Forecaster, panel: Panel, frame: pl.DataFrame) -> None:
    out = model.predict(frame)
    assert out.columns == ["unique_id", "ds", "count", "count_q0.1", "count_q0.9", "level", "level_q0.1", "level_q0.9"]
    assert len(out) == 6 * 12
    origin = panel.origins("test")[20:21]
    expected = model.forecast(panel.arrays.gather(origin, panel.problem, ("past", "ahead")))
    got = out.select("count", "level").to_numpy().reshape(6, 12, 2)
    assert torch.allclose(torch.tensor(got, dtype=torch.float32).movedim(0, 1), expected.values[0], atol=1e-4)
    low, high = (out[f"level_q{q}"] for q in ("0.1", "0.9"))
    assert (low <= high).all()
    assert (out["count_q0.1"] >= 0).all(), "a count has no negative bound"
    assert out["ds"].min() == panel.times[int(origin[0])].item().replace(tzinfo=out["ds"].min().tzinfo)


def test_the_kind_of_frame_and_of_time_comes_back_and_the_input_is_left_alone(
    model: Forecaster, frame: pl.DataFrame
) -> None:
    pandas = frame.to_pandas()
    before = pandas.copy(deep=True)
    out = model.predict(pandas)
    assert isinstance(out, pd.DataFrame)
    assert str(out["ds"].dtype).endswith("UTC]")
    pd.testing.assert_frame_equal(pandas, before)
    text = frame.with_columns(pl.col("ds").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    written = model.predict(text)
    assert written["ds"][0].endswith("Z")
    assert written.drop("ds").equals(model.predict(frame).drop("ds"))
    assert pl.from_pandas(out).drop("ds").equals(written.drop("ds"))


def test_column_names_and_row_order_are_free(model: Forecaster, frame: pl.DataFrame) -> None:
    other = frame.rename({"unique_id": "place", "ds": "when"}).sample(fraction=1, shuffle=True, seed=3)
    out = model.predict(other, id_col="place", time_col="when")
    assert out.drop("place", "when").equals(model.predict(frame).drop("unique_id", "ds"))


def test_naive_times_need_a_zone_and_get_the_same_answer_with_it(model: Forecaster, frame: pl.DataFrame) -> None:
    naive = frame.with_columns(pl.col("ds").dt.replace_time_zone(None))
    with pytest.raises(FrameError, match="carries no time zone"):
        model.predict(naive)
    assert model.predict(naive, zone="UTC").equals(model.predict(frame))


def test_a_wrong_column_gets_the_nearest_name(model: Forecaster, frame: pl.DataFrame) -> None:
    with pytest.raises(FrameError, match="'levell' for 'level'") as caught:
        model.predict(frame.rename({"level": "levell"}))
    assert caught.value.offenders == ["level"]
    with pytest.raises(FrameError, match="not known to the model"):
        model.predict(frame.with_columns(extra=1.0))


def test_an_unknown_entity_is_named(model: Forecaster, frame: pl.DataFrame) -> None:
    with pytest.raises(FrameError, match="never met") as caught:
        model.predict(frame.with_columns(pl.col("unique_id").replace("a", "Atlantis")))
    assert caught.value.offenders == ["Atlantis"]


def test_too_short_a_history_says_where_to_start(model: Forecaster, frame: pl.DataFrame) -> None:
    late = frame.filter(pl.col("ds") >= pl.col("ds").min() + pl.duration(hours=10))
    with pytest.raises(FrameError, match=r"at least 48 steps[\s\S]*38 steps[\s\S]*start at"):
        model.predict(late)
    with pytest.raises(FrameError, match="no observation"):
        model.predict(frame.with_columns(count=None, level=None))


def test_a_step_without_a_value_is_history_where_it_is_in_the_frame(model: Forecaster, frame: pl.DataFrame) -> None:
    first = pl.col("ds") == frame["ds"].min()
    unseen = frame.with_columns(pl.when(~first).then(c) for c in ("count", "level"))
    got = model.predict(unseen)
    assert got["ds"].equals(model.predict(frame)["ds"])
    with pytest.raises(FrameError, match="too short a history"):
        model.predict(unseen.filter(~first))


def test_duplicates_odd_times_and_text_values_are_refused(model: Forecaster, frame: pl.DataFrame) -> None:
    with pytest.raises(FrameError, match="several rows for one entity and time"):
        model.predict(pl.concat([frame, frame.head(1)]))
    with pytest.raises(FrameError, match="off the model's clock"):
        model.predict(frame.with_columns(pl.col("ds") + pl.duration(minutes=7)))
    with pytest.raises(FrameError, match="does not hold numbers"):
        model.predict(frame.with_columns(pl.col("level").cast(pl.String)))
    with pytest.raises(FrameError, match="not a time"):
        model.predict(frame.with_columns(ds=pl.lit("yesterday")), zone="UTC")
    with pytest.raises(FrameError, match="not a frame"):
        model.predict({"unique_id": ["a"]})


def test_a_gap_is_unobserved_for_measurements_and_zero_for_counts(model: Forecaster, frame: pl.DataFrame) -> None:
    gap = (pl.col("unique_id") == "a") & (pl.col("ds").rank("dense") > 10) & (pl.col("ds").rank("dense") <= 14)
    dropped = frame.filter(~gap)
    assert len(dropped) == len(frame) - 4
    spelled = frame.with_columns(
        level=pl.when(gap).then(None).otherwise("level"), count=pl.when(gap).then(0.0).otherwise("count")
    )
    side = ["temp_c", "planned"]
    assert model.predict(dropped.drop(side)).equals(model.predict(spelled.drop(side)))


def test_the_example_frame_holds_what_was_measured(
    model: Forecaster, frame: pl.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    counts = frame["count"].drop_nulls()
    assert counts.min() == 0, "and nothing a hair below"
    model.predict(frame)
    assert caplog.messages == []


def test_an_empty_row_of_a_count_is_no_zero_and_the_window_is_that_of_the_data(
    model: Forecaster, panel: Panel, frame: pl.DataFrame
) -> None:
    some = (pl.col("unique_id") == "a") & (pl.col("ds").rank("dense") > 10) & (pl.col("ds").rank("dense") <= 14)
    empty = frame.with_columns(pl.when(~some).then(c).alias(c) for c in ("count", "level"))
    zero = empty.with_columns(count=pl.when(some).then(0.0).otherwise("count"))
    assert not model.predict(empty).equals(model.predict(zero))
    origin = int(panel.origins("test")[20])
    hidden = panel.arrays.observed.clone()
    hidden[origin - panel.problem.look_back + 10 : origin - panel.problem.look_back + 14, 0] = False
    values = torch.where(hidden, panel.arrays.values, 0.0)
    arrays = replace(panel.arrays, values=values, observed=hidden)
    expected = model.forecast(arrays.gather(torch.tensor([origin]), panel.problem, ("past", "ahead")))
    got = model.predict(empty).select("count", "level").to_numpy().reshape(6, 12, 2)
    assert torch.allclose(torch.tensor(got, dtype=torch.float32).movedim(0, 1), expected.values[0], atol=1e-4)


def test_codes_in_the_last_step_say_that_it_is_over(model: Forecaster, frame: pl.DataFrame) -> None:
    history = frame.filter(pl.col("level").is_not_null() | pl.col("count").is_not_null())
    last = pl.col("ds") == history["ds"].max()
    coded = history.with_columns(
        level=pl.when(last).then(-99.0).otherwise("level"), count=pl.when(last).then(-1.0).otherwise("count")
    )
    assert model.predict(coded)["ds"].min() == model.predict(history)["ds"].min()
    with pytest.raises(FrameError, match="no observation"):
        model.predict(history.with_columns(level=pl.lit(-99.0), count=pl.lit(None, pl.Float64)))


def test_codes_and_values_beyond_the_range_are_masked_as_in_the_data(
    model: Forecaster, frame: pl.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    some = (pl.col("unique_id") == "a") & pl.col("level").is_not_null() & (pl.int_range(pl.len()) % 3 == 0)
    empty = model.predict(frame.with_columns(level=pl.when(~some).then("level")))
    assert not empty.equals(model.predict(frame))
    for value, said in ((-99.0, 0), (5000.0, 1), (-5000.0, 2)):
        assert model.predict(frame.with_columns(level=pl.when(some).then(value).otherwise("level"))).equals(empty)
        assert len(caplog.records) == said, "a code is expected, a stray is named"
    assert "of 'level' are below -1000 or above 1000 and count as unobserved" in caplog.messages[-1]


def test_a_series_that_training_did_not_use_is_not_used_for_forecasts(model: Forecaster, frame: pl.DataFrame) -> None:
    used = torch.ones(model.problem.n, model.problem.c, dtype=torch.bool)
    used[0, 1] = False
    eyes = replace(model.problem, tensors=model.problem.tensors | {"used": used})
    gone = pl.col("unique_id") == model.problem.entities[0]
    empty = model.predict(frame.with_columns(level=pl.when(~gone).then("level")))
    assert not empty.equals(model.predict(frame))
    assert replace(model, problem=eyes).predict(frame).equals(empty)


def test_side_information_may_be_left_out_and_entities_too(model: Forecaster, frame: pl.DataFrame) -> None:
    bare = model.predict(frame.drop("temp_c", "planned"))
    assert bare.select(pl.col("level").is_finite().all()).item()
    few = model.predict(frame.filter(pl.col("unique_id").is_in(["b", "e"])))
    assert few["unique_id"].unique(maintain_order=True).to_list() == ["b", "e"]
    infinite = frame.with_columns(level=pl.when(pl.col("unique_id") == "a").then(float("inf")).otherwise("level"))
    assert model.predict(infinite).select(pl.col("level").is_finite().all()).item()
