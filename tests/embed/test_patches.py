"""Every partition holds every cell once, remainders are padded, tokens come back as they went in."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from fixtures import gridded
from fixtures.synthetic import make_spec, tables
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stfm_pipeline.backbones.patches import from_patches, to_patches
from stfm_pipeline.datasets.spec import Embed, Patches
from stfm_pipeline.embed import patches
from stfm_pipeline.embed.run import embed
from stfm_pipeline.harmonize.run import harmonize

small = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(small, small, small, small, small, small)
def test_every_cell_has_one_place_of_its_own_and_a_remainder_is_padded(
    t: int, h: int, w: int, a: int, b: int, c: int
) -> None:
    times, places = patches.steps(t, a), patches.plane((h, w), b, c)
    boxes = patches.volume(times, places, h * w)
    for cut, n, size in ((times, t, a), (places, h * w, b * c), (boxes, t * h * w, a * b * c)):
        assert cut.holds(n)
        assert cut.cell.shape[1] == size
        assert cut.facts["padded"] == cut.cell.size - n
    assert len(places.cell) == -(-h // b) * -(-w // c)


def test_the_latest_steps_are_whole_and_boxes_are_boxes() -> None:
    times = patches.steps(7, 3)
    assert times.cell.tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert times.own.tolist() == [[False, False, True], [True] * 3, [True] * 3]
    box = patches.volume(times, patches.plane((4, 6), 2, 3), 24).cell[5]
    t, row, col = np.unravel_index(box, (7, 4, 6))
    assert (set(t), set(row), set(col)) == ({1, 2, 3}, {0, 1}, {3, 4, 5})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 7), st.sampled_from([1, 2, 4]), st.integers(0, 10))
def test_universal_patches_hold_any_places_and_tokens_come_back(n: int, leaf: int, merge: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cut = patches.universal(rng.random((n, 2)), rng.normal(size=(n, 5)), leaf, merge)
    assert cut.holds(n)
    x = torch.randn(2, n, 3)
    tokens = to_patches(x, torch.from_numpy(cut.cell))
    assert tokens.shape == (2, *cut.cell.shape, 3)
    assert torch.equal(from_patches(tokens, torch.from_numpy(cut.home)), x)


@pytest.mark.parametrize("grid", [(8, 8), (16, 4), (4, 32)])
def test_universal_patches_of_a_grid_are_rectangles_and_leaves_lie_side_by_side(grid: tuple[int, int]) -> None:
    row, col = (a.ravel() for a in np.mgrid[: grid[0], : grid[1]])
    cut = patches.universal(np.stack([col, row], axis=1).astype(float), np.zeros((len(row), 1)), 4, 4)
    assert cut.own.all()
    for cells in cut.cell:
        assert (np.ptp(row[cells]) + 1) * (np.ptp(col[cells]) + 1) == len(cells)


def test_a_short_leaf_takes_the_entity_that_lives_most_alike_and_not_the_nearest() -> None:
    xy = np.array([[0.0, 0], [1, 0], [2, 0], [3, 0], [9, 0]])
    profiles = np.array([[1.0, 0], [0, 1], [0, 1], [-1, 0], [-2, 0.1]])
    cut = patches.universal(xy, profiles, leaf=3, merge=1)
    assert cut.cell.tolist() == [[0, 1, 2], [3, 4, 1]]
    assert cut.own.tolist() == [[True] * 3, [True, True, False]]
    profiles[0] = [-1, 0.05]
    assert patches.universal(xy, profiles, leaf=3, merge=1).cell[1].tolist() == [3, 4, 0]


def test_the_stage_publishes_the_table_and_what_it_left_over() -> None:
    rule = Embed(eigenvectors=2, patch_size=6, patches=Patches(leaf=4, merge=2, rows=2, columns=3, steps=5))
    spec = gridded.make_spec(embed=rule)
    made = embed(spec, harmonize(spec, gridded.tables()).tables)
    assert all(c.passed for c in made.checks)
    table = made.tables["patches"]
    own = table.filter("own").group_by("kind").agg(pl.col("entity").n_unique(), pl.len())
    assert own.sort("kind").rows() == [("plane", 35, 35), ("universal", 35, 35)]
    facts = made.facts["partitions"]
    assert facts["plane"] == {"patches": 9, "places": 6, "padded": 19}
    assert facts["steps"] == {"patches": 5, "places": 5, "padded": 1}
    assert facts["volume"] == {"patches": 45, "places": 30, "padded": 45 * 30 - 24 * 35}
    assert facts["universal"] == {"patches": 8, "places": 6, "padded": 13}


def test_noise_after_the_training_part_changes_no_patch_but_other_days_in_it_do() -> None:
    spec = make_spec(embed=Embed(patches=Patches(leaf=2, merge=1)))
    raw = tables()
    split = harmonize(spec, raw).tables["split"]
    end = split.filter(part="train")["end"][0]

    def cut(where: pl.Expr) -> pl.DataFrame:
        """Where said so, the entities b and f swing every second hour."""
        swing = 900.0 * (pl.col("time").dt.hour() % 2)
        level = pl.when(where & pl.col("entity").is_in(["b", "f"])).then(swing).otherwise("level").alias("level")
        other = {**raw, "observations": raw["observations"].with_columns(level)}
        return embed(spec, harmonize(spec, other, split).tables).tables["patches"]

    same = cut(pl.lit(False))
    assert cut(pl.col("time") >= end).equals(same)
    other = cut(pl.col("time") < end)
    assert not other.equals(same)
    assert other.filter(~pl.col("own"))["entity"].to_list()[-1] == "b"


def test_leaves_are_merged_by_powers_of_two() -> None:
    with pytest.raises(ValidationError, match=r"1, 2, 4, 8 .* not 3"):
        Patches(merge=3)
