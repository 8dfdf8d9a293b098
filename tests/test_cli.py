"""The command line: exit codes, one JSON object on standard output, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from fixtures.synthetic import make_dataset
from typer.testing import CliRunner

from stfm_pipeline import launch, road
from stfm_pipeline.cli import app
from stfm_pipeline.datasets import catalog
from stfm_pipeline.datasets.spec import Dataset, RawTables
from stfm_pipeline.errors import StfmError
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.sources import LocalSource

ROOT = Path(__file__).parents[1]


def stfm(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stfm_pipeline", *arguments]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False)


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no-such-set"], "no dataset is called 'no-such-set'"),
        (["run", "../evil"], "not a valid dataset name"),
        (["run", "a; drop table x"], "not a valid dataset name"),
        (["run", "--until", "nowhere"], "no stage is called 'nowhere'"),
        (["run", "--budget", "huge"], "no budget is called 'huge'"),
        (["systems", "show", "magic"], "no system is called 'magic'"),
        (["sql", "select nonsense"], "cannot be answered"),
        (["predict"], "no input"),
        (["models", "show", "nothing"], "no model is registered"),
    ],
)
def test_wrong_use_is_exit_code_2_with_a_reason_and_no_traceback(
    arguments: list[str], message: str, home: Path
) -> None:
    done = stfm(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(home.rglob("*evil*"))


def test_failure_is_exit_code_1_and_debug_shows_the_traceback(tmp_path: Path) -> None:
    assert stfm("evaluate", "nyc-airports").returncode == 1
    assert "Traceback" in stfm("--debug", "evaluate", "nyc-airports").stderr
    outside = stfm("run", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert outside.returncode == 1
    assert "not inside a checkout" in outside.stderr


def test_lists_are_json_objects_with_name_and_kind() -> None:
    done = stfm("datasets", "list", "--json")
    rows = json.loads(done.stdout)
    assert {("nyc-airports", "graph"), ("etth1", "graph")} <= {(r["name"], r["kind"]) for r in rows}
    assert all(r["licence"] for r in rows)
    systems = json.loads(stfm("systems", "list", "--for", "nyc-airports", "--json").stdout)
    assert {r["name"] for r in systems if r["unfit"] is None} >= {"stid", "dlinear", "constant"}


def test_help_takes_less_than_half_a_second_of_cpu() -> None:
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'stfm_pipeline', '--help'], stdout=subprocess.DEVNULL, check=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(out.stdout) < 0.5


def test_evaluate_gives_leaderboard_champion_and_report(trained: tuple[Settings, Lake]) -> None:
    code, out = invoke("evaluate", "trained", "--json")
    assert code == 0
    result = json.loads(out)
    row = result["leaderboard"][0]
    assert set(row) == {
        "dataset", "task", "system", "split", "scale", "channel", "horizon",
        "mse", "mae", "rmse", "mape", "r2", "n", "windows", "seeds",
    }  # fmt: skip
    assert {r["horizon"] for r in result["leaderboard"]} == {"avg", *range(1, 13)}
    assert all(r["scale"] == "standardised" for r in result["leaderboard"] if r["channel"] is None)
    assert Path(result["report"]).is_file()
    assert result["champion"] is None or set(result["champion"]) == {"name", "version", "uri", "system"}
    code, shown = invoke("evaluate", "trained")
    assert code == 0
    assert "test: " in shown
    assert "95 % interval" in shown


def test_predict_writes_what_the_model_says(trained: tuple[Settings, Lake], tmp_path: Path) -> None:
    uri = trained[1].require("trained", "champion").facts["uri"]
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    assert invoke("predict", "trained", "--example", str(source))[0] == 0
    assert invoke("predict", uri, "--input", str(source), "--output", str(target))[0] == 0
    assert len(pl.read_parquet(target)) == 6 * 12
    code, out = invoke("predict", uri, "--input", str(source))
    assert code == 0
    assert out.splitlines()[0] == "unique_id,ds,count,count_q0.1,count_q0.9,level,level_q0.1,level_q0.9"
    assert sorted(p.name for p in tmp_path.glob("*.part")) == []


def test_sql_models_datasets_and_doctor(trained: tuple[Settings, Lake]) -> None:
    code, out = invoke("sql", "select count(*) as n from trained.harmonized", "--json")
    assert (code, json.loads(out)) == (0, [{"n": 60 * 24 * 6}])
    code, out = invoke("models", "lineage", "trained", "--json")
    assert code == 0
    assert json.loads(out)["dataset"] == "trained"
    code, out = invoke("models", "list", "--json")
    assert json.loads(out)[0]["name"] == "trained"
    code, out = invoke("datasets", "show", "trained", "--json")
    assert json.loads(out)["stages"]["harmonized"]["facts"]["entities"] == 6
    code, out = invoke("datasets", "check", "trained", "--json")
    assert (code, json.loads(out)["passed"]) == (0, True)
    code, out = invoke("doctor", "--json")
    findings = {f["name"]: f for f in json.loads(out)["findings"]}
    assert findings["nvidia packages on a CPU machine"]["ok"]
    assert findings["STFM_HOME"]["found"] == str(trained[0].root)
    code, out = invoke("sql", "select '[bold]not markup[/bold]' as text")
    assert "[bold]not markup[/bold]" in out


def test_clean_deletes_what_can_be_made_again_and_asks_before_more(home: Path, lake: Lake) -> None:
    (home / "cache" / "panels").mkdir(parents=True)
    lake.publish("d", "raw", {"t": pl.DataFrame({"a": [1]})}, fingerprint="x", facts={}, inputs={})
    assert invoke("clean")[0] == 0
    assert not (home / "cache").exists()
    assert invoke("clean", "--all")[0] != 0
    assert lake.stage("d", "raw") is not None
    assert invoke("clean", "--all", "--yes")[0] == 0
    assert not home.exists()


def test_a_taken_port_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(StfmError, match=f"the port is taken: Dagster on {port}"):
            launch.serve_ui(Settings(), port, 1, sys.stdout)


def test_a_broken_promise_is_exit_code_1_without_a_word_about_it(
    enriched: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stfm_pipeline.road.data_version", lambda *_: "another")
    done = CliRunner().invoke(app, ["datasets", "check", "synthetic"])
    assert done.exit_code == 1
    assert "BROKEN" in done.output
    assert "Exit" not in done.output


def test_a_kind_goes_down_the_road_and_one_that_fails_stops_no_other(
    add_dataset: Callable[[Dataset], Dataset], lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(files: dict[str, Path]) -> RawTables:
        raise StfmError("the reader breaks")

    absent = LocalSource(path=Path("nowhere.csv"))
    add_dataset(make_dataset("a-first"))
    add_dataset(make_dataset("b-breaks").model_copy(update={"read": breaks}))
    add_dataset(make_dataset("c-absent", sources=(absent,)))
    add_dataset(make_dataset("d-last"))
    monkeypatch.setattr(catalog, "_built_in", dict)

    def in_this_process(name: str, stages: list[str], *rest: object) -> None:
        for stage in stages:
            assert road.materialize(name, stage, lake, settings).stage is not None

    monkeypatch.setattr(launch, "materialize", in_this_process)
    code, out = invoke("run", "--kind", "graph", "--until", "harmonized", "--json")
    found = json.loads(out)
    assert code == 1
    assert list(found["failed"]) == ["b-breaks"]
    assert found["absent"] == {"c-absent": ["nowhere.csv"]}
    assert [r["dataset"] for r in found["results"]] == ["a-first", "d-last"]
    raw, harmonized = found["results"][0]["stages"]
    assert harmonized["in"] == raw["out"] == sum(raw["rows"].values())
    assert all(s["ran"] and s["seconds"] > 0 and s["peak_mb"] > 50 for s in (raw, harmonized))
    code, out = invoke("run", "a-first", "--until", "harmonized")
    assert code == 0
    assert out.count("nothing to do") == 2
    code, out = invoke("run", "--kind", "video", "--until", "raw")
    assert code == 2
