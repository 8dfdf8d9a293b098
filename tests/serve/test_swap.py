"""The alias moves while requests run; versions that cannot serve, a registry that is gone, and a clean stop."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from serve.conftest import Site, add, text

from stfm_pipeline import registry
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings
from stfm_pipeline.training import stage_of

ROOT = Path(__file__).parents[2]
Start = Callable[..., Site]


def test_the_alias_moves_under_load_and_every_answer_is_one_versions_own(
    start: Start, registered: tuple[Settings, Lake], frame: pl.DataFrame
) -> None:
    settings, lake = registered
    old, new = registry.show(settings, "trained")["version"], add(settings, lake, "constant")
    expected = {v: text(registry.load_model(f"models:/trained/{v}", settings).predict(frame)) for v in (old, new)}
    site, body = start(queue=1000), json.dumps(text(frame).to_dicts()).encode()
    site.wait(lambda: site.get("/forecast").status == 200)
    seen: list[int] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            answer = site.post(body)
            assert answer.status == 200, answer.body
            version = answer.json()["version"]
            assert pl.from_dicts(answer.json()["forecast"]).equals(expected[version])
            assert site.get("/forecast").status == 200
            seen.append(version)

    with ThreadPoolExecutor(4) as clients:
        running = [clients.submit(client) for _ in range(4)]
        try:
            site.wait(lambda: len(seen) > 20)
            registry.promote(settings, "trained", new)
            site.wait(lambda: seen[-20:] == [new] * 20)
        finally:
            stop.set()
        for done in running:
            done.result()
    assert set(seen) == {old, new}
    assert site.metric("stfm_model_swaps_total") == 1
    assert f'version="{new}"' in site.get("/metrics").body.decode()
    assert f'version="{old}"' not in site.get("/metrics").body.decode()
    site.wait(lambda: site.get("/forecast").json()["version"] == new)


def truncated(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text()[:100])


def not_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    spoilt = {k: torch.full_like(v, torch.nan) if k.startswith("module.") else v for k, v in weights.items()}
    save_file(spoilt, folder / "model.safetensors")


@pytest.mark.parametrize("spoil", [truncated, not_finite])
def test_a_version_that_cannot_forecast_leaves_the_old_one_serving(
    start: Start,
    registered: tuple[Settings, Lake],
    frame: pl.DataFrame,
    tmp_path: Path,
    spoil: Callable[[Path], None],
) -> None:
    settings, lake = registered
    import mlflow

    good = registry.show(settings, "trained")["version"]
    site, body = start(), json.dumps(text(frame).to_dicts()).encode()
    source = Path(mlflow.artifacts.download_artifacts(artifact_uri=f"models:/trained/{good}", dst_path=str(tmp_path)))
    spoil(source / "artifacts" / "forecaster")
    seed = lake.require("trained", stage_of("constant")).facts["seeds"][0]
    bad = registry.register(settings, "trained", source.as_uri(), seed["run_id"], {"system": "dlinear"})
    registry.promote(settings, "trained", bad)
    site.wait(lambda: "model" in site.get("/ready").json()["troubles"])
    assert f"version {bad} of trained cannot serve" in site.get("/ready").json()["troubles"]["model"]
    assert (site.get("/ready").status, site.version()) == (200, good)
    assert site.post(body).json()["version"] == good
    assert (site.metric("stfm_model_swap_failures_total"), site.metric("stfm_model_swaps_total")) == (1, 0)
    registry.rollback(settings, "trained")
    site.wait(lambda: not site.get("/ready").json()["troubles"])


def test_it_goes_on_without_its_registry(start: Start, registered: tuple[Settings, Lake], frame: pl.DataFrame) -> None:
    settings, _ = registered
    site, body = start(), json.dumps(text(frame).to_dicts()).encode()
    site.wait(lambda: site.get("/forecast").status == 200)
    Path(settings.tracking_uri.removeprefix("sqlite:///")).write_bytes(b"gone" * 1000)
    shutil.rmtree(settings.artifact_uri)
    site.wait(lambda: "registry" in site.get("/ready").json()["troubles"])
    assert site.get("/ready").status == 200
    assert site.post(body).status == 200
    assert site.metric("stfm_watch_errors_total") > 0


def test_without_a_version_it_waits_for_one(start: Start, registered: tuple[Settings, Lake]) -> None:
    settings, lake = registered
    site = start(alias="canary", ready=False)
    assert site.get("/health").status == 200
    site.wait(lambda: bool(site.get("/ready").json()["troubles"]))
    assert site.get("/ready").status == 503
    for answer in (site.post(b"[]"), site.get("/forecast"), site.get("/version")):
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert "canary" in answer.json()["found"]
    number = add(settings, lake, "constant")
    registry.connect(settings).set_registered_model_alias("trained", "canary", str(number))
    site.wait(lambda: site.version() == number)


def test_a_token_is_asked_for_by_everything_but_health(start: Start, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef0123\n")
    good = {"Authorization": "Bearer 0123456789abcdef0123"}
    site = start(token_file=tmp_path / "token", headers=good)
    paths = ("/ready", "/version", "/forecast", "/metrics", "/docs", "/openapi.json", "/nothing")
    wrong = [{}, {"Authorization": "Bearer 0123456789abcdef012"}, {"Authorization": "0123456789abcdef0123"}]
    wrong += [{"Authorization": "Basic 0123456789abcdef0123"}, {"Authorization": "Bearer \xff"}]
    for headers in wrong:
        for path in paths:
            answer = site.get(path, headers)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert b"0123456789abcdef" not in answer.body
        assert site.post(b"[]", headers).status == 401
    assert site.get("/health").status == 200
    assert site.get("/version", good).status == 200


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "stfm_pipeline", "serve", "trained", *arguments]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_beyond_loopback_it_does_not_start_without_a_token(host: str, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "STFM_SERVE_TOKEN"}
    given = ["--host", host, "--port", "0"]
    bare = subprocess.run(command(*given), cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (bare.returncode, "--token-file" in bare.stderr) == (2, True), bare.stderr
    (tmp_path / "token").write_text("short\n")
    short = command(*given, "--token-file", str(tmp_path / "token"))
    weak = subprocess.run(short, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (weak.returncode, "at least 16" in weak.stderr) == (2, True), weak.stderr


def test_sigterm_finishes_what_runs_and_exits_with_zero(registered: tuple[Settings, Lake], frame: pl.DataFrame) -> None:
    server = subprocess.Popen(
        command("--port", "0", "--workers", "1"), cwd=ROOT, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    try:
        assert server.stderr is not None
        found = re.search(r":(\d+), its page", server.stderr.readline())
        assert found is not None
        site = Site(int(found[1]))
        site.wait(lambda: site.get("/ready").status == 200)
        # The frame many times over takes long to read, and is then refused for its double rows: an answer all the same.
        long = json.dumps(text(frame).to_dicts() * 300).encode()
        with ThreadPoolExecutor(1) as client:
            answer = client.submit(site.post, long)
            site.wait(lambda: site.metric("stfm_requests_in_flight") >= 2)
            server.send_signal(signal.SIGTERM)
            assert answer.result().status == 422
        rest = server.communicate(timeout=60)[1]
    finally:
        server.kill()
    assert server.returncode == 0, rest
    assert "stopped" in rest
    with pytest.raises(ConnectionRefusedError):
        site.get("/health")
