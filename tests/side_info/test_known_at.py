"""A row that says when it was known shows itself to nobody before that, be it measured or planned."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from fixtures.scene import HORIZON, cells, join, scene_of, table
from fixtures.synthetic import START, make_spec, tables
from hypothesis import given, settings
from hypothesis import strategies as st

from stfm_pipeline.datasets.spec import Dataset, Join
from stfm_pipeline.errors import ContractError
from stfm_pipeline.harmonize.run import harmonize
from stfm_pipeline.lake import Lake
from stfm_pipeline.predict import frame_of
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.side_info import check, known
from stfm_pipeline.side_info.run import enrich
from stfm_pipeline.steps import STEPS
from stfm_pipeline.windows import load_panel

PAST = Join(table="t", columns=("v",), availability="past", tolerance="2h")
AHEAD = Join(table="t", columns=("v",), availability="ahead")
ONE = scene_of(["a"])


def test_a_row_is_known_when_it_says_so_whatever_the_lag() -> None:
    side = table([0, 1, 2], [10.0, 20.0, 30.0], known_at=[5.0, 1.5, None])
    lagging = PAST.model_copy(update={"lag": "2h", "tolerance": "9h"})
    # The one of 1 h within its own step, the one without a word of it after a step and the lag.
    assert cells(join(side, lagging, ONE)) == [None, 20, 20, 20, 30, 30, 30, 30]


def test_of_the_known_rows_the_newest_counts_and_of_one_time_the_last_said() -> None:
    side = table([0, 0, 1], [10.0, 11.0, 20.0], known_at=[1.0, 4.0, 3.0])
    wide = PAST.model_copy(update={"tolerance": "9h"})
    assert cells(join(side, wide, ONE)) == [10, 10, 20, 20, 20, 20, 20, 20]
    assert cells(join(side[:2], wide, ONE))[2:5] == [10, 11, 11]


def test_its_age_counts_from_its_own_step() -> None:
    side = table([0], [10.0], known_at=[2.0])
    assert cells(join(side, PAST, ONE)) == [None, 10, 10, None, None, None, None, None]


@settings(deadline=None)
@given(st.lists(st.integers(-3, 7), max_size=8, unique=True), st.integers(0, 3), st.integers(0, 3))
def test_a_lag_is_a_known_at_that_is_always_as_late(hours: list[int], lag: int, tolerance: int) -> None:
    values = [float(h) for h in hours]
    lagging = PAST.model_copy(update={"lag": f"{lag}h", "tolerance": f"{tolerance}h"})
    told = PAST.model_copy(update={"tolerance": f"{lag + tolerance}h"})
    side = table(hours, values, known_at=[h + 1 + lag for h in hours])
    assert cells(join(table(hours, values), lagging, ONE)) == cells(join(side, told, ONE))


def test_a_plan_shows_the_last_word_that_the_first_window_has_or_else_the_first_after_it() -> None:
    # Windows of three steps: the first that asks for 5 h begins at 3 h.
    side = table([5, 5, 5, 6, 6, 7], [1, 2, 3, 4, 5, 6.0], known_at=[0, 3, 4, 5.5, 5, 8])
    found = join(side, AHEAD, ONE)
    assert cells(found) == [None] * 5 + [2, 5, None]
    assert found.lead is not None
    assert found.lead[5:7, 0, 0].tolist() == [2, 1]
    assert found.known.unusable[:, 0, 0].tolist() == [False] * 7 + [True]


def test_a_mean_is_known_when_the_last_of_its_parts_is() -> None:
    sides = [table([5], [v], n, known_at=[k], lon=[x], lat=[0.0]) for n, v, k, x in (("p", 1, 2, 1), ("q", 3, 4, -1))]
    side, where = pl.concat(sides), scene_of([("x", 0, 0), ("y", 1, 0)])
    rule = AHEAD.model_copy(update={"via": "place", "within_km": 150.0, "nearest": 2})
    found = join(side, rule, where)
    assert found.lead is not None
    assert (found.lead[5, :, 0].tolist(), cells(found)[5]) == ([1, 3], 2)
    graph = np.zeros((3, 3))
    graph[2, :2] = 1
    along = join(side, AHEAD.model_copy(update={"via": "edges"}), scene_of(["p", "q", "x"], graph))
    assert along.lead is not None
    assert along.lead[5, :, 0].tolist() == [3, 1, 1]


def test_left_out_and_not_yet_known_cannot_both_be_nothing() -> None:
    with pytest.raises(ContractError, match="look the same"):
        join(table([5], [1.0], known_at=[0]), AHEAD.model_copy(update={"absent": 0.0}), ONE)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_no_origin_sees_what_was_not_known_then(data: st.DataObject) -> None:
    """Rows known after an origin are changed, taken away and added to: it sees the same."""
    rows = data.draw(
        st.lists(st.tuples(st.integers(0, 7), st.integers(-2, 9), st.floats(-9, 9, width=32)), min_size=1, max_size=12)
    )
    origin, rule = data.draw(st.integers(1, 7)), data.draw(st.sampled_from([PAST, AHEAD]))
    side = table([r[0] for r in rows], [r[2] for r in rows], known_at=[r[1] for r in rows])
    late = side["known_at"] > side["time"].dt.truncate("1d")[0] + timedelta(hours=origin)
    more = data.draw(st.sampled_from(["blank", "drop", "add"]))
    other = side.filter(~late)
    if more == "blank":
        other = side.with_columns(v=pl.when(late).then(99.0).otherwise("v"))
    if more == "add":
        other = pl.concat([other, table([origin, origin], [77.0, 78.0], known_at=[origin + 0.5, origin + 2])])

    def seen(found: Any) -> list[float | None]:
        values = cells(found)
        if found.lead is None:
            return values[:origin]
        ahead = range(origin, min(origin + HORIZON, 8))
        return [values[t] if found.lead[t, 0, 0] >= t - origin else None for t in ahead]

    assert seen(join(side, rule, ONE)) == seen(join(other, rule, ONE))


def plan(name: str = "synthetic") -> tuple[Any, dict[str, pl.DataFrame]]:
    """A plan that is made two steps before, and remade one step before."""
    raw = tables()
    early = raw["plan"].with_columns(known_at=pl.col("time") - timedelta(hours=2))
    late = raw["plan"].with_columns(pl.col("planned") + 5, known_at=pl.col("time") - timedelta(hours=1))
    rule = Join(table="plan", columns=("planned",), availability="ahead")
    return make_spec(name, joins=(rule,)), raw | {"plan": pl.concat([early, late]).sort("time", maintain_order=True)}


def test_a_window_has_what_was_known_at_its_origin(
    lake: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset]
) -> None:
    spec, raw = plan()
    add_dataset(Dataset(spec=spec, read=lambda _: raw, module="stfm_pipeline.datasets.nyc_airports"))
    for stage in STEPS:
        outcome = materialize("synthetic", stage, lake, settings)
        assert outcome.stage is not None, outcome.checks
    panel = load_panel(lake, "synthetic", settings.cache)
    (_, window), *_ = panel.batches(panel.origins("test")[:4], 4, ("ahead",))
    assert window.ahead_observed[:, :3].all()
    assert not window.ahead_observed[:, 3:].any()
    assert not window.ahead[:, 3:].any()
    origin = int(panel.origins("test")[0])
    frame = frame_of(panel, origin, ("b",))
    begin = START + timedelta(hours=origin)
    assert frame.filter(pl.col("ds") >= begin)["planned"].is_not_null().to_list() == [True] * 3 + [False] * 9
    assert frame.filter(pl.col("ds") < begin)["planned"].is_not_null().all()


@pytest.mark.parametrize("kind", ["past", "place", "ahead"])
def test_a_join_that_looks_ahead_is_found_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, raw = plan()
    weather = spec_of(kind)
    spec = spec.model_copy(update={"joins": (weather,)}) if kind != "ahead" else spec
    sites = pl.DataFrame({"entity": ["a", "d"], "lon": [-74.0, 8.0], "lat": [40.0, 47.0]})
    raw = raw | {"sites": sites}
    harmonized = harmonize(spec, raw).frames
    assert enrich(spec, raw, harmonized).passed
    if kind == "ahead":
        sooner = known.planned

        def leaking(table: pl.DataFrame, *rest: Any) -> Any:
            return sooner(table.with_columns(pl.col("known_at") - timedelta(hours=1)), *rest)

        monkeypatch.setattr("stfm_pipeline.side_info.join.planned", leaking)
    else:
        honest = known.known_us
        monkeypatch.setattr(known, "known_us", lambda *a: honest(*a) - 3_600_000_000)
    found = enrich(spec, raw, harmonized)
    assert [c.name for c in found.checks if not c.passed] == [check.NAME]


def spec_of(kind: str) -> Join:
    how: dict[str, Any] = {"via": "place", "within_km": 80, "places": "sites"} if kind == "place" else {"via": "edges"}
    return Join(table="weather", columns=("temp_c",), availability="past", tolerance="3h", **how)
