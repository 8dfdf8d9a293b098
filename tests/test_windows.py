from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stfm_pipeline.errors import StfmError
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.windows import Arrays, Panel, code_categories, load_panel


@pytest.fixture
def panel(enriched: Lake, settings: Settings) -> Panel:
    return load_panel(enriched, "synthetic", settings.cache)


def test_targets_stay_inside_their_part_and_look_back_may_reach_before(panel: Panel) -> None:
    for part in ("val", "gate", "test"):
        span, origins = panel.parts[part], panel.origins(part)
        assert int(origins[0]) == span.start
        assert int(origins[-1]) + panel.problem.horizon == span.stop
    assert int(panel.origins("train")[0]) == panel.problem.look_back


def test_windows_are_slices_of_the_clock(panel: Panel) -> None:
    problem = panel.problem
    origins = torch.tensor([48, 500, 61])
    window = panel.arrays.gather(origins, problem, ("past", "ahead"))
    for i, origin in enumerate(origins.tolist()):
        whole, day = slice(origin - 48, origin + 12), slice(origin - 24, origin)
        assert torch.equal(window.values[i], panel.arrays.values[whole])
        assert torch.equal(window.observed[i], panel.arrays.observed[whole])
        assert torch.equal(window.calendar[i], panel.arrays.calendar[whole])
        assert torch.equal(window.past[i], panel.arrays.past[day])
        assert torch.equal(window.ahead[i], panel.arrays.ahead[origin : origin + 12])
    assert panel.arrays.gather(origins, problem).past.shape == (3, 24, 6, 0)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(-100, 1600), min_size=1, max_size=5))
def test_a_window_outside_the_clock_is_an_error(panel: Panel, origins: list[int]) -> None:
    inside = all(48 <= o <= len(panel.arrays.values) - 12 for o in origins)
    if inside:
        assert panel.arrays.gather(torch.tensor(origins), panel.problem).values.shape[0] == len(origins)
    else:
        with pytest.raises(StfmError, match="outside the clock"):
            panel.arrays.gather(torch.tensor(origins), panel.problem)


def test_arrays_are_mapped_from_disk_and_standardised(panel: Panel, enriched: Lake) -> None:
    train = panel.parts["train"]
    cells = panel.arrays.values[train][..., 1][panel.arrays.observed[train][..., 1]]
    assert float(cells.mean()) == pytest.approx(0, abs=1e-3)
    assert float(cells.std()) == pytest.approx(1, abs=1e-3)
    assert (panel.arrays.values[~panel.arrays.observed] == 0).all()
    assert isinstance(panel.arrays, Arrays)


def test_an_entity_order_that_does_not_match_its_hash_is_refused(
    enriched: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Lake.read

    def reversed_entities(self: Lake, stage: object, table: str) -> object:
        frame = read(self, stage, table)  # type: ignore[arg-type]
        return frame.reverse() if table == "entities" else frame

    monkeypatch.setattr(Lake, "read", reversed_entities)
    with pytest.raises(StfmError, match="does not match the hash"):
        load_panel(enriched, "synthetic", settings.cache)
    assert not any((settings.cache / "panels").glob("synthetic-*")) if (settings.cache / "panels").exists() else True


def test_categories_that_training_never_saw_are_coded_zero() -> None:
    codes = np.array([[0, 1], [2, 0], [5, 1]])
    assert code_categories(codes, [np.array([True, False, True]), np.array([False, True])]).tolist() == [
        [1, 2],
        [3, 0],
        [0, 2],
    ]
