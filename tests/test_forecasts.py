"""Batch scoring: the champion's forecasts as a table, made anew only when it or the data changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

from stfm_pipeline import registry
from stfm_pipeline.errors import StfmError
from stfm_pipeline.forecasts import score
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.training import stage_of


@pytest.fixture
def copied(
    trained_home: Path, trained: tuple[Settings, Lake], home: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Settings, Lake]:
    shutil.copytree(trained_home, home)
    monkeypatch.setenv("STFM_HOME", str(home))
    settings = Settings()
    return settings, Lake(settings.lake_uri)


def crown(settings: Settings, lake: Lake, system: str) -> int:
    seed = lake.require("trained", stage_of(system)).facts["seeds"][0]
    number = registry.register(settings, "trained", seed["uri"], seed["run_id"], {"system": system})
    registry.promote(settings, "trained", number)
    return number


def test_forecasts_of_every_entity_are_published_once_per_version(copied: tuple[Settings, Lake]) -> None:
    settings, lake = copied
    first = crown(settings, lake, "dlinear")
    outcome = score("trained", lake, settings)
    assert outcome.stage is not None
    assert all(c.passed for c in outcome.checks)
    table = lake.read(outcome.stage, "forecasts")
    assert table.columns[:3] == ["entity", "time", "count"]
    assert {"count_q0.1", "count_q0.9", "level_q0.1", "level_q0.9"} <= set(table.columns)
    assert table.group_by("entity").len().sort("entity").rows() == [(e, 12) for e in "abcdef"]
    last = lake.read(lake.require("trained", "raw"), "observations")["time"].max()
    assert table["time"].min() == last + pl.Series([3_600_000_000]).cast(pl.Duration("us"))[0]
    facts = outcome.stage.facts
    assert facts["version"] == first
    assert facts["tables"]["enriched"] == lake.require("trained", "enriched").data_version
    assert facts["lineage"] == registry.load_model("models:/trained@champion", settings).lineage
    assert score("trained", lake, settings).reused
    second = crown(settings, lake, "constant")
    again = score("trained", lake, settings)
    assert again.stage is not None
    assert (again.reused, again.stage.facts["version"], again.stage.version) == (
        False,
        second,
        outcome.stage.version + 1,
    )
    rows = lake.connect().execute("select count(*) from trained.forecasts").fetchone()
    assert rows == (72,)


def test_without_a_version_it_says_what_to_do(copied: tuple[Settings, Lake]) -> None:
    with pytest.raises(StfmError, match="no version of 'trained' is its nobody"):
        score("trained", copied[1], copied[0], alias="nobody")
    assert copied[1].stage("trained", "forecasts") is None
