"""Windows stand where their contract lets them, and everywhere there."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stfm_pipeline.origins import origins, strays

SMALL = st.integers(1, 6)


@given(st.integers(0, 30), st.integers(0, 30), SMALL, SMALL, st.none() | st.integers(2, 15))
def test_origins_are_all_steps_that_are_no_strays(
    start: int, steps: int, look_back: int, horizon: int, clip: int | None
) -> None:
    part = slice(start, start + steps)
    every = np.arange(80)
    allowed = np.setdiff1d(every, strays(every, part, look_back, horizon, clip))
    assert origins(part, look_back, horizon, clip).tolist() == allowed.tolist()


def test_a_window_with_a_target_in_the_next_part_is_a_stray() -> None:
    assert strays(np.array([7, 8, 9]), slice(5, 10), 3, 2).tolist() == [9]


def test_a_window_that_begins_in_the_clip_before_is_a_stray() -> None:
    assert strays(np.array([12, 13, 18, 19]), slice(0, 40), 3, 2, 10).tolist() == [12, 19]
