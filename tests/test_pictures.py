"""Every stage has a small picture; a stage without one has none."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import NAMES, make_spec, tables

from stfm_pipeline.pictures import leaderboard_picture, learning_curve, markdown_image, stage_picture
from stfm_pipeline.tables import Signal, scatter, times_of

SPEC = make_spec()


def assert_small(png: bytes | None, width: int = 600) -> None:
    assert png is not None
    assert png.startswith(b"\x89PNG")
    assert len(png) < 50_000
    assert struct.unpack(">I", png[16:20]) == (width,)


def harmonized(days: int, names: tuple[str, ...] = NAMES) -> dict[str, pl.DataFrame]:
    raw = tables(days)
    start = raw["observations"]["time"].min()
    assert isinstance(start, datetime)
    times = times_of(pl.Series([start + timedelta(hours=h) for h in range(24 * days)]).dt.cast_time_unit("us"))
    values, observed = scatter(raw["observations"], times, names, SPEC.channel_names)
    signal = Signal(times, names, SPEC.channel_names, values, observed)
    edge = [start + timedelta(hours=24 * days * k // 4) for k in range(5)]
    split = {"part": ["train", "val", "gate", "test"], "start": edge[:4], "end": edge[1:]}
    return {
        "signal": signal.to_frame(),
        "entities": raw["entities"].filter(pl.col("entity").is_in(names)),
        "split": pl.DataFrame(split),
    }


def places(located: bool, count: int = 6) -> pl.DataFrame:
    x = np.linspace(-1, 1, count)
    at = x if located else np.full(count, np.nan)
    return pl.DataFrame({"entity": NAMES[:count], "x": at, "y": at, "patch": [0] * count, "eig_1": x, "eig_2": x})


def side(columns: int, days: int = 20) -> pl.DataFrame:
    times = np.datetime64("2024-01-01", "us") + np.arange(24 * days) * np.timedelta64(1, "h")
    values = np.random.default_rng(0).random((len(times), 6, columns), np.float32)
    observed = values > 0.5
    observed[:30] = False
    return Signal(times, NAMES, tuple(map(str, range(columns))), values, observed).to_frame()


def test_raw_shows_rows_per_day_and_a_day_without_any() -> None:
    rows = tables(20)["observations"]
    gap = rows.filter(~pl.col("time").is_between(datetime(2023, 2, 24, tzinfo=UTC), datetime(2023, 2, 27, tzinfo=UTC)))
    assert_small(stage_picture("raw", {"observations": rows}, SPEC, {}))
    assert stage_picture("raw", {"observations": gap}, SPEC, {}) != stage_picture(
        "raw", {"observations": rows}, SPEC, {}
    )


@pytest.mark.parametrize(("days", "names"), [(60, NAMES), (3, NAMES), (60, ("a",))])
def test_harmonized_shows_the_mean_and_what_was_observed(days: int, names: tuple[str, ...]) -> None:
    assert_small(stage_picture("harmonized", harmonized(days, names), SPEC, {}))


def test_published_splits_share_a_part() -> None:
    found = harmonized(8)
    split = found["split"]
    found["split"] = pl.concat([split[:2], split[1:2].with_columns(part=pl.lit("gate")), split[3:]])
    assert_small(stage_picture("harmonized", found, SPEC, {}))


def test_embedded_falls_back_to_eigenvectors_and_needs_none() -> None:
    drawn = [stage_picture("embedded", {"spatial": places(located)}, SPEC, {}) for located in (True, False)]
    for png in drawn:
        assert_small(png)
    assert drawn[0] != drawn[1]
    assert_small(stage_picture("embedded", {"spatial": places(True).drop("eig_1", "eig_2")}, SPEC, {}))
    assert_small(stage_picture("embedded", {"spatial": places(False, count=1)}, SPEC, {}))


def test_enriched_shows_the_first_three_side_columns() -> None:
    found = {"past": side(2), "ahead": side(4)}
    dense = {"past": ["temp_c", "wind_mps"], "ahead": ["a", "b", "c", "d"]}
    assert_small(stage_picture("enriched", found, SPEC, {"dense": dense}))
    assert_small(stage_picture("enriched", {"ahead": side(1)}, SPEC, {"dense": {"ahead": ["a"]}}))
    assert stage_picture("enriched", {"text": pl.DataFrame()}, SPEC, {"dense": {}}) is None


def test_a_stage_or_table_without_a_picture_has_none() -> None:
    assert stage_picture("unheard-of", {}, SPEC, {}) is None
    assert stage_picture("raw", {"events": pl.DataFrame()}, SPEC, {}) is None


def test_learning_curve_of_one_and_many_epochs_even_if_val_is_nan() -> None:
    rows = [{"epoch": float(i), "train_loss": 1 / (i + 1), "val_loss": abs(i - 3) + 1.0} for i in range(8)]
    for shown in (rows, rows[:1], [{**r, "val_loss": float("nan")} for r in rows]):
        assert_small(learning_curve(shown))


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_leaderboard_picture_has_room_for_every_channel(channels: int) -> None:
    board = pl.DataFrame(
        [
            {"split": "test", "scale": "data", "horizon": "avg", "channel": f"c{k}", "system": s, "mae": 1.0 + i + k}
            for i, s in enumerate(("stid", "constant", "seasonal-naive"))
            for k in range(channels)
        ]
    )
    assert_small(leaderboard_picture(board, "stid"), width=700)


def test_markdown_image_is_a_data_uri() -> None:
    assert markdown_image(b"png", "a picture") == "![a picture](data:image/png;base64,cG5n)"


@pytest.mark.parametrize("hours", [60, 67, 71, 80])
def test_a_few_days_have_their_ticks(hours: int) -> None:
    found = harmonized(4)
    few = {**found, "signal": found["signal"][:hours]}
    assert_small(stage_picture("harmonized", few, SPEC, {}))
