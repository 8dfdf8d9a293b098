"""The table of faults itself: its harm is real, its reader sees what is wrong, and a row with harm is not good."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from bench.faults import Row, table
from bench.hurt import GENERATION, NAME, WRITES, content
from stfm_pipeline.lake import Lake

ROOT = Path(__file__).parents[2]
WRITER = """
import sys, threading
from bench.hurt import refuse_writes
file = open(sys.argv[1], "wb", buffering=0)
file.write(b"x" * 100)
refuse_writes()
def write(count):
    try:
        print(count, file.write(b"x" * count))
    except OSError as error:
        print(count, error.strerror)
write(8)
write(16)
thread = threading.Thread(target=write, args=(4096,))
thread.start()
thread.join()
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() not in WRITES, reason="no filter for system calls")
def test_the_kernel_refuses_writes_of_all_threads(tmp_path: Path) -> None:
    done = python("-c", WRITER, str(tmp_path / "file"))
    assert done.stdout.splitlines() == ["8 8", "16 Input/output error", "4096 Input/output error"], done.stderr
    assert (tmp_path / "file").stat().st_size == 108


def test_the_reader_tells_what_was_published_from_what_was_not(home: Path, lake: Lake, tmp_path: Path) -> None:
    frame = pl.DataFrame({"x": [1, 2]})
    stage = lake.publish(NAME, "raw", {"observations": frame}, fingerprint="a", facts={}, inputs={})
    (home / GENERATION).write_text("1")
    for known, wrong in ((content(lake, stage), False), ("another", True)):
        (tmp_path / "known.json").write_text(json.dumps({"raw": [known]}))
        reader = subprocess.Popen(
            [sys.executable, "-m", "bench.hurt", "read", str(tmp_path / "known.json")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        out, _ = reader.communicate("")
        found = json.loads(out)
        assert found["reads"] > 0
        assert bool(found["wrong"]) is wrong, found


def test_a_row_with_any_harm_is_not_good() -> None:
    assert Row("none", runs=2, completed=2).good
    harmed = [Row("a", 2, completed=1), Row("b", 1, 1, completed=1), Row("c", 1, wrong=1, completed=1)]
    harmed += [Row("d", 1, stale=1, completed=1), Row("e", 1, completed=1, other=1)]
    assert not any(row.good for row in harmed)
    text = table([Row("SIGKILL", 3, 0, 1, 0, 3, 70, notes=["raw: not a version that was published"])])
    assert "1 of 70" in text
    assert "3 of 3" in text
    assert "raw: not a version" in text


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_quick_table_is_all_zeros() -> None:
    done = python("-m", "bench", "faults", "--quick")
    assert done.returncode == 0, done.stdout
    assert "MISS" not in done.stdout
