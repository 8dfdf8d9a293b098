"""The code location: it loads light, its graph is the road, and a run publishes or raises."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest
from fixtures.synthetic import make_dataset

from definitions import defs
from stfm_pipeline.datasets.catalog import all_datasets
from stfm_pipeline.datasets.catalog import folder as own_folder
from stfm_pipeline.datasets.spec import Dataset, Facts
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.systems.catalog import module_names

ROOT = Path(__file__).parents[2]
DATA = ["raw", "harmonized", "embedded", "enriched"]
SYSTEMS = sorted(module_names())
MINE = """\
kind: graph
zone: UTC
tables: {observations: {format: nixtla, file: mine.csv}}
channels: [{name: y, unit: pieces}]
harmonize: {step: 1h}
task: {look_back: 24, horizon: 6}
"""


def test_the_location_loads_without_heavy_libraries_or_warnings() -> None:
    code = (
        "import warnings; warnings.simplefilter('error')\n"
        "import sys; from definitions import defs; import dagster as dg\n"
        "dg.Definitions.validate_loadable(defs)\n"
        "print([m for m in ('torch', 'mlflow', 'lightning', 'torch_geometric', 'plotly') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "[]"


def test_a_users_broken_system_files_do_not_keep_the_location_from_loading(settings: Settings) -> None:
    there = settings.root / "systems"
    (there / "heap.py").mkdir(parents=True)
    (there / "syntax.py").write_text("def (:\n")
    (there / "coded.py").write_bytes("x = 'é'\n".encode("latin-1"))
    (there / "raw.py").write_text("x = 1\n")
    (there / "gone.py").symlink_to(there / "nowhere.py")
    code = (
        "from definitions import defs; import dagster as dg; dg.Definitions.validate_loadable(defs)\n"
        "print(sorted(k.to_user_string() for k in defs.resolve_asset_graph().get_all_asset_keys()))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    keys = sorted([*DATA, *SYSTEMS, "coded", "syntax", "evaluated", "champion", "drift", "forecasts", "landed"])
    assert out.stdout.strip() == str(keys)


def test_the_asset_graph_is_the_road() -> None:
    graph = defs.resolve_asset_graph()
    found = {
        node.key.to_user_string(): (node.group_name, sorted(p.to_user_string() for p in node.parent_keys))
        for node in (graph.get(k) for k in graph.get_all_asset_keys())
    }
    expected = {
        "landed": ("raw_data", []),
        "raw": ("raw_data", ["landed"]),
        "harmonized": ("preprocessing", ["raw"]),
        "embedded": ("embedding", ["harmonized"]),
        "enriched": ("side_info_integration", ["embedded", "harmonized", "raw"]),
        **{s: ("training_objectives", ["enriched"]) for s in SYSTEMS},
        "evaluated": ("downstream_tasks", SYSTEMS),
        "champion": ("downstream_tasks", ["evaluated"]),
        "drift": ("downstream_tasks", ["champion", "enriched"]),
        "forecasts": ("downstream_tasks", ["champion", "enriched"]),
    }
    assert found == expected
    checks = {k.asset_key.to_user_string() for k in graph.asset_check_keys}
    assert checks == {*DATA, *SYSTEMS, "evaluated", "drift", "forecasts"}
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description
        assert node.description.endswith(".")
        assert node.partitions_def == dg.DynamicPartitionsDefinition(name="dataset")
        assert "dagster/code_references" in node.metadata or key == dg.AssetKey("landed")


def test_jobs_schedules_and_sensors() -> None:
    assert defs.resolve_job_def("road").partitions_def == dg.DynamicPartitionsDefinition(name="dataset")
    schedule = defs.resolve_schedule_def("weekly_retraining")
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    assert schedule.cron_schedule == "0 3 * * 1"


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as found:
        found.add_dynamic_partitions("dataset", ["synthetic"])
        yield found


def run(instance: dg.DagsterInstance, assets: list[str]) -> dg.ExecuteInProcessResult:
    return defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        partition_key="synthetic",
        asset_selection=[dg.AssetKey(a) for a in assets],
        run_config={"loggers": {"console": {}}},
        raise_on_error=False,
    )


def test_a_run_publishes_with_metadata_checks_and_a_picture(
    instance: dg.DagsterInstance, synthetic: Dataset, lake: Lake
) -> None:
    result = run(instance, DATA)
    assert result.success
    for name in DATA:
        event = instance.get_latest_materialization_event(dg.AssetKey(name))
        assert event is not None
        assert event.asset_materialization is not None
        metadata = event.asset_materialization.metadata
        assert {"dagster/row_count", "dagster/column_schema", "facts", "seconds", "fingerprint", "licence"} <= set(
            metadata
        )
        assert str(metadata["picture"].value).startswith("![")
        assert lake.stage("synthetic", name) is not None
    evaluations = result.get_asset_check_evaluations()
    assert len(evaluations) == 21
    assert all(e.passed for e in evaluations)
    again = run(instance, DATA)
    assert again.success
    assert [s.version for s in lake.stages("synthetic")] == [1, 1, 1, 1], "unchanged stages are reused"


def test_a_failed_check_leaves_no_materialisation_and_nothing_below_runs(
    instance: dg.DagsterInstance, add_dataset: Callable[[Dataset], Dataset], lake: Lake
) -> None:
    add_dataset(make_dataset(facts=Facts(steps=3)))
    result = run(instance, DATA)
    assert not result.success
    failed = [e for e in result.get_asset_check_evaluations() if not e.passed]
    assert [e.check_name for e in failed] == ["facts_match"]
    assert instance.get_latest_materialization_event(dg.AssetKey("harmonized")) is None
    assert instance.get_latest_materialization_event(dg.AssetKey("raw")) is not None
    assert [s.name for s in lake.stages("synthetic")] == ["raw"]


def test_the_whole_road_to_a_decision(
    instance: dg.DagsterInstance, synthetic: Dataset, lake: Lake, settings: Settings
) -> None:
    result = run(instance, [*DATA, "constant", "historical_median", "dlinear", "evaluated", "champion", "forecasts"])
    assert result.success
    assert len(lake.read(lake.require("synthetic", "forecasts"), "forecasts")) == 6 * 12
    decided = lake.require("synthetic", "champion").facts
    assert decided["system"] == "dlinear"
    event = instance.get_latest_materialization_event(dg.AssetKey("evaluated"))
    assert event is not None
    assert event.asset_materialization is not None
    assert Path(str(event.asset_materialization.metadata["report_path"].value)).is_file()


def test_the_sensor_keeps_partitions_in_step_and_the_schedule_asks_for_what_has_a_champion(
    instance: dg.DagsterInstance,
) -> None:
    sensor = defs.resolve_sensor_def("datasets_in_step")
    data = sensor.evaluate_tick(dg.build_sensor_context(instance=instance))
    assert [sorted(r.partition_keys) for r in data.dynamic_partitions_requests or []] == [sorted(all_datasets())]
    instance.add_dynamic_partitions("dataset", sorted(all_datasets()))
    folder = own_folder()
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(MINE)
    (folder / "broken.yaml").write_text(MINE.replace("graph", "graf"))
    seen = sensor.evaluate_tick(dg.build_sensor_context(instance=instance))
    assert [r.partition_keys for r in seen.dynamic_partitions_requests or []] == [["mine"]]
    instance.add_dynamic_partitions("dataset", ["mine"])
    idle = sensor.evaluate_tick(dg.build_sensor_context(instance=instance))
    assert "broken.yaml has a problem" in str(idle.skip_message)
    schedule = defs.resolve_schedule_def("weekly_retraining")
    context = dg.build_schedule_context(instance=instance)
    assert list(schedule.evaluate_tick(context).run_requests or []) == []


def test_two_first_runs_at_once_on_a_new_home_both_end_well(home: Path) -> None:
    (home / "datasets").mkdir(parents=True)
    (home / "datasets" / "mine.yaml").write_text(MINE)
    rows = [f"a,2024-01-{1 + h // 24:02d}T{h % 24:02d}:00:00Z,{h % 24}" for h in range(480)]
    (home / "datasets" / "mine.csv").write_text("unique_id,ds,y\n" + "\n".join(rows) + "\n")
    command = [sys.executable, "-m", "stfm_pipeline", "run", "mine", "--until", "harmonized"]
    both = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [(process.communicate(timeout=300)[1], process.returncode) for process in both]
    assert [code for _, code in ends] == [0, 0], "\n".join(error for error, _ in ends)
    assert len(Lake(Settings().lake_uri).history("mine", "harmonized")) == 1
    assert not list(home.glob(".dagster.part"))


def test_every_contract_of_a_stage_is_a_check_of_its_asset(enriched: Lake, settings: Settings) -> None:
    from assets.data import CHECKS
    from stfm_pipeline.road import check_dataset

    found: dict[str, set[str]] = {}
    for row in check_dataset("synthetic", enriched, settings):
        found.setdefault(row["stage"], set()).add(row["check"])
    assert {s: names - {"same_again"} for s, names in found.items()} == {s: set(names) for s, names in CHECKS.items()}


def test_every_table_of_a_stage_is_declared_fitted_or_has_times(enriched: Lake) -> None:
    """Otherwise the leak audit does not know what to hold it to: see `Step.fitted`."""
    from stfm_pipeline.steps import STEPS

    for stage in enriched.stages("synthetic"):
        for table in set(stage.tables) - set(STEPS[stage.name].fitted):
            assert "time" in enriched.read_rows(stage, table, 0, 0).columns, f"{stage.name}.{table}"
