"""`stfm serve` under load on loopback: the client beside it on the same cores, the alias moved in the middle.

Uses the versions of `nyc-airports` in `$STFM_HOME`; without one, or with fewer than two there, it makes them first.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench.child import ROOT, line

NAME = "nyc-airports"
CLIENTS, PARTS = 8, 10
VERSION = re.compile(rb'"version": (\d+)')


def prepare(home: str) -> None:
    """A home with a champion and a second version, and one airport's frame as an Arrow stream."""
    from stfm_pipeline import registry
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.predict import frame_of
    from stfm_pipeline.settings import Settings
    from stfm_pipeline.training import stage_of
    from stfm_pipeline.windows import load_panel

    settings = Settings()
    lake = Lake(settings.lake_uri)
    if len(registry.versions(settings, NAME)) < 2:
        command = [sys.executable, "-m", "stfm_pipeline", "run", NAME, "--until", "trained"]
        subprocess.run([*command, "--system", "dlinear", "--system", "stid"], check=True, stdout=sys.stderr)
        for system in ("dlinear", "stid"):
            seed = lake.require(NAME, stage_of(system)).facts["seeds"][0]
            number = registry.register(settings, NAME, seed["uri"], seed["run_id"], {"system": system})
        registry.promote(settings, NAME, number)
    champion = registry.show(settings, NAME)["version"]
    other = next(v["version"] for v in registry.versions(settings, NAME) if v["version"] != champion)
    panel = load_panel(lake, NAME, settings.cache)
    frame = frame_of(panel, int(panel.origins("test")[-1]), ("ATL",))
    frame.write_ipc_stream(f"{home}/frame.arrow")
    (Path(home) / "frame.json").write_text(json.dumps(_text(frame).to_dicts()))
    (Path(home) / "columns.json").write_text(json.dumps(_text(frame).to_dict(as_series=False)))
    print(json.dumps({"champion": champion, "other": other}))


def _text(frame: Any) -> Any:
    import polars as pl

    return frame.with_columns(pl.col("ds").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))


