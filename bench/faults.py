"""What a crash costs: a fault on a small road while a reader reads, then the next run, and what is there after it.

Files have landed on tables with a champion: they are taken in, tables go on, systems are trained and meet the champion,
one is decided on. Lost rows: rows of an undisturbed run, and landed files, that are not there in the end. Wrong reads:
reads of a stage that give what no run published. Stale locks: locks held although nobody runs, scratch files that the
next run left. Kills at publish points after the tables follow each other in one home, and so does the run that ends it.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.child import ROOT
from bench.hurt import GENERATION, NAME, WRITES

# A disk of some bytes at the home's place, seen by this process alone; what it holds in the end is copied off it.
SMALL_DISK = """\
mount -t tmpfs -o size="$1" tmpfs "$STFM_HOME" && cp -a "$2"/. "$STFM_HOME" || exit 99
shift 2; "$@"; code=$?
cp -a "$STFM_HOME" "$STFM_HOME.left" && exit $code
"""


@dataclass
class Row:
    """What one kind of fault came to."""

    fault: str
    runs: int = 0
    lost: int = 0
    wrong: int = 0
    stale: int = 0
    completed: int = 0
    reads: int = 0
    # Faults that did not do the harm they were to do.
    other: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.completed == self.runs and not (self.lost or self.wrong or self.stale or self.other)


class House:
    """A home at one path, made anew from a template for each fault: models and landing folders know their path."""

    def __init__(self, folder: Path) -> None:
        self.home, self.known = folder / "home", folder / "known.json"
        self.generation = 0
        self.home.mkdir()
        base = self.state_of(self.run("make", "whole"))
        self.template = self.keep("template")
        began = time.perf_counter()
        whole = self.run("run", "whole")
        self.seconds = time.perf_counter() - began
        self.expected = self.state_of(whole)
        self.points = whole[1][:-1]
        self.known.write_text(json.dumps({s: [base["contents"][s], c] for s, c in self.expected["contents"].items()}))
        self.done = self.keep("done")
        self.fresh()
        self.data_points = len(self.points_of(self.run("run", "data")))
        self.landed = self.keep("landed")

    def keep(self, name: str) -> Path:
        """A copy of the home as it is."""
        return Path(shutil.copytree(self.home, self.home.with_name(name), symlinks=True))

    def fresh(self, source: Path | None = None) -> None:
        """The home as it was in the template."""
        copy = Path(shutil.copytree(source or self.template, self.home.with_name("next"), symlinks=True))
        self.exchange(copy)

    def exchange(self, other: Path) -> None:
        self.generation += 1
        (other / GENERATION).write_text(str(self.generation))
        gone = self.home.rename(self.home.with_name("gone"))
        other.rename(self.home)
        shutil.rmtree(gone)

    def start(
        self, *arguments: str, module: str = "bench.hurt", before: tuple[str, ...] = (), **environment: str
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*before, sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env={**os.environ, "STFM_HOME": str(self.home), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, list[str], str]:
        return ended(self.start(*arguments, **environment))

    def state_of(self, ran: tuple[int, list[str], str]) -> dict[str, object]:
        code, lines, error = ran
        if code:
            raise RuntimeError(error[-3000:])
        found: dict[str, object] = json.loads(lines[-1])
        return found

    def points_of(self, ran: tuple[int, list[str], str]) -> list[str]:
        self.state_of(ran)
        return ran[1][:-1]

    def held(self) -> list[str]:
        """Locks that somebody holds."""
        found = []
        for path in (*self.home.glob("locks/*"), *self.home.glob(".*.lock")):
            with path.open("r+") as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(path.name)
        return found

    @contextmanager
    def reader(self, row: Row) -> Iterator[None]:
        """A process that reads all the while."""
        reader = self.start("read", str(self.known))
        yield
        code, lines, error = ended(reader)
        if code:
            raise RuntimeError(error[-3000:])
        found = json.loads(lines[-1])
        row.reads += found["reads"]
        row.wrong += len(found["wrong"])
        row.notes += found["wrong"][:3]

    def judge(self, row: Row, phase: str = "whole", runs: int = 1, **environment: str) -> None:
        """The next run, and what is there after it."""
        row.runs += runs
        held = self.held()
        row.stale += len(held)
        code, lines, error = self.run("run", phase, **environment)
        if code:
            row.notes.append(f"the next run ended with {code}: {(error.strip().splitlines() or ['nothing said'])[-1]}")
            return
        found = json.loads(lines[-1])
        gone = [set(self.expected[k]) - set(found[k]) for k in ("rows", "files")]  # type: ignore[call-overload]
        row.lost += sum(map(len, gone))
        row.stale += len(found["left"])
        other = [k for k, v in found.items() if k != "left" and v != self.expected[k]]
        row.completed += 0 if other else runs
        row.notes += (
            [f"held: {n}" for n in held] + [f"left: {n}" for n in found["left"]] + [f"other: {n}" for n in other]
        )


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    out, error = process.communicate(timeout=900)
    return process.returncode, out.splitlines(), error


def expect(row: Row, ran: tuple[int, list[str], str], code: int, *words: str) -> None:
    """Note where a fault did not do its harm."""
    found, lines, error = ran
    if found != code or not any(w in error for w in words or ("",)):
        last = (error.strip().splitlines() or lines or ["nothing said"])[-1]
        row.notes.append(f"the fault was another: ended with {found}, {last}")
        row.other += 1


def killed_at_points(house: House, quick: bool) -> Iterator[Row]:
    data, models = house.points[: house.data_points], house.points[house.data_points :]
    rows = {p: Row(f"SIGKILL at '{p}'") for p in dict.fromkeys(house.points)}
    for at, point in enumerate(data, start=1):
        if quick and data.index(point) != at - 1:
            continue
        with house.reader(rows[point]):
            house.fresh()
            expect(rows[point], house.run("run", "data", "--die", "any", str(at)), -signal.SIGKILL)
            house.judge(rows[point], "data")
    chain = Row("chain")
    with house.reader(chain):
        house.fresh(house.landed)
        kept = list(dict.fromkeys(models)) if quick else models
        for point in kept:
            expect(rows[point], house.run("run", "models", "--die", point, "1"), -signal.SIGKILL)
            chain.stale += len(house.held())
        house.judge(chain, "models")
    for point in kept:
        rows[point].runs += 1
        rows[point].completed += chain.completed
    last = rows[models[-1]]
    last.lost, last.wrong, last.stale = last.lost + chain.lost, last.wrong + chain.wrong, last.stale + chain.stale
    last.notes += chain.notes
    last.reads += chain.reads
    yield from rows.values()


def killed_at_random(house: House, quick: bool) -> Iterator[Row]:
    row, rng = Row("SIGKILL at random after the first write"), random.Random(0)
    with house.reader(row):
        for _ in range(2 if quick else 10):
            house.fresh()
            began = time.perf_counter()
            child = house.start("run", "whole")
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.uniform(0, max(0.0, house.seconds - (time.perf_counter() - began))))
            child.kill()
            ended(child)
            house.judge(row)
    yield row


def disk_full(house: House, quick: bool) -> Iterator[Row]:
    if (
        sys.platform != "linux"
        or subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode
    ):
        print("     no disk of its own can be mounted here: ENOSPC is left out", flush=True)
        return
    pages = sum(-(-p.stat().st_size // 4096) * 4096 for p in house.template.rglob("*") if p.is_file())
    for room in (200_000,) if quick else (20_000, 200_000, 800_000):
        row = Row(f"ENOSPC after {room / 1e3:.0f} kB")
        with house.reader(row):
            house.fresh()
            small = ("unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", str(pages + room), str(house.template))
            expect(row, ended(house.start("run", "whole", before=small)), 1, "No space left", "full", "requested and")
            house.exchange(house.home.with_name("home.left"))
            house.judge(row)
        yield row


def input_output_errors(house: House, quick: bool) -> Iterator[Row]:
    if sys.platform != "linux" or platform.machine() not in WRITES:
        print("     no system calls can be refused here: EIO is left out", flush=True)
        return
    for room in (200_000,) if quick else (1, 200_000, 800_000):
        row = Row(f"EIO from {room / 1e3:g} kB on")
        with house.reader(row):
            house.fresh()
            expect(row, house.run("run", "whole", "--io", str(room)), 1, "Input/output error", "disk I/O error")
            house.judge(row)
        yield row


def two_at_once(house: House, quick: bool) -> Iterator[Row]:
    row = Row("two runs of the whole road at once")
    with house.reader(row):
        house.fresh()
        for ran in [ended(p) for p in [house.start("run", "whole") for _ in range(2)]]:
            expect(row, ran, 0)
        house.judge(row)
    yield row
    row = Row("`stfm run` beside `stfm land`, twice")
    with house.reader(row):
        house.fresh()
        beside = [["run", NAME, "--until", "enriched"], ["land"], ["land"]]
        for ran in [ended(p) for p in [house.start(*a, module="stfm_pipeline") for a in beside]]:
            expect(row, ran, 0)
        house.judge(row, "data")
    yield row


def mlflow_down(house: House, quick: bool) -> Iterator[Row]:
    row = Row("MLflow's server killed in the middle")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with house.reader(row):
        house.fresh(house.landed)
        with server(house, uri) as mlflow:
            child = house.start("run", "models", MLFLOW_TRACKING_URI=uri)
            assert child.stdout is not None
            for line in child.stdout:
                if line == "artifact\n":
                    os.killpg(mlflow.pid, signal.SIGKILL)
                    break
            expect(row, ended(child), 1, "Max retries exceeded", "Connection", "connection")
        with server(house, uri):
            house.judge(row, "models", MLFLOW_TRACKING_URI=uri)
    yield row


@contextmanager
def server(house: House, uri: str) -> Iterator[subprocess.Popen[str]]:
    """An MLflow server on the home's own store."""
    port = uri.rpartition(":")[2]
    store = f"sqlite:///{house.home / 'mlflow.db'}"
    log = house.home.with_name("mlflow.log").open("w")
    arguments = ["server", "--backend-store-uri", store, "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *arguments], stdout=log, stderr=log, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).close()
                break
            except OSError as error:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(house.home.with_name("mlflow.log").read_text()[-2000:]) from error
                time.sleep(0.3)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def check_fails_late(house: House, quick: bool) -> Iterator[Row]:
    row = Row("a check of harmonized fails, raw is published")
    with house.reader(row):
        house.fresh()
        expect(row, house.run("run", "land"), 0)
        spec = house.home / "datasets" / f"{NAME}.yaml"
        right = spec.read_text()
        spec.write_text(f"{right}facts: {{entities: 7}}\n")
        expect(row, house.run("run", "data"), 1, "facts_match")
        spec.write_text(right)
        house.judge(row, "data")
    yield row


def half_promoted(house: House, quick: bool) -> Iterator[Row]:
    row = Row("SIGKILL between a decision and its alias")
    with house.reader(row):
        house.fresh(house.landed)
        expect(row, house.run("run", "models", "--before-alias"), -signal.SIGKILL)
        house.judge(row, "models")
    yield row
    row = Row("SIGKILL in a promotion by hand, before and after the alias")
    with house.reader(row):
        house.fresh(house.done)
        for how in (["--before-alias"], ["--die", "alias", "1"]):
            expect(row, house.run("run", "promote", *how), -signal.SIGKILL)
            house.judge(row, "promote")
    yield row


FAULTS = (
    killed_at_points,
    killed_at_random,
    disk_full,
    input_output_errors,
    two_at_once,
    mlflow_down,
    check_fails_late,
    half_promoted,
)


def table(rows: list[Row]) -> str:
    """The rows as text, a line each, with what was found below those that are not good."""
    lines = [f"{'fault':60} runs  lost rows  wrong reads  stale locks  next run completes"]
    for r in rows:
        reads = f"{r.wrong} of {r.reads}"
        lines.append(f"{r.fault:60} {r.runs:4}  {r.lost:9}  {reads:>11}  {r.stale:11}  {r.completed:9} of {r.runs}")
        lines += [f"     {note}" for note in r.notes]
    return "\n".join(lines)


def main(quick: bool) -> None:
    began = time.perf_counter()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="stfm-faults-") as folder:
        house = House(Path(folder))
        for fault in FAULTS:
            for row in fault(house, quick):
                print(f"{'ok  ' if row.good else 'MISS'} {row.fault}", flush=True)
                rows.append(row)
    print(table(rows))
    print(f"{sum(r.runs for r in rows)} faults in {time.perf_counter() - began:.0f} s", flush=True)
    if not all(r.good for r in rows):
        sys.exit(1)
