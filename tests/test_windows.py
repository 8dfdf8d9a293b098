from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from fixtures.synthetic import START, make_dataset, make_spec, tables
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stfm_pipeline.backbones.calendar import Cycles
from stfm_pipeline.datasets.spec import Dataset, Embed
from stfm_pipeline.errors import StfmError
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS
from stfm_pipeline.tables import Signal
from stfm_pipeline.windows import CALENDAR, Arrays, Panel, Problem, Window, code_categories, load_panel


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


def problem_of(n: int, look_back: int, horizon: int, steps_per_day: int) -> Problem:
    return Problem(
        dataset="d",
        kind="graph",
        look_back=look_back,
        horizon=horizon,
        entities=tuple(f"e{i}" for i in range(n)),
        channels=("x",),
        minimum=(None,),
        step_us=3_600_000_000,
        steps_per_day=steps_per_day,
        zones=("UTC",),
        zone="UTC",
        countries=(None,),
        seasons=(24,),
        past=("f",),
        ahead=("g",),
        loss="mae",
        tensors={},
    )


@given(st.data(), st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.integers(1, 12))
def test_gathering_is_naive_slicing_of_every_array(
    data: st.DataObject, n: int, look_back: int, horizon: int, day: int
) -> None:
    problem = problem_of(n, look_back, horizon, day)
    t = look_back + horizon + data.draw(st.integers(0, 6))
    origins = data.draw(st.lists(st.integers(look_back, t - horizon), min_size=1, max_size=6))
    number = iter(range(10**6))

    def array(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        flat = [next(number) for _ in range(int(np.prod((t, *shape))))]
        filled = torch.tensor(flat).reshape(t, *shape)
        return (filled * 7 % 3 == 0) if dtype == torch.bool else filled.to(dtype)

    arrays = Arrays(
        values=array(n, 1),
        observed=array(n, 1, dtype=torch.bool),
        calendar=array(1, 3, dtype=torch.int64),
        offset=array(1, dtype=torch.int64),
        past=array(n, 1),
        past_observed=array(n, 1, dtype=torch.bool),
        ahead=array(n, 1),
        ahead_observed=array(n, 1, dtype=torch.bool),
    )
    window = arrays.gather(torch.tensor(origins), problem, ("past", "ahead"))
    recent = min(look_back, day)
    for i, origin in enumerate(origins):
        spans = {"past": slice(origin - recent, origin), "ahead": slice(origin, origin + horizon)}
        for field in fields(Window):
            span = spans.get(field.name.split("_")[0], slice(origin - look_back, origin + horizon))
            assert torch.equal(getattr(window, field.name)[i], getattr(arrays, field.name)[span]), field.name


def test_arrays_stay_on_disk_and_a_write_to_a_window_reaches_neither_them_nor_the_cache(
    panel: Panel, enriched: Lake, settings: Settings
) -> None:
    (folder,) = (settings.cache / "panels").iterdir()
    stored = np.load(folder / "values.npy", mmap_mode="r", allow_pickle=False)
    assert isinstance(stored, np.memmap)
    assert np.array_equal(stored, panel.arrays.values.numpy())
    assert not any(p.name.startswith(".build-") for p in (settings.cache / "panels").iterdir())
    window = panel.arrays.gather(torch.tensor([100]), panel.problem)
    before = panel.arrays.values[99].clone()
    window.values.fill_(123.0)
    assert torch.equal(panel.arrays.values[99], before)
    panel.arrays.values[99] = 5.0
    assert torch.equal(load_panel(enriched, "synthetic", settings.cache).arrays.values[99], before)


def test_the_cache_is_used_again_until_the_data_changes(
    enriched: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset]
) -> None:
    load_panel(enriched, "synthetic", settings.cache)
    (folder,) = (settings.cache / "panels").iterdir()
    made = folder.stat().st_mtime_ns
    hidden = Path(enriched.uri, "synthetic", "harmonized", "signal")
    hidden.rename(hidden.with_name("away"))
    assert load_panel(enriched, "synthetic", settings.cache, look_back=24).problem.look_back == 24
    hidden.with_name("away").rename(hidden)
    assert [f.stat().st_mtime_ns for f in (settings.cache / "panels").iterdir()] == [made]

    add_dataset(make_dataset(seed=1))
    for stage in STEPS:
        materialize("synthetic", stage, enriched, settings, force=stage == "raw")
    panel = load_panel(enriched, "synthetic", settings.cache)
    assert len(list((settings.cache / "panels").iterdir())) == 2
    add_dataset(make_dataset(seed=2))
    kept = load_panel(enriched, "synthetic", settings.cache).arrays.values
    for stage in STEPS:
        materialize("synthetic", stage, enriched, settings, force=stage == "raw")
    assert not torch.equal(load_panel(enriched, "synthetic", settings.cache).arrays.values, kept)
    (settings.cache / "panels" / f"synthetic-too-{'0' * 16}").mkdir()
    add_dataset(make_dataset(seed=1))
    for stage in STEPS:
        materialize("synthetic", stage, enriched, settings, force=stage == "raw")
    panel = load_panel(enriched, "synthetic", settings.cache)
    left = [p.name for p in (settings.cache / "panels").iterdir()]
    assert len(left) == 3, "the last two, and another dataset's"
    assert any(p.startswith("synthetic-too") for p in left)
    stage = enriched.require("synthetic", "harmonized")
    assert panel.inputs["harmonized"] == stage.data_version
    signal = Signal.from_frame(enriched.read(stage, "signal"), panel.problem.entities, panel.problem.channels)
    tensors = panel.problem.tensors
    back = panel.arrays.values * tensors["std"] + tensors["mean"]
    mask = torch.from_numpy(signal.observed.copy())
    assert torch.equal(panel.arrays.observed, mask)
    assert torch.allclose(back[mask], torch.from_numpy(signal.values.copy())[mask], atol=1e-3)


