"""A real uvicorn in a thread, with a registry of its own that has several versions."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stfm_pipeline import registry
from stfm_pipeline.lake import Lake
from stfm_pipeline.predict import frame_of
from stfm_pipeline.serve.run import Options, make_server
from stfm_pipeline.settings import Settings
from stfm_pipeline.training import stage_of
from stfm_pipeline.windows import load_panel

JSON = {"Content-Type": "application/json"}
ARROW = {"Content-Type": "application/vnd.apache.arrow.stream"}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Site:
    """A server on a free port."""

    port: int

    def call(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            found = connection.getresponse()
            return Answer(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())
        finally:
            connection.close()

    def get(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        return self.call("GET", path, headers=headers)

    def post(self, body: bytes, headers: dict[str, str] | None = None, path: str = "/forecast") -> Answer:
        return self.call("POST", path, body, headers or JSON)

    def metric(self, name: str) -> float:
        lines = self.get("/metrics").body.decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def wait(self, done: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, self.get("/ready").json()
            time.sleep(0.05)

    def version(self) -> int | None:
        model = self.get("/ready").json()["model"]
        return model["version"] if model else None


@pytest.fixture
def registered(
    trained_home: Path, trained: tuple[Settings, Lake], home: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Settings, Lake]:
    """A home of the test's own; its champion is version 1 or the next, `dlinear`."""
    shutil.copytree(trained_home, home)
    monkeypatch.setenv("STFM_HOME", str(home))
    settings = Settings()
    lake = Lake(settings.lake_uri)
    registry.promote(settings, "trained", add(settings, lake, "dlinear"))
    return settings, lake


def add(settings: Settings, lake: Lake, system: str) -> int:
    """Register what was trained; returns the version."""
    seed = lake.require("trained", stage_of(system)).facts["seeds"][0]
    return registry.register(settings, "trained", seed["uri"], seed["run_id"], {"system": system})


@pytest.fixture
def frame(registered: tuple[Settings, Lake]) -> pl.DataFrame:
    settings, lake = registered
    panel = load_panel(lake, "trained", settings.cache)
    return frame_of(panel, int(panel.origins("test")[3]))


def text(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col(pl.Datetime).dt.strftime("%Y-%m-%dT%H:%M:%SZ"))


@pytest.fixture
def start(registered: tuple[Settings, Lake]) -> Iterator[Callable[..., Site]]:
    """Starts servers that are stopped when the test ends."""
    running = []

    def begin(name: str = "trained", ready: bool = True, headers: dict[str, str] | None = None, **given: Any) -> Site:
        options = Options(**{"port": 0, "every": 0.1, **given})
        server, listening = make_server(name, registered[1], registered[0], options)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        running.append((server, thread))
        site = Site(listening.getsockname()[1])
        site.wait(lambda: server.started)
        if ready:
            site.wait(lambda: site.get("/ready", headers).status == 200)
        return site

    yield begin
    for server, thread in running:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