class Load:
    """So many requests over a few connections that stay open; latencies, answers that are not 200, versions seen."""

    def __init__(self, port: int, request: bytes) -> None:
        self.port, self.request = port, request
        self.left = 0
        self.seconds: list[float] = []
        self.versions: Counter[int] = Counter()
        self.failed: Counter[str] = Counter()

    async def run(self, count: int) -> float:
        """Seconds that `count` requests take."""
        self.left = count
        began = time.perf_counter()
        await asyncio.gather(*(self._client() for _ in range(CLIENTS)))
        return time.perf_counter() - began

    async def _client(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        while self.left > 0:
            self.left -= 1
            began = time.perf_counter()
            try:
                writer.write(self.request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
                body = await reader.readexactly(length)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.failed[type(error).__name__] += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                continue
            found = VERSION.search(body)
            if head[9:12] != b"200" or found is None:
                self.failed[head[9:12].decode()] += 1
                continue
            self.seconds.append(time.perf_counter() - began)
            self.versions[int(found[1])] += 1
        writer.close()

    @property
    def done(self) -> int:
        return len(self.seconds) + sum(self.failed.values())

    def quantile(self, q: float) -> float:
        """In milliseconds."""
        return 1e3 * sorted(self.seconds)[min(len(self.seconds) - 1, int(q * len(self.seconds)))]


def request(body: bytes, form: str) -> bytes:
    head = f"POST /forecast HTTP/1.1\r\nHost: bench\r\nContent-Type: {form}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def get(port: int, path: str) -> bytes:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
        return bytes(answer.read())


def memory(port: int) -> float:
    """The server's resident memory in MB."""
    return _metric(port, "process_resident_memory_bytes") / 1e6


def cpu(port: int) -> float:
    """CPU seconds of the server so far."""
    return _metric(port, "process_cpu_seconds_total")


def _metric(port: int, name: str) -> float:
    return float(get(port, "metrics").decode().split(f"\n{name} ")[1].split("\n")[0])


def start(env: dict[str, str]) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "stfm_pipeline", "serve", NAME, "--port", "0", "--every", "1"]
    server = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    port = int(re.search(r":(\d+), its page", server.stderr.readline())[1])  # type: ignore[index]
    deadline = time.monotonic() + 120
    while b'"ready":true' not in _ready(port):
        if time.monotonic() > deadline:
            raise RuntimeError("not ready within two minutes")
        time.sleep(0.2)
    return server, port


def _ready(port: int) -> bytes:
    try:
        return get(port, "ready")
    except OSError:
        return b""


def main(quick: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="stfm-bench-") as home:
        env = {**os.environ, "STFM_HOME": os.environ.get("STFM_HOME", home), "PYTHONPATH": str(ROOT)}
        made = subprocess.run(
            [sys.executable, "-m", "bench.serve", home], env=env, stdout=subprocess.PIPE, text=True, check=True
        )
        versions = json.loads(made.stdout.splitlines()[-1])
        server, port = start(env)
        try:
            asyncio.run(_measure(port, Path(home), versions, env, 2_000 if quick else 100_000))
        finally:
            server.send_signal(signal.SIGTERM)
            rest = server.communicate(timeout=60)[1]
    line("stops at SIGTERM", f"exit {server.returncode}", "exit 0", server.returncode == 0)
    if server.returncode:
        print(rest)


async def _measure(port: int, home: Path, versions: dict[str, int], env: dict[str, str], count: int) -> None:
    forms = {"rows": ("frame.json", "application/json"), "columns": ("columns.json", "application/json")}
    for kind, (file, form) in forms.items():
        load = Load(port, request((home / file).read_bytes(), form))
        seconds = await load.run(count // 100)
        print(f"     JSON {kind}: {count // 100 / seconds:.0f} requests per second, p50 {load.quantile(0.5):.1f} ms")
    body = (home / "frame.arrow").read_bytes()
    arrow = "application/vnd.apache.arrow.stream"
    before, used = memory(port), cpu(port)
    load, seconds, after = Load(port, request(body, arrow)), 0.0, []
    promote = [sys.executable, "-m", "stfm_pipeline", "models", "promote", NAME]
    moved = None
    for part in range(PARTS):
        if part == PARTS // 2:
            moved = asyncio.create_task(_run([*promote, str(versions["other"])], env))
        seconds += await load.run(count // PARTS)
        after.append(memory(port))
        print(f"     {load.done} requests: {load.done / seconds:.0f} per second, {after[-1]:.0f} MB", flush=True)
    assert moved is not None
    await moved
    while versions["other"] not in load.versions:
        seconds += await load.run(CLIENTS)
    used = (cpu(port) - used) / load.done
    await _run([*promote, str(versions["champion"])], env)
    seen = ", ".join(f"{n} from version {v}" for v, n in sorted(load.versions.items()))
    failed = sum(load.failed.values())
    line(
        f"{load.done} requests of one airport's week ({len(body)} bytes), {CLIENTS} clients on the server's cores",
        f"{load.done / seconds:.0f} per second, p50 {load.quantile(0.5):.1f} ms, p99 {load.quantile(0.99):.1f} ms, "
        f"longest {load.quantile(1):.0f} ms; the server takes {1e3 * used:.1f} ms CPU for each",
        "100 per second",
        load.done / seconds >= 100,
    )
    line(
        "the alias moves in the middle", f"{failed} failed {dict(load.failed) or ''}; {seen}", "none failed", not failed
    )
    line(
        "memory of the server",
        f"{before:.0f} MB at first, {after[0]:.0f} after {count // PARTS}, {after[-1]:.0f} after {count} and a swap",
        "150 MB more at most",
        after[-1] - after[0] < 150,
    )


async def _run(command: list[str], env: dict[str, str]) -> None:
    done = await asyncio.create_subprocess_exec(*command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert await done.wait() == 0


if __name__ == "__main__":
    prepare(sys.argv[1])
