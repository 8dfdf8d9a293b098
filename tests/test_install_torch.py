"""A CPU machine gets a CPU build or a clear no."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def tool() -> ModuleType:
    path = Path(__file__).parents[1] / "tools" / "install_torch.py"
    spec = importlib.util.spec_from_file_location("install_torch", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def report(version: str, *needs: str) -> dict[str, object]:
    return {"install": [{"metadata": {"version": version, "requires_dist": list(needs)}}]}


LOCAL = report("2.13.0+cpu", "filelock")
CUDA = report("2.13.0", "filelock", 'nvidia-cublas==13.1; platform_system != "Nowhere"')
UNDERSCORED = report("2.13.0", "nvidia_cublas==13.1")
MAC = report("2.13.0", "filelock", 'nvidia-cublas==13.1; platform_system == "Nowhere"')


def test_the_build_is_told_by_what_it_asks_for(tool: ModuleType) -> None:
    assert tool.is_cpu_build(LOCAL)
    assert not tool.is_cpu_build(CUDA)
    assert not tool.is_cpu_build(UNDERSCORED)
    assert tool.is_cpu_build(MAC), "a marker that does not hold here asks for nothing"


def test_the_plan_never_takes_gpu_packages_without_a_driver(tool: ModuleType) -> None:
    assert tool.plan(True, None, None) == [[tool.WANTED]]
    assert tool.plan(False, LOCAL, None) == [["torch==2.13.0+cpu"]]
    index = "https://index.example/cpu"
    assert tool.plan(False, CUDA, index) == [["--no-deps", "--index-url", index, tool.WANTED], [tool.WANTED]]
    assert tool.plan(False, CUDA, None) == []
    assert tool.plan(False, None, "") == []


def test_where_torch_is_there_nothing_is_done(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main() == 0
    assert "is there" in capsys.readouterr().out


class Pip:
    """Stands in for pip: remembers the installs, answers the dry run with `candidate`."""

    def __init__(self, candidate: dict[str, object] | None) -> None:
        self.candidate = candidate
        self.installs: list[tuple[str, ...]] = []

    def __call__(self, *arguments: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
        if "--dry-run" in arguments:
            found = self.candidate is not None
            return subprocess.CompletedProcess(arguments, 0 if found else 1, json.dumps(self.candidate))
        self.installs.append(arguments)
        return subprocess.CompletedProcess(arguments, 0, "")


@pytest.fixture
def bare(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A Linux machine without a driver and with a torch out of range."""
    monkeypatch.setattr(tool, "version", lambda name: "2.12.1")
    monkeypatch.setattr(tool, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(tool, "distributions", list)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("TORCH_CPU_INDEX", raising=False)
    return tool


def test_a_torch_out_of_range_is_replaced(bare: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip(LOCAL)
    monkeypatch.setattr(bare, "pip", pip)
    assert bare.main() == 0
    assert pip.installs == [("install", "--quiet", "torch==2.13.0+cpu")]


@pytest.mark.parametrize("candidate", [CUDA, None])
def test_no_way_to_a_cpu_build_names_the_variable(
    bare: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    candidate: dict[str, object] | None,
) -> None:
    pip = Pip(candidate)
    monkeypatch.setattr(bare, "pip", pip)
    assert bare.main() == 1
    assert "TORCH_CPU_INDEX" in capsys.readouterr().err
    assert pip.installs == []


def test_on_macos_the_default_build_is_taken(bare: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip(None)
    monkeypatch.setattr(bare, "pip", pip)
    monkeypatch.setattr("sys.platform", "darwin")
    assert bare.main() == 0
    assert pip.installs == [("install", "--quiet", bare.WANTED)]


def test_gpu_packages_on_a_cpu_machine_fail_the_step(
    bare: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bare, "pip", Pip(LOCAL))
    monkeypatch.setattr(bare, "distributions", lambda: [SimpleNamespace(name="nvidia_cublas")])
    assert bare.main() == 1
    assert "nvidia_cublas" in capsys.readouterr().err
