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
# The clock of `perf_counter` is the whole machine's on Linux and macOS.
BEGAN = "STFM_BENCH_BEGAN"


def measured(module: str, *arguments: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """What `python -m <module> <arguments>` says through `finish`, with `seconds`, `cpu` and `peak_mb`.

    Linux counts a parent's memory as its child's until the child begins to run, so whoever calls this stays small:
    sources are written in a process of their own too.
    """
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, BEGAN: str(began), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def finish(**facts: Any) -> None:
    """The child's last line: seconds since its parent started it, CPU seconds, peak memory, and what else it found."""
    seconds = time.perf_counter() - float(os.environ[BEGAN])
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak = used.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "cpu": used.ru_utime + used.ru_stime, **facts}))


def cost(found: dict[str, Any]) -> str:
    """Wall seconds, CPU seconds (user and system, all threads) and peak memory in words."""
    return f"{found['seconds']:.1f} s ({found['cpu']:.1f} s CPU), {found['peak_mb']:.0f} MB"


def line(what: str, value: str, target: str, met: bool, judged: bool = True) -> None:
    """One line of the report; what is measured at another size than the target's is not judged."""
    verdict = ("ok  " if met else "MISS") if judged else "    "
    print(f"{verdict} {what}: {value} (target{'' if judged else ' at full size'} {target})", flush=True)
