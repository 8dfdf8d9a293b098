"""Generated clips: frames follow from their objects, parts share no digit, and no window crosses a clip."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import make_spec
from pydantic import ValidationError

from stfm_pipeline.datasets import moving_digits as made
from stfm_pipeline.datasets.spec import Dataset, Facts, Split, Task
from stfm_pipeline.errors import ContractError
from stfm_pipeline.evaluate.oracle import oracle
from stfm_pipeline.harmonize import split
from stfm_pipeline.lake import Lake
from stfm_pipeline.pages.dataset import dataset_page
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS
from stfm_pipeline.tables import dense_values
from stfm_pipeline.windows import load_panel

FEW = (3, 1, 1, 2)


@pytest.fixture(scope="module")
def raw() -> dict[str, pl.DataFrame]:
    return made.tables(FEW)


def test_the_same_seed_gives_the_same_frames_everywhere(raw: dict[str, pl.DataFrame]) -> None:
    values = dense_values(raw["observations"], "brightness")
    assert values.shape == (sum(FEW) * made.FRAMES, made.SIDE**2)
    assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == "1bec58ec127337a8"


def test_parts_show_digits_of_their_own_and_all_ten_of_them() -> None:
    found = made.objects(made.CLIPS)
    last = np.cumsum(made.CLIPS)
    part = np.searchsorted(last, found["clip"].to_numpy(), side="right")
    shown = [set(found.filter(pl.Series(part == k))["image"]) for k in range(4)]
    assert sum(map(len, shown)) == len(set().union(*shown)), "an image belongs to one part"
    assert all(set(found.filter(pl.Series(part == k))["digit"]) == set(range(10)) for k in (0, 3))
    assert found.filter(down_speed=0, right_speed=0).is_empty()


def test_a_digit_moves_by_its_speed_and_is_thrown_back_at_the_edge() -> None:
    one = pl.DataFrame(
        {"clip": 0, "digit": 3, "image": 3, "down": 2, "right": made.ROOM - 5, "down_speed": -3, "right_speed": 4}
    )
    shown = made.frames(one)
    large, labels = made.images()
    assert labels[3] == 3
    down, right = [2, 1, 4, 7], [made.ROOM - 5, made.ROOM - 1, made.ROOM - 3, made.ROOM - 7]
    for frame, i, j in zip(shown, down, right, strict=False):
        assert np.array_equal(frame[i : i + 24, j : j + 24], large[3])
        assert frame.sum() == large[3].sum(), "whole, and nothing else"


def test_every_frame_follows_from_the_objects_of_its_clip(raw: dict[str, pl.DataFrame]) -> None:
    values = dense_values(raw["observations"], "brightness").reshape(-1, made.SIDE, made.SIDE)
    for clip in range(sum(FEW)):
        again = made.frames(raw["objects"].filter(clip=clip))
        assert np.array_equal(again, values[clip * made.FRAMES : (clip + 1) * made.FRAMES])
    assert values.max() <= 1


def test_captions_say_what_moves_and_where(raw: dict[str, pl.DataFrame]) -> None:
    assert made.caption(8, -1, -4) == "an 8 moves up and to the left"
    assert made.caption(3, 0, 2) == "a 3 moves to the right"
    assert made.caption(1, 3, 0) == "a 1 moves down"
    assert raw["captions"]["clip"].to_list() == list(range(sum(FEW)))
    assert all(text.count(" moves ") == 2 for text in raw["captions"]["text"])
    assert raw["captions"]["time"][1] == made.START + made.FRAMES * made.MINUTE


def test_no_window_crosses_from_one_clip_into_the_next(
    add_dataset: Callable[[Dataset], Dataset], lake: Lake, settings: Settings, raw: dict[str, pl.DataFrame]
) -> None:
    counts = tuple(k * made.FRAMES for k in FEW)
    spec = made.SPEC.model_copy(
        update={"name": "few-digits", "split": Split(ratios=None, counts=counts), "facts": Facts()}
    )
    add_dataset(Dataset(spec=spec, read=lambda files: raw, module=made.__name__, truth=made.truth))
    for stage in STEPS:
        outcome = materialize("few-digits", stage, lake, settings)
        assert outcome.stage is not None, outcome.checks
    panel = load_panel(lake, "few-digits", settings.cache)
    clips = {part: ((panel.origins(part) - 10) / made.FRAMES).tolist() for part in ("train", "val", "gate", "test")}
    assert clips == {"train": [0, 1, 2], "val": [3], "gate": [4], "test": [5, 6]}
    shorter = load_panel(lake, "few-digits", settings.cache, look_back=5, horizon=12)
    starts = (shorter.origins("test") - 5) % made.FRAMES
    assert set(starts.tolist()) == {0, 1, 2, 3}, "a shorter window has several places in a clip"
    assert oracle(made.truth(), panel.problem) is None
    page = dataset_page(spec, lake)
    assert {r["part"]: r["windows"] for r in page.numbers["split"]} == {"train": 3, "val": 1, "gate": 1, "test": 2}
    assert page.numbers["optimum"]["rows"][0]["avg"] == 0
    assert lake.read(lake.require("few-digits", "raw"), "captions").equals(raw["captions"])


def test_parts_begin_and_end_with_clips() -> None:
    times = np.arange(400).astype("datetime64[h]").astype("datetime64[us]")
    task = Task(look_back=5, horizon=5, clip=30)
    drawn = split.parts_of(split.draw(times, make_spec().split, task), times)
    assert {p: (s.start, s.stop) for p, s in drawn.items()} == {
        "train": (0, 240),
        "val": (240, 270),
        "gate": (270, 330),
        "test": (330, 400),
    }
    with pytest.raises(ContractError, match="cuts through clips"):
        split.draw(times, Split(ratios=None, counts=(200, 60, 60, 60)), task)
    with pytest.raises(ValidationError, match=r"clips of 8 steps hold no window of 5 \+ 5"):
        Task(look_back=5, horizon=5, clip=8)
