"""A measurement in a process of its own, so that imports count and peak memory is its alone."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def measured(module: str, *arguments: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """What `python -m <module> <arguments>` says through `finish`, with `seconds`, `cpu` and `peak_mb`.

    Linux counts a parent's memory as its child's until the child begins to run, so whoever calls this stays small:
    sources are written in a process of their own too.
    """
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "seconds": seconds}


def finish(**facts: Any) -> None:
    """The child's last line."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = used.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    print(json.dumps({"peak_mb": peak, "cpu": used.ru_utime + used.ru_stime, **facts}))


def cost(found: dict[str, Any]) -> str:
    """Wall seconds, CPU seconds (user and system, all threads) and peak memory in words."""
    return f"{found['seconds']:.1f} s ({found['cpu']:.1f} s CPU), {found['peak_mb']:.0f} MB"


def line(what: str, value: str, target: str, met: bool) -> None:
    """One line of the report."""
    print(f"{'ok  ' if met else 'MISS'} {what}: {value} (target {target})", flush=True)
