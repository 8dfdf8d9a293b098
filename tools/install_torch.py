"""Install torch in a step of its own: the default build with an NVIDIA driver, otherwise a CPU build and nothing else.

Standard library and pip only; run it with the virtual environment's Python.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

WANTED = "torch>=2.13,<2.14"
GPU_PREFIXES = ("nvidia-", "cuda-", "triton")


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def installed() -> str | None:
    """The version of torch that is there, if it is in the wanted range."""
    from pip._vendor.packaging.requirements import Requirement

    try:
        found = version("torch")
    except PackageNotFoundError:
        return None
    return found if Requirement(WANTED).specifier.contains(found) else None


def is_cpu_build(report: dict[str, Any]) -> bool:
    """Whether pip's report (`--dry-run --report`) names a torch that asks for no GPU package on this platform."""
    from pip._vendor.packaging.requirements import Requirement

    metadata = report["install"][0]["metadata"]
    if metadata["version"].endswith("+cpu"):
        return True
    needs = [Requirement(r) for r in metadata.get("requires_dist", [])]
    active = [r.name for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]
    return not any(normal(name).startswith(GPU_PREFIXES) for name in active)


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver answers."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    tool = shutil.which("nvidia-smi")
    try:
        return tool is not None and subprocess.run([tool], capture_output=True, check=False, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def plan(default: bool, report: dict[str, Any] | None, cpu_index: str | None) -> list[list[str]]:
    """Arguments of the pip installs to run, in order; empty if there is no way to a CPU build.

    `default` takes the default build: with an NVIDIA driver, and on macOS, where it is a CPU build.
    """
    if default:
        return [[WANTED]]
    if report is not None and is_cpu_build(report):
        return [[f"torch=={report['install'][0]['metadata']['version']}"]]
    if cpu_index:
        return [["--no-deps", "--index-url", cpu_index, WANTED], [WANTED]]
    return []


def pip(*arguments: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=capture, text=True, check=False)


def configured_candidate() -> dict[str, Any] | None:
    """pip's report about the torch it would take from the configured index, without installing it."""
    done = pip(
        "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", "--report", "-", WANTED, capture=True
    )
    return json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else None


def main(arguments: Sequence[str] = ()) -> int:
    if (found := installed()) is not None:
        print(f"torch {found} is there")
        return 0
    nvidia = has_nvidia_driver()
    default = nvidia or sys.platform == "darwin"
    steps = plan(default, None if default else configured_candidate(), os.environ.get("TORCH_CPU_INDEX"))
    if not steps:
        print(
            "The configured package index offers no CPU build of torch, and this machine has no NVIDIA driver.\n"
            "  fix: set TORCH_CPU_INDEX to an index that has one (the README says which), then run make again",
            file=sys.stderr,
        )
        return 1
    for step in steps:
        if pip("install", "--quiet", *step).returncode:
            return 1
    unwanted = sorted(d.name for d in distributions() if d.name and normal(d.name).startswith("nvidia-"))
    if unwanted and not nvidia:
        print(f"a CPU machine got GPU packages: {', '.join(unwanted)}", file=sys.stderr)
        return 1
    print("torch installed: " + ("default build" if nvidia else "CPU build"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
