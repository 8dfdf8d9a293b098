from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stfm_pipeline.alone import alone

HOLDER = """
import sys, time
from pathlib import Path
from stfm_pipeline.alone import alone
with alone(Path(sys.argv[1]), "holding"):
    print("in", flush=True)
    time.sleep(60)
"""


def test_threads_go_one_after_the_other_and_the_second_says_that_it_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="stfm")
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with alone(tmp_path / "locks" / "a", "counting"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.05)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert "waiting: another process is counting" in caplog.text


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout as out:
        assert out.readline() == "in\n"
    free = threading.Event()

    def wait() -> None:
        with alone(path, "holding"):
            free.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert not free.wait(0.3)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert free.wait(5)
    waiting.join()


def test_an_error_inside_lets_the_next_one_in(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), alone(tmp_path / "a", "failing"):
        raise ValueError("inside")
    with alone(tmp_path / "a", "working"):
        pass
