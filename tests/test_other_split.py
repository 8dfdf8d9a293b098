"""A model of an earlier split meets a panel of a later one: it sees windows through its own statistics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from fixtures.synthetic import make_dataset

from stfm_pipeline.datasets.spec import Dataset, Split
from stfm_pipeline.errors import StfmError
from stfm_pipeline.evaluate.run import score
from stfm_pipeline.forecaster import Forecaster
from stfm_pipeline.lake import Lake
from stfm_pipeline.predict import frame_of
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS
from stfm_pipeline.systems.catalog import get_system
from stfm_pipeline.train import BUDGETS, fit
from stfm_pipeline.windows import STATISTICS, Panel, load_panel

EARLY = Split(ratios=(0.08, 0.1, 0.1, 0.72))
LATE = Split(ratios=(0.6, 0.1, 0.1, 0.2))
SIDES = ("past", "ahead")
Two = tuple[Panel, Panel, Forecaster]


@pytest.fixture
def two(add_dataset: Callable[[Dataset], Dataset], lake: Lake, settings: Settings) -> Two:
    """The panel of a split that trains on five days, one of the usual split, and a model of the former."""
    panels = []
    for split in (EARLY, LATE):
        add_dataset(make_dataset(split=split))
        for stage in STEPS:
            assert materialize("synthetic", stage, lake, settings).stage is not None
        panels.append(load_panel(lake, "synthetic", settings.cache))
    early, late = panels
    module = fit(get_system("stid"), early, BUDGETS["quick"], progress=False).module
    return early, late, Forecaster("stid", early.problem, module, {"count": 0.0, "planned": 0.0})


def test_windows_of_a_later_panel_are_those_it_was_trained_on(two: Two) -> None:
    early, late, model = two
    assert not torch.equal(early.problem.tensors["mean"], late.problem.tensors["mean"])
    assert int((early.codes[:, :, 1].unique()).numel()) == 7
    assert not bool(early.problem.tensors["seen_dow"].all()), "training has not met every day of the week"
    origins = late.origins("gate")[:40]
    seen, own = late.gather(origins, SIDES, model.problem), early.gather(origins, SIDES)
    for side in ("values", *SIDES):
        torch.testing.assert_close(getattr(seen, side), getattr(own, side), rtol=1e-5, atol=1e-5)
        mask = getattr(seen, "observed" if side == "values" else f"{side}_observed")
        assert bool((getattr(seen, side)[~mask] == 0).all()), "what is not observed stays exactly 0"
    assert torch.equal(seen.calendar, own.calendar)
    assert not torch.equal(seen.calendar, late.gather(origins).calendar)
    plain = late.gather(origins, SIDES)
    assert torch.equal(late.gather(origins, SIDES, late.problem).values, plain.values)


def test_it_is_scored_by_what_it_would_have_answered_to_a_frame(two: Two) -> None:
    _, late, model = two
    scored = score(model, late, "gate", SIDES).sums
    p = late.problem
    origins = late.origins("gate")
    at = [0, len(origins) // 2, len(origins) - 1]
    for i in at:
        origin = int(origins[i])
        frame = model.predict(frame_of(late, origin))
        made = np.stack([frame[c].to_numpy().reshape(p.n, p.horizon).T for c in p.channels], axis=2)
        steps = slice(origin, origin + p.horizon)
        truth = (late.arrays.values[steps] * p.tensors["std"] + p.tensors["mean"]).numpy()
        size = np.where(late.arrays.observed[steps].numpy(), np.abs(made - truth), 0).sum(axis=(0, 1))
        np.testing.assert_allclose(scored.window_abs[i], size, rtol=2e-3)


def test_both_are_scored_on_the_same_cells_in_data_units(two: Two) -> None:
    _, late, model = two
    module = get_system("constant").build(late.problem)
    module.fit(late)  # type: ignore[operator]
    other = score(Forecaster("constant", late.problem, module, {}), late, "gate", ()).sums
    mine = score(model, late, "gate", SIDES).sums
    assert np.array_equal(mine.window_count, other.window_count)
    assert np.array_equal(mine.cells["data"][3], other.cells["data"][3]), "the same targets, bit for bit"


def test_another_set_of_entities_is_not_comparable(two: Two) -> None:
    import dataclasses

    _, late, model = two
    fewer = dataclasses.replace(model.problem, entities=model.problem.entities[:-1])
    with pytest.raises(StfmError, match=r"another problem[\s\S]*entities"):
        late.gather(late.origins("gate")[:2], SIDES, fewer)
    assert set(STATISTICS) <= set(late.problem.tensors)
