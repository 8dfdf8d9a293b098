"""A CPU machine gets a CPU build or a clear no."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

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
MAC = report("2.13.0", "filelock", 'nvidia-cublas==13.1; platform_system == "Nowhere"')


def test_the_build_is_told_by_what_it_asks_for(tool: ModuleType) -> None:
    assert tool.is_cpu_build(LOCAL)
    assert not tool.is_cpu_build(CUDA)
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
