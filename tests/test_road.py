from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from fixtures.synthetic import MODULE, make_dataset, make_spec, tables

import stfm_pipeline
from stfm_pipeline import fingerprint, road
from stfm_pipeline.datasets.catalog import get_dataset
from stfm_pipeline.datasets.spec import Dataset, Embed, Facts, Split
from stfm_pipeline.errors import ContractError, StfmError, UsageError
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS

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


@pytest.mark.parametrize(
    ("package", "file", "old", "new", "stale"),
    [
        ("embed", "temporal.py", "365.25", "365.0", ["embedded", "enriched"]),
        ("embed", "temporal.py", '"""Civil time:', '"""Local time:', []),
        ("side_info", "partners.py", "total > 0", "total > 1", ["enriched"]),
        ("harmonize", "mask.py", "1.4826", "1.5", ["harmonized", "embedded", "enriched"]),
        ("harmonize", "scaler.py", "total < 2", "total < 9", ["harmonized", "embedded", "enriched"]),
    ],
)
def test_an_edited_constant_runs_its_stage_and_what_is_below_and_nothing_above(
    enriched: Lake,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    file: str,
    old: str,
    new: str,
    stale: list[str],
) -> None:
    copy = f"stfm_probe_{tmp_path.name}"
    monkeypatch.syspath_prepend(tmp_path)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / copy, ignore=ignored)
    text = (tmp_path / copy / package / file).read_text()
    assert old in text
    (tmp_path / copy / package / file).write_text(text.replace(old, new))
    (tmp_path / copy / package / "README.md").write_text("Words count for nothing.")
    known = fingerprint.code_version
    monkeypatch.setattr(
        road, "code_version", lambda *modules: known(*(m.replace("stfm_pipeline", copy) for m in modules))
    )
    assert road.stale_stages("synthetic", enriched) == stale


@pytest.mark.parametrize("name", ["harmonized", "embedded", "enriched"])
def test_a_stage_is_made_from_all_the_code_it_imports(name: str) -> None:
    """Otherwise an edit leaves a stage as it was although it would come out differently."""
    # What is fetched is pinned by its hash, however it is fetched.
    beside = {f"stfm_pipeline.{m}" for m in ("errors", "settings", "sources", "datasets.spec")}
    own = STEPS[name].modules
    todo = [m for m in own if (PACKAGE.parent / m.replace(".", "/")).is_dir()]
    seen: set[str] = set()
    while todo:
        module = todo.pop()
        path = PACKAGE.parent / module.replace(".", "/")
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        for node in (n for f in files for n in ast.walk(ast.parse(f.read_text()))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("stfm_pipeline"):
                continue
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [m for m in inner if (PACKAGE.parent / (m.replace(".", "/") + ".py")).is_file()]
            for found in modules or [str(node.module)]:
                if found not in seen | beside:
                    seen.add(found)
                    todo.append(found)
    assert "stfm_pipeline.tables" in seen
    assert [m for m in sorted(seen) if not any(m == o or m.startswith(o + ".") for o in own)] == []


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


def test_a_stage_before_its_input_says_which_one_is_missing(synthetic: Dataset, lake: Lake, settings: Settings) -> None:
    assert road.stale_stages("synthetic", lake) == ["raw", "harmonized", "embedded", "enriched"]
    assert road.stale_stages("synthetic", lake, until="harmonized") == ["raw", "harmonized"]
    with pytest.raises(StfmError, match="stfm run synthetic --until raw"):
        road.materialize("synthetic", "harmonized", lake, settings)


def test_force_computes_an_unchanged_stage_again_and_gets_the_same_data(enriched: Lake, settings: Settings) -> None:
    before = enriched.require("synthetic", "harmonized")
    again = road.materialize("synthetic", "harmonized", enriched, settings, force=True)
    assert not again.reused
    assert again.stage is not None
    assert (again.stage.version, again.stage.data_version) == (2, before.data_version)
    assert road.stale_stages("synthetic", enriched) == []


@pytest.mark.parametrize("frozen", [True, False], ids=["shares", "published counts"])
def test_new_data_lengthens_the_test_part_of_shares_and_no_part_of_published_counts(
    lake: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset], frozen: bool
) -> None:
    split = Split() if frozen else Split(ratios=None, counts=(900, 200, 0, 300))
    found = []
    for days in (60, 70):
        add_dataset(make_dataset(days=days, split=split))
        road.materialize("synthetic", "raw", lake, settings, force=True)
        assert road.stale_stages("synthetic", lake) == ["harmonized", "embedded", "enriched"]
        outcome = road.materialize("synthetic", "harmonized", lake, settings)
        assert outcome.stage is not None, outcome.checks
        found.append(outcome.stage.facts)
        for stage in ("embedded", "enriched"):
            road.materialize("synthetic", stage, lake, settings)
    before, after = (f["parts"] for f in found)
    assert [f["steps"] for f in found] == [1440, 1680]
    if frozen:
        assert before == {"train": [0, 864], "val": [864, 1008], "gate": [1008, 1152], "test": [1152, 1440]}
        assert after == before | {"test": [1152, 1680]}
    else:
        assert before == after == {"train": [0, 900], "val": [900, 1100], "gate": [900, 1100], "test": [1100, 1400]}


def test_a_new_split_rule_draws_new_boundaries(
    enriched: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset]
) -> None:
    add_dataset(make_dataset(split=Split(ratios=(0.5, 0.1, 0.1, 0.3))))
    outcome = road.materialize("synthetic", "harmonized", enriched, settings)
    assert outcome.stage is not None
    assert outcome.stage.facts["parts"]["train"] == [0, 720]


def test_a_raw_table_that_breaks_its_contract_is_not_published(
    lake: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset]
) -> None:
    raw = tables()
    naive = raw["observations"].with_columns(pl.col("time").dt.replace_time_zone(None))
    for broken, problem in (
        (raw | {"observations": naive}, "no time zone"),
        ({k: v for k, v in raw.items() if k != "weather"}, "no such tables"),
        (raw | {"entities": raw["entities"].with_columns(zone=pl.lit("Mars/Olympus"))}, "unknown time zones"),
    ):
        add_dataset(Dataset(spec=make_spec(), read=lambda files, broken=broken: broken, module=MODULE))
        outcome = road.materialize("synthetic", "raw", lake, settings)
        (check,) = [c for c in outcome.checks if not c.passed]
        assert problem in check.details["broken"]
        assert outcome.stage is None
        assert lake.stage("synthetic", "raw") is None


def test_checking_a_home_without_changes_publishes_nothing(enriched: Lake, settings: Settings) -> None:
    before = {s.name: s.version for s in enriched.stages("synthetic")}
    road.check_dataset("synthetic", enriched, settings)
    assert {s.name: s.version for s in enriched.stages("synthetic")} == before


def test_raw_tables_that_break_their_contract_fail_the_check_and_publish_nothing(
    lake: Lake, settings: Settings, add_dataset: Callable[[Dataset], Dataset]
) -> None:
    naive = tables()["observations"].with_columns(pl.col("time").dt.replace_time_zone(None))
    add_dataset(Dataset(spec=make_spec(), read=lambda files: tables() | {"observations": naive}, module=MODULE))
    outcome = road.materialize("synthetic", "raw", lake, settings)
    assert outcome.stage is None
    (check,) = outcome.checks
    assert not check.passed
    assert "times carry no time zone" in check.details["broken"]
    assert list(lake.stages("synthetic")) == []
