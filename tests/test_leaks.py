"""The leak audit passes what is sound, and fails, by name, what leaks on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from fixtures.synthetic import make_dataset, tables
from typer.testing import CliRunner

from bench.leaks import LEAKS, leaking
from stfm_pipeline import road
from stfm_pipeline.cli import app
from stfm_pipeline.datasets.spec import Channel, Dataset, Facts, Join
from stfm_pipeline.lake import Lake
from stfm_pipeline.leaks import audit
from stfm_pipeline.settings import Settings
from stfm_pipeline.side_info import join
from stfm_pipeline.stage import Result
from stfm_pipeline.steps import STEPS
from stfm_pipeline.tables import dense_observations

PROMISES = ["nothing_after_training_is_fitted", "side_information_as_of_its_time", "the_past_stays"]


def broken(rows: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Tables by broken promise, with how they differ."""
    return {
        r["check"]: {t: w for t, w in r["details"].items() if t != "compared rows"} for r in rows if not r["passed"]
    }


def test_a_sound_dataset_keeps_every_promise_and_nothing_is_published(enriched: Lake, settings: Settings) -> None:
    before = {s.name: s.version for s in enriched.stages("synthetic")}
    rows = audit("synthetic", enriched, settings)
    assert broken(rows) == {}
    assert [r["check"] for r in rows] == PROMISES
    named = set(rows[0]["details"]["compared rows"].replace(",", "").split()[::2])
    assert named == {f"{s.name}.{t}" for s in enriched.stages("synthetic") if s.name != "raw" for t in s.tables}
    assert {s.name: s.version for s in enriched.stages("synthetic")} == before


@pytest.mark.parametrize("leak", sorted(LEAKS))
def test_what_leaks_on_purpose_is_found_and_named(enriched: Lake, settings: Settings, leak: str) -> None:
    promise, table = LEAKS[leak]
    with leaking(leak):
        found = broken(audit("synthetic", enriched, settings))
    assert table in found[promise]
    assert "differs in" in found[promise][table]


def test_a_table_that_is_neither_fitted_nor_dated_is_named(
    enriched: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stfm_pipeline.embed import run

    known = run.embed

    def more(*arguments: Any) -> Result:
        found = known(*arguments)
        return Result({**found.tables, "forgotten": pl.DataFrame({"entity": ["a"]})}, found.facts, found.checks)

    monkeypatch.setattr(run, "embed", more)
    found = broken(audit("synthetic", enriched, settings))
    assert found["nothing_after_training_is_fitted"] == {
        "embedded.forgotten": "is neither declared fitted nor has a column `time`"
    }


def _grid(days: int = 60) -> dict[str, pl.DataFrame]:
    """The synthetic counts as frames of 2 x 3 cells, with a cell on land."""
    rows = tables(days)["observations"]
    times = rows["time"].unique().sort()
    rng = np.random.default_rng(0)
    values = 10 + 3 * np.sin(np.arange(len(times)) * 2 * np.pi / 24)[:, None] + rng.normal(0, 1, (len(times), 6))
    values[:, 4] = np.nan
    cells = pl.DataFrame(
        {"entity": [f"r{i // 3}c{i % 3}" for i in range(6)], "row": [0, 0, 0, 1, 1, 1], "col": [0, 1, 2] * 2}
    )
    return {
        "observations": dense_observations(times, {"level": values}),
        "entities": cells.cast({"row": pl.Int32, "col": pl.Int32}),
    }


def test_a_grid_is_audited_as_a_graph_is(
    lake: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset]
) -> None:
    sound = make_dataset(kind="grid", channels=(Channel(name="level", unit="m"),), joins=(), facts=Facts())
    add_dataset(Dataset(spec=sound.spec, read=lambda files: _grid(), module=sound.module))
    for step in STEPS:
        assert road.materialize("synthetic", step, lake, settings).stage is not None
    rows = audit("synthetic", lake, settings)
    assert broken(rows) == {}
    assert rows[1]["details"] == {"compared rows": "nothing: it does not apply"}
    with leaking("scaler"):
        assert "harmonized.scaler" in broken(audit("synthetic", lake, settings))[PROMISES[0]]


def test_a_lag_is_part_of_when_a_row_is_known(
    lake: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset]
) -> None:
    rule = Join(table="weather", columns=("temp_c",), availability="past", via="edges", lag="2h", tolerance="3h")
    add_dataset(make_dataset(joins=(rule,)))
    for step in STEPS:
        assert road.materialize("synthetic", step, lake, settings).stage is not None
    assert broken(audit("synthetic", lake, settings)) == {}


@pytest.mark.parametrize("more", [0, 1, 1000])
def test_a_plan_that_is_shown_before_it_was_known_is_found(
    lake: Lake,
    settings: Settings,
    add_dataset: Callable[[Dataset], Dataset],
    monkeypatch: pytest.MonkeyPatch,
    more: int,
) -> None:
    sound = make_dataset()

    def read(files: Any) -> dict[str, pl.DataFrame]:
        raw = tables()
        issued = pl.when(pl.int_range(pl.len()) % 50 != 0).then(pl.col("time") - pl.duration(hours=3))
        return raw | {"plan": raw["plan"].with_columns(known_at=issued)}

    plan = Join(table="plan", columns=("planned",), availability="ahead")
    spec = sound.spec.model_copy(update={"joins": (sound.spec.joins[0], plan)})
    add_dataset(Dataset(spec=spec, read=read, module=sound.module))
    for step in STEPS:
        assert road.materialize("synthetic", step, lake, settings).stage is not None
    known = join.planned
    monkeypatch.setattr(join, "planned", lambda *a: replace(k := known(*a), lead=k.lead + np.int16(more)))
    found = broken(audit("synthetic", lake, settings))
    assert [*found.get(PROMISES[1], {})] == (["enriched.ahead as a window sees it"] if more else [])


def test_a_dataset_that_goes_on_keeps_its_split_in_the_audit(lake: Lake, settings: Settings) -> None:
    from fixtures.live import begin, day, down_the_road, land, rows

    begin()
    before = down_the_road(lake, settings)["harmonized"].facts["parts"]
    land(rows("observations", 50, 52), "observations-52.csv", lake, settings)
    after = down_the_road(lake, settings)["harmonized"].facts
    assert after["parts"]["train"] == before["train"]
    assert after["end"].startswith(f"{day(52) + timedelta():%Y-%m-%dT%H}")
    assert broken(audit("live", lake, settings)) == {}


def test_the_command_says_what_was_compared_and_fails_on_a_leak(enriched: Lake) -> None:
    good = CliRunner().invoke(app, ["datasets", "check", "synthetic", "--json"])
    assert good.exit_code == 0, good.output
    rows = json.loads(good.stdout)["checks"]
    assert [r["check"] for r in rows if r["stage"] == "leaks"] == PROMISES
    with leaking("join"):
        bad = CliRunner().invoke(app, ["datasets", "check", "synthetic"])
    assert bad.exit_code == 1
    assert "enriched.past: differs in" in bad.stdout
