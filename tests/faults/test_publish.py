"""Killed where something becomes visible, and two at once: nothing is half-seen, and the next run ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stfm_pipeline import registry, train, training
from stfm_pipeline.digest import data_version
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings

SCRIPT = Path(__file__).with_name("road.py")
LAST = ("raw", "harmonized", "embedded", "enriched", "trained_last_value", "trained_dlinear", "evaluated", "champion")


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, "STFM_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def whole(lake: Lake) -> list[str]:
    """Stages that can be seen, each read in full and found to be what was published."""
    seen = []
    for name in LAST:
        if (stage := lake.stage("synthetic", name)) is not None:
            tables = {t: lake.read(stage, t) for t in stage.tables}
            assert data_version(tables, stage.facts) == stage.data_version, name
            seen.append(name)
    assert tuple(seen) == LAST[: len(seen)], "stages come down the road in order"
    return seen


def finished(lake: Lake, settings: Settings) -> dict[str, str]:
    """After a run that ended: everything is there once, the alias and the last decision agree, nothing lies about."""
    assert whole(lake) == list(LAST)
    rows = registry.versions(settings, "synthetic")
    assert len(rows) == 1
    decided = lake.require("synthetic", "champion").facts
    assert rows[0]["version"] == decided["version"]
    assert rows[0]["decision"]["promote"] == decided["promoted"]
    assert rows[0]["aliases"] == [registry.CHAMPION if decided["promoted"] else registry.CHALLENGER]
    assert list((settings.root / "work").iterdir()) == []
    return {n: lake.require("synthetic", n).data_version for n in ("raw", "harmonized", "embedded", "enriched")}


@pytest.fixture
def undisturbed(enriched_home: Path) -> dict[str, str]:
    lake = Lake(str(enriched_home / "lake"))
    return {n: lake.require("synthetic", n).data_version for n in ("raw", "harmonized", "embedded", "enriched")}


def test_killed_again_and_again_the_road_is_never_half_seen_and_comes_to_its_end(
    home: Path, lake: Lake, settings: Settings, undisturbed: dict[str, str]
) -> None:
    seen = 0
    for point, times in (("table", 9), ("stage", 1), ("artifact", 2), ("register", 1), ("alias", 1)):
        code, out, error = end(start(home, point, str(times)))
        assert code == -signal.SIGKILL, error
        assert out.split()[-1] == point
        assert len(whole(lake)) >= seen
        seen = len(whole(lake))
    code, _, error = end(start(home))
    assert code == 0, error
    assert finished(lake, settings) == undisturbed
    again = end(start(home, "any", "1"))
    assert again[:2] == (0, ""), "nothing is left to do"


def test_two_at_once_on_a_new_home_do_the_work_once(
    home: Path, lake: Lake, settings: Settings, undisturbed: dict[str, str]
) -> None:
    both = [start(home, "none", "1") for _ in range(2)]
    ends = [end(process) for process in both]
    assert [code for code, _, _ in ends] == [0, 0], "\n".join(error for _, _, error in ends)
    assert finished(lake, settings) == undisturbed
    assert all(len(lake.history("synthetic", name)) == 1 for name in LAST)
    reached = "".join(out for _, out, _ in ends).split()
    assert (reached.count("stage"), reached.count("artifact"), reached.count("register")) == (len(LAST), 2, 1)
    assert any("waiting: another process is" in error for _, _, error in ends)


def test_writes_that_fail_at_any_byte_leave_what_was_there_and_the_next_run_ends_it(
    home: Path, lake: Lake, settings: Settings, undisturbed: dict[str, str]
) -> None:
    seen = 0
    for most in (500, 30_000, 200_000, 700_000):
        code, _, error = end(start(home, "bytes", str(most)))
        assert code == 1, error
        assert "File too large" in error or "disk" in error, error
        assert len(whole(lake)) >= seen
        seen = len(whole(lake))
    assert seen
    code, _, error = end(start(home))
    assert code == 0, error
    assert finished(lake, settings) == undisturbed


def test_a_model_that_mlflow_could_not_take_is_not_trained_again(
    enriched: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> str:
        raise ConnectionError("MLflow is gone")

    epochs = []
    as_ever = train.Curve.on_train_epoch_end

    def counted(self: train.Curve, *arguments: Any) -> None:
        epochs.append(1)
        as_ever(self, *arguments)

    monkeypatch.setattr(train.Curve, "on_train_epoch_end", counted)
    with monkeypatch.context() as down:
        down.setattr(registry, "log_forecaster", gone)
        with pytest.raises(ConnectionError):
            training.train_system("synthetic", "dlinear", enriched, settings, progress=False)
    assert enriched.stage("synthetic", "trained_dlinear") is None
    trained = len(epochs)
    assert training.train_system("synthetic", "dlinear", enriched, settings, progress=False).stage is not None
    assert len(epochs) == trained > 0


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_killed_at_any_point_the_next_run_completes(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    code, out, error = end(start(tmp_path / "whole", "none", "1"))
    assert code == 0, error
    for at, point in enumerate(out.split(), start=1):
        settings = Settings(home=tmp_path / str(at))
        lake = Lake(settings.lake_uri)
        code, _, error = end(start(settings.root, "any", str(at)))
        assert code == -signal.SIGKILL, error
        whole(lake)
        code, _, error = end(start(settings.root))
        assert code == 0, f"after a kill at {at} ({point}):\n{error}"
        assert finished(lake, settings) == undisturbed, (at, point)
