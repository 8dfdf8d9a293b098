"""`stfm clean --old`: what current stages and registered models are made from stays, the rest goes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from fixtures import live
from fixtures.live import begin, check_whole, land
from fixtures.synthetic import make_dataset
from typer.testing import CliRunner

from stfm_pipeline import decision, registry, scoring, sweep, training
from stfm_pipeline.alone import alone
from stfm_pipeline.cli import app
from stfm_pipeline.datasets.spec import Dataset
from stfm_pipeline.errors import StfmError
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS


def down_the_road(lake: Lake, settings: Settings) -> None:
    for stage in STEPS:
        assert materialize("synthetic", stage, lake, settings, force=stage == "raw").stage is not None


def to_a_model(lake: Lake, settings: Settings) -> None:
    for system in ("last-value", "dlinear"):
        training.train_system("synthetic", system, lake, settings, progress=False)
    scoring.evaluate_dataset("synthetic", lake, settings)
    decision.crown("synthetic", lake, settings)


def rows(lake: Lake, stage: Stage) -> int:
    return len(lake.read(stage, "signal"))


@pytest.fixture
def three(enriched: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset]) -> Lake:
    """Sixty days with a registered model, sixty-five that nothing was made from, and seventy that are current."""
    to_a_model(enriched, settings)
    for days in (65, 70):
        add_dataset(make_dataset(days=days))
        down_the_road(enriched, settings)
    return enriched


def test_versions_of_models_and_the_current_one_stay_and_the_rest_goes(three: Lake, settings: Settings) -> None:
    first, second, third = three.history("synthetic", "harmonized")
    orphan = Path(three.uri, "synthetic", "harmonized", "signal", "part-00000-orphan.snappy.parquet")
    orphan.write_bytes(b"x" * 1000)
    would = sweep.sweep("synthetic", three, settings, dry_run=True)
    assert orphan.exists()
    assert [rows(three, s) for s in (first, second, third)] == [1440, 1560, 1680]
    assert sweep.sweep("synthetic", three, settings) == would > 1000
    assert not orphan.exists()
    assert [rows(three, s) for s in (first, third)] == [1440, 1680]
    for stage in STEPS:
        made, current = (three.history("synthetic", stage)[i] for i in (0, -1))
        assert all(len(three.read(s, t)) for s in (made, current) for t in s.tables if t != "edges")
    with pytest.raises(StfmError, match="version 2 of harmonized of 'synthetic' is gone"):
        three.read(second, "signal")
    assert sweep.sweep("synthetic", three, settings) == 0
    down_the_road(three, settings)
    to_a_model(three, settings)


def test_nothing_goes_where_a_model_cannot_say_what_it_is_made_from(
    three: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for lineage in settings.root.rglob("lineage.json"):
        lineage.unlink()
    with pytest.raises(Exception, match="lineage"):
        sweep.sweep("synthetic", three, settings)
    assert rows(three, three.history("synthetic", "harmonized")[1]) == 1560


def test_tables_that_are_behind_go_on_after_a_sweep(lake: Lake, settings: Settings) -> None:
    begin(stop=55)
    live.down_the_road(lake, settings)
    wrong = live.rows("observations", 54, 54.5).with_columns(level=pl.col("level") + 1)
    land(wrong, "observations-54.csv", lake, settings)
    land(live.rows("observations", 55, 56), "observations-55.csv", lake, settings)
    assert materialize("live", "raw", lake, settings).stage is not None
    sweep.sweep("live", lake, settings)
    after = live.down_the_road(lake, settings)
    assert after["harmonized"].since == live.day(54), "what harmonized was made from is still there"
    check_whole(lake, settings)


def test_where_what_a_table_was_made_from_is_gone_it_is_computed_whole(
    lake: Lake, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="stfm")
    begin(stop=55)
    live.down_the_road(lake, settings)
    wrong = live.rows("observations", 54, 54.5).with_columns(level=pl.col("level") + 1)
    land(wrong, "observations-54.csv", lake, settings)
    assert materialize("live", "raw", lake, settings).stage is not None
    lake.sweep("live", "raw", [])
    after = live.down_the_road(lake, settings)
    assert after["harmonized"].since is None
    assert "harmonized: computed whole: version 1 of raw of 'live' is gone" in caplog.text
    check_whole(lake, settings)


def test_what_an_evaluation_stands_on_stays_until_it_is_decided_on(
    enriched: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset]
) -> None:
    for system in ("last-value", "dlinear"):
        training.train_system("synthetic", system, enriched, settings, progress=False)
    scoring.evaluate_dataset("synthetic", enriched, settings)
    add_dataset(make_dataset(days=65))
    down_the_road(enriched, settings)
    sweep.sweep("synthetic", enriched, settings)
    decision.crown("synthetic", enriched, settings)
    (lineage,) = registry.lineages(settings, "synthetic")
    for stage in STEPS:
        state = enriched.history("synthetic", stage)[lineage["tables"][stage]["stage_version"] - 1]
        assert all(enriched.read(state, t) is not None for t in state.tables)


def test_an_append_after_a_sweep_is_an_append(lake: Lake, settings: Settings) -> None:
    begin(stop=55)
    live.down_the_road(lake, settings)
    for start in (54.5, 55):
        shifted = live.rows("observations", start, 56).with_columns(level=pl.col("level") + start)
        land(shifted, f"observations-{start}.csv", lake, settings)
        live.down_the_road(lake, settings)
    assert sweep.sweep("live", lake, settings) > 0
    files = set(Path(lake.uri).rglob("signal/*.parquet"))
    land(live.rows("observations", 56, 57), "observations-57.csv", lake, settings)
    live.down_the_road(lake, settings)
    (new,) = set(Path(lake.uri).rglob("signal/*.parquet")) - files
    assert pl.read_parquet(new).height == 24


def test_a_sweep_waits_for_a_training(enriched: Lake, settings: Settings) -> None:
    swept = threading.Event()
    with alone(settings.lock("synthetic", "trained_dlinear"), "training"):
        thread = threading.Thread(target=lambda: (sweep.sweep("synthetic", enriched, settings), swept.set()))
        thread.start()
        assert not swept.wait(3)
    assert swept.wait(60)
    thread.join()


def test_many_files_of_a_manifest_become_one_and_the_history_stays(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(40):
        lake.publish("d", "s", {"t": pl.DataFrame({"x": [i]})}, fingerprint=str(i), facts={"i": i}, inputs={})
    before = lake.history("d", "s")
    lake.sweep("d", "s", [])
    assert len(list(Path(lake.uri, "d", "s", "manifest").glob("*.parquet"))) <= 33
    assert lake.history("d", "s") == before
    lake.publish("d", "s", {"t": pl.DataFrame({"x": [40]})}, fingerprint="40", facts={}, inputs={})
    assert [s.fingerprint for s in lake.history("d", "s")] == [str(i) for i in range(41)]


def test_the_command_says_what_would_go_and_what_went(three: Lake, settings: Settings) -> None:
    run = CliRunner().invoke
    asked = run(app, ["clean", "--old", "--dry-run"])
    done = run(app, ["clean", "--old"])
    assert asked.exit_code == done.exit_code == 0, done.output
    assert asked.output.split(": ")[1].split()[0] == done.output.split(": ")[1].split()[0]
    assert "would go" in asked.output
    assert run(app, ["clean", "--dry-run"]).exit_code == 2
    assert registry.versions(settings, "synthetic")[0]["version"] == 1
