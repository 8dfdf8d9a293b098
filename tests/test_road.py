from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.synthetic import MODULE, make_dataset, make_spec

import stfm_pipeline
from stfm_pipeline import fingerprint, road
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.datasets.spec import Dataset, Embed, Facts
from stfm_pipeline.errors import ContractError, UsageError
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings

PACKAGE = Path(stfm_pipeline.__file__).parent


def test_an_unchanged_stage_is_not_run_again(enriched: Lake, settings: Settings) -> None:
    assert road.stale_stages("synthetic", enriched) == []
    again = road.materialize("synthetic", "embedded", enriched, settings)
    assert again.reused
    assert again.stage is not None
    assert again.stage.version == 1


def test_a_changed_spec_runs_its_stage_and_what_is_below(
    enriched: Lake, add_dataset: Callable[[Dataset], Dataset]
) -> None:
    add_dataset(make_dataset(embed=Embed(eigenvectors=2, patch_size=2)))
    assert road.stale_stages("synthetic", enriched) == ["embedded", "enriched"]
    add_dataset(make_dataset(facts=Facts()))
    assert road.stale_stages("synthetic", enriched) == ["harmonized", "embedded", "enriched"]


def test_changed_code_runs_its_stage_and_what_is_below(enriched: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    known = fingerprint.code_version

    def edited(*modules: str) -> str:
        return known(*modules) + ("-edited" if "stfm_pipeline.embed" in modules else "")

    monkeypatch.setattr(road, "code_version", edited)
    assert road.stale_stages("synthetic", enriched) == ["embedded", "enriched"]


def test_code_version_sees_constants_and_not_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    versions = {}
    for name, text in {
        "plain": "X = 1\ndef f():\n    return X\n",
        "commented": '"""Now with words."""\n# why\nX = 1\n\n\ndef f():\n    """Say it."""\n    return  X\n',
        "changed": "X = 2\ndef f():\n    return X\n",
    }.items():
        (tmp_path / f"stfm_probe_{name}.py").write_text(text)
        versions[name] = fingerprint.code_version(f"stfm_probe_{name}")
    assert versions["plain"] == versions["commented"] != versions["changed"]


def test_a_failed_check_publishes_nothing(
    lake: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset]
) -> None:
    add_dataset(make_dataset(facts=Facts(steps=1)))
    road.materialize("synthetic", "raw", lake, settings)
    outcome = road.materialize("synthetic", "harmonized", lake, settings)
    assert outcome.stage is None
    assert [c.name for c in outcome.checks if not c.passed] == ["facts_match"]
    assert lake.stage("synthetic", "harmonized") is None


def test_a_reader_that_breaks_leaves_nothing(
    lake: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset]
) -> None:
    def read(files: dict[str, Path]) -> dict[str, object]:
        raise ContractError("the file is not what it was")

    add_dataset(Dataset(spec=make_spec(), read=read, module=MODULE))
    with pytest.raises(ContractError, match="not what it was"):
        road.materialize("synthetic", "raw", lake, settings)
    assert list(lake.stages("synthetic")) == []


@pytest.mark.parametrize("name", ["../evil", "a;drop table x", "x" * 64, "", "UPPER", "a/b", "-a", "a\n"])
def test_unsafe_names_are_refused_before_they_become_paths(name: str) -> None:
    with pytest.raises(UsageError, match="not a valid dataset name"):
        get_dataset(name)


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="did you mean 'nyc-airports'"):
        get_dataset("nyc-airport")


def test_checking_computes_everything_anew_and_finds_it_the_same(enriched: Lake, settings: Settings) -> None:
    rows = road.check_dataset("synthetic", enriched, settings)
    assert all(r["passed"] for r in rows), rows
    assert sum(r["check"] == "same_again" for r in rows) == 4


def test_the_library_never_imports_dagster_and_imports_point_down_the_road() -> None:
    order = ["tables", "datasets", "harmonize", "embed", "side_info", "windows", "tasks", "backbones", "systems"]
    for file in PACKAGE.rglob("*.py"):
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in ("dagster", "assets", "resources"), file
                parts = name.split(".")
                if parts[0] == "stfm_pipeline" and len(parts) > 1 and room in order and parts[1] in order:
                    assert order.index(parts[1]) <= order.index(room), f"{file} imports {name}"


def test_the_command_line_starts_without_heavy_libraries() -> None:
    import subprocess

    code = (
        "import stfm_pipeline.cli, sys; print([m for m in ('torch','mlflow','polars','lightning') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
