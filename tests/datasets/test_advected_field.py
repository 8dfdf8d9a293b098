"""A generated grid: the same every time, carried as the flow says, its optimum met by who knows the truth."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stfm_pipeline.datasets import advected_field as made
from stfm_pipeline.datasets.spec import RawTables
from stfm_pipeline.evaluate.oracle import oracle
from stfm_pipeline.evaluate.run import score
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS
from stfm_pipeline.tables import dense_values
from stfm_pipeline.truth import MEAN_ABS, LinearGaussian
from stfm_pipeline.windows import load_panel


@pytest.fixture(scope="module")
def raw() -> RawTables:
    return made.read({})


@pytest.fixture(scope="module")
def truth() -> LinearGaussian:
    return made.truth()


def test_the_same_seed_gives_the_same_numbers_everywhere(raw: RawTables) -> None:
    values = dense_values(raw["observations"], "field")
    assert values.shape == (made.STEPS, made.CELLS)
    assert hashlib.sha256(values.tobytes()).hexdigest()[:16] == "d3fb5aceed37737f"


def test_a_blob_goes_where_the_flow_carries_it(truth: LinearGaussian) -> None:
    """In the row and column without shear the flow is half a cell east a step."""
    field = np.zeros((made.SIDE, made.SIDE))
    field[0, 30] = 1
    after = (truth.transition @ field.ravel()).reshape(made.SIDE, -1) / made.DAMPED
    south = made.SOUTH[1] * np.sin(2 * np.pi * np.array([30, 31]) / made.SIDE)
    assert np.isclose(after[0, 30], 0.5 * (1 + south[0]))
    assert np.isclose(after[0, 31], 0.5 * (1 + south[1]))
    assert np.allclose(truth.transition.sum(axis=1), made.DAMPED)


def test_the_noise_is_as_smooth_as_its_covariance_says(truth: LinearGaussian) -> None:
    white = np.random.default_rng(0).standard_normal((4000, made.SIDE, made.SIDE))
    drawn = made.smooth(white).reshape(4000, -1)
    found = drawn.T @ drawn[:, :4] / 4000
    assert np.abs(found - truth.noise[:, :4]).max() < 5 / np.sqrt(4000)
    assert np.allclose(np.diag(truth.noise), 1)


def test_every_cell_has_its_eight_neighbours_around_the_plane(raw: RawTables) -> None:
    edges = raw["edges"]
    assert len(edges) == 8 * made.CELLS == edges.select("source", "target").n_unique()
    corner = set(edges.filter(target="r00c00")["source"])
    assert corner == {f"r{r:02d}c{c:02d}" for r in (31, 0, 1) for c in (31, 0, 1)} - {"r00c00"}
    assert raw["entities"].select(pl.col("row").max(), pl.col("col").max()).row(0) == (31, 31)


def test_the_stated_optimum_is_the_error_in_a_long_simulation(truth: LinearGaussian) -> None:
    x = made.simulate(8000)
    wanted = truth.deviations(4)
    forecast = x[:-4]
    for h in range(4):
        forecast = forecast @ truth.transition.T
        error = x[1 + h : len(x) - 3 + h] - forecast
        blocks = np.square(error[: len(error) // 100 * 100].reshape(-1, 100, truth.n)).mean(axis=(1, 2))
        off = blocks.mean() - np.square(wanted[h]).mean()
        assert abs(off) < 3 * blocks.std() / np.sqrt(len(blocks)), h
        assert np.isclose(np.abs(error).mean(), MEAN_ABS * wanted[h].mean(), rtol=0.02)


def test_the_oracle_meets_the_stated_optimum_down_the_road(truth: LinearGaussian, tmp_path: Path) -> None:
    lake, settings = Lake(str(tmp_path / "lake")), Settings(home=tmp_path)
    for stage in STEPS:
        outcome = materialize(made.SPEC.name, stage, lake, settings)
        assert outcome.stage is not None, outcome.checks
    panel = load_panel(lake, made.SPEC.name, settings.cache)
    assert panel.problem.grid == (made.SIDE, made.SIDE)
    few = replace(
        panel, parts=panel.parts | {"test": slice(panel.parts["test"].start, panel.parts["test"].start + 400)}
    )
    best = oracle(truth, few.problem)
    assert best is not None
    sums = score(best, few, "test", ()).sums
    each = (sums.window_abs / sums.window_count)[:, 0]
    means = each[: len(each) // 24 * 24].reshape(-1, 24).mean(axis=1)
    stated = lake.require(made.SPEC.name, "raw").facts["optimum"]["scores"]["field"]["avg"]["mae"]
    assert abs(means.mean() - stated) < 2 * means.std(ddof=1) / np.sqrt(len(means))
    assert np.isclose(means.mean(), stated, rtol=0.02)
