"""Dagster and MLflow as child processes of the nearest checkout."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from stfm_pipeline.alone import alone
from stfm_pipeline.errors import StfmError
from stfm_pipeline.settings import Settings, project_root

DAGSTER_YAML = """\
telemetry:
  enabled: false
nux:
  enabled: false
# A machine has room for so many trainings; one whose process was killed is noticed, and no longer said to run.
concurrency:
  runs:
    max_concurrent_runs: 2
run_monitoring:
  enabled: true
  poll_interval_seconds: 60
"""


def require_root() -> Path:
    """The checkout that holds `workspace.yaml`, with Dagster installed; otherwise an error that says what to do."""
    root = project_root()
    if root is None:
        raise StfmError(
            "not inside a checkout: no workspace.yaml here or above",
            found=str(Path.cwd()),
            fix="change into the folder you cloned; `stfm predict` and `stfm models` work anywhere",
        )
    from importlib.util import find_spec

    if find_spec("dagster") is None:
        raise StfmError(
            "Dagster is not installed", fix="pip install 'stfm-pipeline[pipeline]' (or `make` in the checkout)"
        )
    return root


def environment(settings: Settings, root: Path) -> dict[str, str]:
    """The children's environment: one STFM_HOME, one DAGSTER_HOME, one tracking store."""
    home = settings.dagster_home
    if not (home / "dagster.yaml").exists():
        _make_instance(home)
    return {
        **os.environ,
        "STFM_HOME": str(settings.root),
        "DAGSTER_HOME": str(home),
        "MLFLOW_TRACKING_URI": settings.tracking_uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        # Seven processes and 2 GB that nothing here asks for.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": os.environ.get("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"),
        "PYTHONPATH": os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def _make_instance(home: Path) -> None:
    """Dagster's folder with its databases, whole or not at all: two that created them at once would both fail."""
    with alone(home.with_name(f".{home.name}.lock"), "creating Dagster's databases"):
        if (home / "dagster.yaml").exists():
            return
        scratch = home.with_name(f".{home.name}.part")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        (scratch / "dagster.yaml").write_text(DAGSTER_YAML)
        made = subprocess.run(
            [sys.executable, "-m", "dagster", "instance", "migrate"],
            env={**os.environ, "DAGSTER_HOME": str(scratch)},
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise StfmError("Dagster's databases cannot be created", found=made.stderr.strip().splitlines()[-1])
        home.mkdir(exist_ok=True)
        for part in (*(p for p in scratch.iterdir() if p.name != "dagster.yaml"), scratch / "dagster.yaml"):
            if not (home / part.name).exists():
                part.rename(home / part.name)
        shutil.rmtree(scratch)


def materialize(dataset: str, assets: Sequence[str], compute: dict[str, str | bool], settings: Settings) -> None:
    """Materialise assets of one dataset into the same instance that the UI shows; raises if the run fails."""
    root = require_root()
    command = [sys.executable, "-m", "assets", dataset, ",".join(assets), json.dumps(compute)]
    # Whoever ends this process means the run.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    done = subprocess.run(command, cwd=root, env=environment(settings, root), stdout=sys.stderr, check=False)
    signal.signal(signal.SIGTERM, before)
    if done.returncode < 0:
        raise StfmError(
            f"the run of '{dataset}' was killed by signal {-done.returncode}", fix="run it again: it resumes"
        )
    if done.returncode:
        raise StfmError(f"the run of '{dataset}' failed", fix="`stfm ui` shows the run with its log")


def port_is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def serve_ui(settings: Settings, dagster_port: int, mlflow_port: int, say: IO[str]) -> None:
    """Run Dagster and MLflow side by side until interrupted; both and all their children are stopped together."""
    root = require_root()
    taken = [
        f"{name} on {port}"
        for name, port in (("Dagster", dagster_port), ("MLflow", mlflow_port))
        if port_is_taken(port)
    ]
    if taken:
        raise StfmError(
            f"the port is taken: {', '.join(taken)}", fix="stop what listens there, or use --port and --mlflow-port"
        )
    env = environment(settings, root)
    # The server and the first run would otherwise create the tracking store at the same time. Its own process, because
    # MLflow's memory is then given back.
    code = "from stfm_pipeline import registry, settings; registry.connect(settings.Settings())"
    made = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    if made.returncode:
        raise StfmError("MLflow's database cannot be created", found=made.stderr.strip().splitlines()[-1])
    logs = settings.root / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    dagster = [
        sys.executable,
        "-m",
        "dagster",
        "dev",
        "-w",
        "workspace.yaml",
        "-h",
        "127.0.0.1",
        "-p",
        str(dagster_port),
    ]
    mlflow = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", settings.tracking_uri]
    mlflow += ["--host", "127.0.0.1", "--port", str(mlflow_port), "--workers", "1"]
    children: list[tuple[str, subprocess.Popen[bytes]]] = []
    try:
        for name, command in (("dagster", dagster), ("mlflow", mlflow)):
            with (logs / f"{name}.log").open("ab") as out:
                child = subprocess.Popen(command, cwd=root, env=env, stdout=out, stderr=out, start_new_session=True)
            children.append((name, child))
        _wait_for({"Dagster": dagster_port, "MLflow": mlflow_port}, children, logs)
        print(f"Dagster  http://127.0.0.1:{dagster_port}\nMLflow   http://127.0.0.1:{mlflow_port}", file=say)
        print(f"logs in {logs}; Ctrl-C stops both", file=say, flush=True)
        while all(child.poll() is None for _, child in children):
            time.sleep(0.5)
        ended = next(name for name, child in children if child.poll() is not None)
        raise StfmError(f"{ended} stopped by itself", fix=f"its log is {logs / f'{ended}.log'}")
    except KeyboardInterrupt:
        print("stopping", file=say, flush=True)
    finally:
        _stop([child for _, child in children])


def _wait_for(ports: dict[str, int], children: list[tuple[str, subprocess.Popen[bytes]]], logs: Path) -> None:
    deadline = time.monotonic() + 120
    waiting = dict(ports)
    while waiting:
        for name, child in children:
            if child.poll() is not None:
                raise StfmError(f"{name} did not start", fix=f"its log is {logs / f'{name}.log'}")
        waiting = {name: port for name, port in waiting.items() if not _answers(port)}
        if waiting and time.monotonic() > deadline:
            raise StfmError(f"{', '.join(waiting)} did not answer within two minutes", fix=f"the logs are in {logs}")
        time.sleep(0.3)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _stop(children: list[subprocess.Popen[bytes]]) -> None:
    for kind, patience in ((signal.SIGINT, 10), (signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        alive = [c for c in children if _group_alive(c)]
        if not alive:
            return
        for child in alive:
            os.killpg(child.pid, kind)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and any(_group_alive(c) for c in alive):
            time.sleep(0.2)


def _group_alive(child: subprocess.Popen[bytes]) -> bool:
    child.poll()
    try:
        os.killpg(child.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