def test_an_enriched_stage_behind_its_inputs_is_refused(
    enriched: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset]
) -> None:
    add_dataset(make_dataset(embed=Embed(eigenvectors=2, patch_size=2)))
    materialize("synthetic", "embedded", enriched, settings)
    with pytest.raises(StfmError, match="made from an older embedded stage") as caught:
        load_panel(enriched, "synthetic", settings.cache)
    assert caught.value.fix == "run `stfm run synthetic`"


def test_the_last_known_side_row_of_a_window_is_the_one_before_its_origin(panel: Panel, enriched: Lake) -> None:
    stage = enriched.require("synthetic", "enriched")
    block = Signal.from_frame(enriched.read(stage, "past"), panel.problem.entities, panel.problem.past)
    window = panel.arrays.gather(torch.tensor([300]), panel.problem, ("past",))
    tensors = panel.problem.tensors
    last = window.past[0, -1] * tensors["past_std"] + tensors["past_mean"]
    assert torch.allclose(last, torch.from_numpy(block.values[299].copy()), atol=1e-4)
    assert window.past_observed[0, -1].any()
    assert window.ahead.shape[-1] == 0


def test_a_look_back_longer_than_the_head_start_of_a_part_reaches_before_it(panel: Panel, enriched: Lake) -> None:
    assert panel.parts["val"].start - panel.problem.look_back < panel.parts["train"].stop
    batches = list(panel.batches(panel.origins("val"), 50))
    assert torch.equal(torch.cat([o for o, _ in batches]), panel.origins("val"))
    first = batches[0][1].values[0]
    assert torch.equal(first[:48], panel.arrays.values[panel.parts["train"].stop - 48 : panel.parts["train"].stop])


def test_a_window_without_any_observed_target_is_left_out(
    lake: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset]
) -> None:
    def quiet(files: object) -> dict[str, pl.DataFrame]:
        raw = tables()
        silent = (pl.col("time") >= START + timedelta(days=50)) & (pl.col("time") < START + timedelta(days=52))
        return raw | {"observations": raw["observations"].filter(~silent)}

    channels = tuple(c.model_copy(update={"absent": None}) for c in make_spec().channels)
    add_dataset(make_dataset(channels=channels).model_copy(update={"read": quiet}))
    for stage in STEPS:
        materialize("synthetic", stage, lake, settings)
    panel = load_panel(lake, "synthetic", settings.cache)
    missing = set(range(panel.parts["test"].start, panel.parts["test"].stop - 11)) - set(panel.origins("test").tolist())
    assert missing == set(range(50 * 24, 52 * 24 - 11))


def test_edges_and_zones_are_indexed_by_entity(panel: Panel) -> None:
    tensors = panel.problem.tensors
    assert tensors["edge_index"].tolist() == [[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]]
    assert tensors["edge_weight"].tolist() == [1.0] * 6
    assert [panel.problem.zones[i] for i in tensors["zone"].tolist()] == ["America/New_York"] * 3 + [
        "Europe/Zurich"
    ] * 3


def test_a_zone_has_a_calendar_for_each_country_and_entities_know_theirs(
    add_dataset: Callable[[Dataset], Dataset], lake: Lake, settings: Settings
) -> None:
    def abroad(files: dict[str, Path]) -> dict[str, pl.DataFrame]:
        raw = tables()
        country = pl.Series([None, "CA", "CA", "DE", "FR", None], dtype=pl.String)
        return raw | {"entities": raw["entities"].with_columns(country=country)}

    add_dataset(make_dataset().model_copy(update={"read": abroad}))
    for stage in STEPS:
        materialize("synthetic", stage, lake, settings)
    panel = load_panel(lake, "synthetic", settings.cache)
    problem = panel.problem
    lived = [(problem.zones[z], problem.countries[z]) for z in problem.tensors["zone"].tolist()]
    york, zurich = "America/New_York", "Europe/Zurich"
    assert lived == [(york, "US"), (york, "CA"), (york, "CA"), (zurich, "DE"), (zurich, "FR"), (zurich, "US")]
    noon = (np.datetime64("2023-04-07T16", "us") - panel.times[0]) // np.timedelta64(1, "h")
    holiday = panel.codes[noon, problem.tensors["zone"], CALENDAR.index("holiday")]
    assert holiday.tolist() == [0, 1, 1, 1, 0, 0], "Good Friday is a day off in Canada and Germany"
    assert Problem.from_config(json.loads(json.dumps(problem.to_config())), problem.tensors) == problem


def test_cycles_are_civil_time_and_leave_out_what_training_never_saw(panel: Panel) -> None:
    window = panel.gather(panel.origins("test")[-1:])
    day, week, month, year = Cycles(panel.problem)(window.calendar).unflatten(-1, (4, 2)).unbind(dim=3)
    tod = window.calendar[..., 0] - 1
    assert torch.allclose(day[..., 0], torch.sin(tod * 2 * torch.pi / 24), atol=1e-6)
    assert torch.allclose(torch.linalg.norm(week, dim=-1), torch.tensor(1.0))
    assert (month == 0).all(), "April"
    assert (year == 0).all(), "weeks after the training part"


def test_places_hold_where_entities_are_and_how_they_swing(panel: Panel) -> None:
    tensors = panel.problem.tensors
    assert tensors["frequency"].shape == (6, 2 * 8)
    assert torch.equal(panel.problem.places, torch.cat([tensors["spatial"], tensors["frequency"]], dim=1))
