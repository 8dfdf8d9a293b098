"""`stfm clean --old`: what current stages and registered models are made from stays, the rest goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.synthetic import make_dataset
from typer.testing import CliRunner

from stfm_pipeline import decision, registry, scoring, sweep, training
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


def test_many_files_of_a_manifest_become_one_and_the_history_stays(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    import polars as pl

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
