"""A run ended in the middle: nothing half-published, nothing left running, the next goes on from the last epoch."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures.live import begin

from stfm_pipeline import training
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings

CHILD = """
import sys, time
sys.path[:0] = {path!r}
from fixtures.synthetic import make_dataset
from stfm_pipeline import train, training
from stfm_pipeline.datasets.catalog import register
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
register(make_dataset())
seen = train.Curve.on_train_epoch_end
def slow(self, *args):
    seen(self, *args)
    print("epoch", len(self.rows), flush=True)
    time.sleep(0.5)
train.Curve.on_train_epoch_end = slow
settings = Settings()
training.train_system("synthetic", "dlinear", Lake(settings.lake_uri), settings, progress=False)
"""


def test_a_killed_training_goes_on_where_it_was(enriched: Lake, settings: Settings, home: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(path=sys.path)],
        env={**os.environ, "STFM_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    with child.stdout as lines:
        for line in lines:
            if line.startswith("epoch 3"):
                time.sleep(0.2)
                child.send_signal(signal.SIGKILL)
                break
    assert child.wait() == -signal.SIGKILL
    assert enriched.stage("synthetic", "trained_dlinear") is None
    left = list((home / "work").glob("synthetic/trained_dlinear/*/last.ckpt"))
    assert len(left) == 1
    outcome = training.train_system("synthetic", "dlinear", enriched, settings, progress=False)
    assert outcome.stage is not None
    curve = enriched.read(outcome.stage, "curve")
    assert curve["epoch"].to_list() == [float(i) for i in range(len(curve))]
    assert len(curve) == 6
    assert not list((home / "work").iterdir()), "checkpoints of a published training are gone"


@pytest.mark.skipif(shutil.which("pgrep") is None, reason="nothing here names a process's children")
def test_whoever_ends_a_run_ends_what_it_started(home: Path) -> None:
    begin()
    run = subprocess.Popen(
        [sys.executable, "-m", "stfm_pipeline", "run", "live", "--system", "dlinear"],
        env={**os.environ, "STFM_HOME": str(home)},
        stderr=subprocess.DEVNULL,
    )
    deadline, children = time.monotonic() + 90, ""
    while not children.strip() and time.monotonic() < deadline:
        time.sleep(0.1)
        asked = ["pgrep", "-P", str(run.pid), "-f", "assets live"]
        children = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    time.sleep(1)
    run.terminate()
    assert run.wait(timeout=60) == 128 + signal.SIGTERM
    for child in map(int, children.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    assert children.strip()
