"""The champion in MLflow: no pickle, one answer everywhere, promotion, rollback."""

from __future__ import annotations

import dataclasses
import io
import json
import pickletools
import shutil
import socket
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import polars as pl
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from stfm_pipeline import decision, registry, scoring, training
from stfm_pipeline.errors import StfmError, UsageError
from stfm_pipeline.evaluate.choose import Decision
from stfm_pipeline.lake import Lake
from stfm_pipeline.predict import frame_of
from stfm_pipeline.settings import Settings
from stfm_pipeline.windows import load_panel


@pytest.fixture
def frame(trained: tuple[Settings, Lake]) -> pl.DataFrame:
    settings, lake = trained
    panel = load_panel(lake, "trained", settings.cache)
    return frame_of(panel, int(panel.origins("test")[3]))


@pytest.fixture
def uri(trained: tuple[Settings, Lake]) -> str:
    return str(trained[1].require("trained", "champion").facts["uri"])


def test_a_loaded_model_leaves_no_file_behind(
    trained: tuple[Settings, Lake], uri: str, frame: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = registry.load_model(uri, trained[0])
    assert not list(tmp_path.iterdir())
    assert len(model.predict(frame))


def test_evaluation_and_decision_are_published_with_their_numbers(trained: tuple[Settings, Lake]) -> None:
    settings, lake = trained
    facts = lake.require("trained", "evaluated").facts
    assert Path(facts["report"]).stat().st_size > 1_000_000
    assert {r["system"] for r in facts["ranking"]} == {
        "constant",
        "historical-median",
        "seasonal-naive",
        "dlinear",
        "stid",
    }
    assert facts["candidate"]["system"] in ("dlinear", "stid")
    row = registry.show(settings, "trained")
    assert row["decision"]["promote"] == facts["decision"]["promote"]
    assert ("champion" in row["aliases"]) == facts["decision"]["promote"]
    assert ("challenger" in row["aliases"]) == (not facts["decision"]["promote"])
    assert row["licence"] == "none needed"
    assert training.stale_systems(lake, "trained", ["stid", "constant"], "quick", False) == []
    assert training.stale_systems(lake, "trained", ["stid", "constant"], "full", False) == ["stid"]
    assert not decision.champion_is_stale(lake, "trained")


def test_lineage_names_tables_split_and_code(trained: tuple[Settings, Lake], uri: str) -> None:
    settings, lake = trained
    lineage = registry.load_model(uri, settings).lineage
    assert lineage["tables"]["enriched"]["data_version"] == lake.require("trained", "enriched").data_version
    assert lineage["split"]["test"][1] == str(lake.read(lake.require("trained", "harmonized"), "split")["end"][3])
    assert {"sources", "seed", "fingerprint", "packages", "stfm_pipeline"} <= set(lineage)


def test_pyfunc_in_a_fresh_process_in_another_folder_answers_bit_for_bit_the_same(
    trained: tuple[Settings, Lake], uri: str, frame: pl.DataFrame, tmp_path: Path
) -> None:
    settings, _ = trained
    text = frame.with_columns(pl.col("ds").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    text.write_parquet(tmp_path / "in.parquet")
    code = (
        "import mlflow, pandas as pd, sys\n"
        f"m = mlflow.pyfunc.load_model({uri!r})\n"
        "m.predict(pd.read_parquet('in.parquet')).to_parquet('out.parquet')\n"
        "import stfm_pipeline; print(stfm_pipeline.__file__)\n"
    )
    env = {
        "PATH": "/usr/bin:/bin",
        "MLFLOW_TRACKING_URI": settings.tracking_uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    there = pl.read_parquet(tmp_path / "out.parquet")
    here = registry.load_model(uri, settings).predict(text)
    assert there.equals(here)


def is_pickle(data: bytes) -> bool:
    """Whether the bytes are opcodes of a pickle of any protocol up to its STOP, a full stop, which alone is none."""
    with warnings.catch_warnings():
        # Random bytes read as opcodes may hold text with odd escapes.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            names = [op.name for op, _, _ in pickletools.genops(io.BytesIO(data))]
        except (ValueError, IndexError, OverflowError, struct.error):
            return False
    return len(names) > 1 and names[-1] == "STOP"


def test_nothing_in_the_home_is_a_pickle(trained: tuple[Settings, Lake]) -> None:
    assert is_pickle(b"\x80\x04K\x01."), "protocol 4"
    assert is_pickle(b"I1\n."), "protocol 0"
    files = [p for p in trained[0].root.rglob("*") if p.is_file()]
    assert len(files) > 100
    offenders = [p for p in files if is_pickle(p.read_bytes())]
    for path in filter(zipfile.is_zipfile, files):
        with zipfile.ZipFile(path) as pack:
            offenders += [path for n in pack.namelist() if n.endswith(".pkl") or is_pickle(pack.read(n))]
    assert offenders == []


def test_an_unknown_model_or_version_says_what_there_is(trained: tuple[Settings, Lake]) -> None:
    settings, _ = trained
    with pytest.raises(StfmError, match="no model at 'models:/nothing@champion'"):
        registry.load_model("models:/nothing@champion", settings)
    with pytest.raises(UsageError, match="no model is registered for 'nothing'"):
        registry.show(settings, "nothing")
    with pytest.raises(UsageError, match="no version 99"):
        registry.show(settings, "trained", 99)


@pytest.fixture
def copied(trained_home: Path, trained: tuple[Settings, Lake], home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A registry of its own with the trained models' first run in it, to be changed freely."""
    shutil.copytree(trained_home, home)
    monkeypatch.setenv("STFM_HOME", str(home))
    return Settings()


def register(settings: Settings, lake: Lake, system: str) -> int:
    seed = lake.require("trained", training.stage_of(system)).facts["seeds"][0]
    return registry.register(settings, "trained", seed["uri"], seed["run_id"], {"system": system})


def test_promotion_refusal_and_rollback_move_the_aliases(copied: Settings) -> None:
    lake = Lake(copied.lake_uri)
    first, second = register(copied, lake, "dlinear"), register(copied, lake, "constant")
    assert register(copied, lake, "dlinear") == first, "a run is registered once"
    registry.promote(copied, "trained", first)
    registry.apply_decision(copied, "trained", second, Decision(False, "not better"))
    versions = {v["version"]: v["aliases"] for v in registry.versions(copied, "trained")}
    assert versions[first] == ["champion"]
    assert versions[second] == ["challenger"]
    registry.promote(copied, "trained", second)
    assert {v["version"]: v["aliases"] for v in registry.versions(copied, "trained")}[second] == ["champion"]
    assert registry.rollback(copied, "trained")["version"] == first
    shown = registry.show(copied, "trained")
    assert (shown["version"], shown["decision"]["reason"]) == (first, f"rolled back from version {second}")


def test_a_rollback_that_was_cut_short_goes_back_by_one(copied: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(copied.lake_uri)
    numbers = [register(copied, lake, system) for system in ("dlinear", "constant", "stid")]
    for number in numbers:
        registry.promote(copied, "trained", number)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(MlflowClient, "set_registered_model_alias", dies)
        with pytest.raises(KeyboardInterrupt):
            registry.rollback(copied, "trained")
    assert registry.show(copied, "trained")["version"] == numbers[2]
    assert registry.rollback(copied, "trained")["version"] == numbers[1]
    assert registry.rollback(copied, "trained")["version"] == numbers[0]


def test_a_retrained_champion_meets_the_old_one_on_gate(copied: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = Lake(copied.lake_uri)
    for system in ("dlinear", "stid"):
        registry.promote(copied, "trained", register(copied, lake, system))
    other = dataclasses.replace(training.get_system("dlinear"), training=training.get_system("dlinear").training)
    stage = training.stage_of("stid")
    plan = training.training_plan(lake, "trained", other, "quick")
    old = lake.require("trained", stage)
    facts = {**old.facts, "seeds": lake.require("trained", training.stage_of("dlinear")).facts["seeds"]}
    lake.publish("trained", stage, {"curve": lake.read(old, "curve")}, fingerprint="x", facts=facts, inputs=plan.inputs)
    outcome = scoring.evaluate_dataset("trained", lake, copied)
    assert outcome.stage is not None
    rivals = [m["rival"] for m in outcome.stage.facts["decision"]["margins"]]
    assert any(r.startswith("champion (version") for r in rivals)
    assert json.dumps(outcome.stage.facts["decision"])


def test_each_home_has_a_store_of_its_own(tmp_path: Path) -> None:
    stores = []
    for name in ("one", "two"):
        settings = Settings(home=tmp_path / name)
        client = registry.connect(settings)
        client.create_experiment(name)
        stores.append([e.name for e in client.search_experiments() if e.name != "Default"])
    assert stores == [["one"], ["two"]]


def test_a_crown_that_moved_since_the_candidate_met_it_is_met_anew(copied: Settings) -> None:
    lake = Lake(copied.lake_uri)
    before = lake.require("trained", "evaluated")
    candidate = before.facts["candidate"]["system"]
    other = "dlinear" if candidate == "stid" else "stid"
    assert scoring.evaluate_dataset("trained", lake, copied).reused
    registry.promote(copied, "trained", register(copied, lake, candidate))
    assert scoring.evaluate_dataset("trained", lake, copied).reused, "the candidate has won it"
    registry.promote(copied, "trained", register(copied, lake, other))
    lake.publish(
        "trained",
        "champion",
        {"decision": pl.DataFrame({"x": [1]})},
        fingerprint="undecided",
        facts={},
        inputs={},
    )
    with pytest.raises(StfmError, match="the champion of 'trained' has changed since the candidate met it"):
        decision.crown("trained", lake, copied)
    again = scoring.evaluate_dataset("trained", lake, copied)
    assert not again.reused
    assert again.stage is not None
    assert again.stage.facts["met"] == next(
        s["run_id"] for s in lake.require("trained", training.stage_of(other)).facts["seeds"]
    )
    assert decision.crown("trained", lake, copied).stage is not None


def test_a_store_that_cannot_be_asked_is_not_a_store_without_a_champion(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry.champion_version(settings, "synthetic") is None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{probe.getsockname()[1]}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MlflowException, match="Connection"):
        registry.champion_version(settings, "synthetic")
