"""Damaged files through every reader: each is accepted or refused in words, and leaves nothing half-written.

10 000 files (`--quick`: 1000), the same in every run, made from small valid datasets; half know the format (odd cells,
headers, schemas, links), half do not (bits, ends, chunks, lengths). Each goes down the road as a dataset of its own, in
a worker that has 2 GB more than its libraries take and ten CPU seconds per file.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from bench.child import ROOT

LIMIT_CPU, LIMIT_WALL = 10.0, 60.0
PAST_HEADER = 0.2
ENDS = ("accepted", "rejected", "other", "crash", "hang", "memory")
GOOD = ("accepted", "rejected")
OUT_OF_MEMORY = ("memory allocation of", "bad_alloc", "Cannot allocate memory", "MemoryError")


@dataclass
class Row:
    """What became of a reader's files."""

    reader: str
    ends: Counter[str] = field(default_factory=Counter)
    past: int = 0
    left: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def files(self) -> int:
        return self.ends.total()

    @property
    def good(self) -> bool:
        return self.files == sum(self.ends[e] for e in GOOD) and not self.left and self.past >= PAST_HEADER * self.files

    def add(self, number: int, found: dict[str, Any]) -> None:
        self.ends[found["end"]] += 1
        self.past += found["past"]
        self.left += bool(found["left"])
        self.seconds += found["seconds"]
        self.slowest = max(self.slowest, found["seconds"])
        if found["end"] not in GOOD:
            self.notes.append(f"{self.reader} {number} ({found['file']}): {found['end']}: {found['why']}")
        self.notes += [f"{self.reader} {number} ({found['file']}): left {what}" for what in found["left"]]


class Worker:
    """A process that takes one file at a time; one that dies or hangs is replaced."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        one = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKIO_WORKER_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "bench.fuzz.worker"],
            cwd=ROOT,
            env={**os.environ, **one},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        if self._line(LIMIT_WALL * 10, LIMIT_WALL * 10) is None:
            raise RuntimeError(f"a worker did not start:\n{self._said()}")

    def _line(self, cpu: float, wall: float) -> str | None:
        """The next line, "" from a process that has ended, None where it takes too long."""
        import psutil

        assert self.process.stdout is not None
        began = time.monotonic()
        try:
            mine = psutil.Process(self.process.pid)
            used = sum(mine.cpu_times()[:2])
        except psutil.NoSuchProcess:
            return ""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not selector.select(1.0):
                if time.monotonic() - began > wall or sum(mine.cpu_times()[:2]) - used > cpu:
                    return None
        return self.process.stdout.readline()

    def _said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-2000:]

    def take(self, reader: str, number: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        began = time.monotonic()
        self.process.stdin.write(json.dumps([reader, number]) + "\n")
        self.process.stdin.flush()
        line = self._line(LIMIT_CPU, LIMIT_WALL)
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        self.process.kill()
        code, said = self.process.wait(), self._said()
        last = (said.strip().splitlines() or ["nothing said"])[-1]
        end = "hang" if line is None else "memory" if any(w in said for w in OUT_OF_MEMORY) else "crash"
        self._start()
        seconds = time.monotonic() - began
        return {
            "end": end,
            "why": f"ended with {code}: {last}",
            "past": False,
            "seconds": seconds,
            "left": [],
            "file": "",
        }

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def fuzz(count: int, readers: list[str] | None = None) -> list[Row]:
    """A row per reader for `count` files in all."""
    from bench.fuzz.readers import READERS

    chosen = readers or list(READERS)
    rows = {r: Row(r) for r in chosen}
    whole = sum(READERS[r].share for r in chosen)
    todo = [(r, n) for r in chosen for n in range(round(count * READERS[r].share / whole))]
    size = min(2, os.cpu_count() or 1)
    workers: SimpleQueue[Worker] = SimpleQueue()
    for _ in range(size):
        workers.put(Worker())

    def take(one: tuple[str, int]) -> dict[str, Any]:
        worker = workers.get()
        try:
            return worker.take(*one)
        finally:
            workers.put(worker)

    with ThreadPoolExecutor(size) as pool:
        for (reader, number), found in zip(todo, pool.map(take, todo), strict=True):
            rows[reader].add(number, found)
    for _ in range(size):
        workers.get().end()
    return list(rows.values())


def table(rows: list[Row]) -> str:
    """The rows as text."""
    lines = [f"{'reader':9}{'files':>6}" + "".join(f"{e:>10}" for e in ENDS) + "   past header  left  seconds  slowest"]
    for r in rows:
        ends = "".join(f"{r.ends[e]:>10}" for e in ENDS)
        lines.append(
            f"{r.reader:9}{r.files:6}{ends}{r.past / max(r.files, 1):13.0%}{r.left:6}{r.seconds:9.0f}{r.slowest:9.1f}"
        )
    return "\n".join(lines + [f"     {note}" for r in rows for note in r.notes])


def keep(rows: list[Row]) -> Path | None:
    """The files that failed, in a folder."""
    from bench.fuzz.readers import case

    folder: Path | None = None
    for row in rows:
        for reader, number in {tuple(note.split()[:2]) for note in row.notes}:
            folder = folder or Path(tempfile.mkdtemp(prefix="stfm-fuzz-kept-"))
            made = case(reader, int(number))
            place = folder / f"{reader}-{number}"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            for name, data in made.files().items():
                (place / name).write_bytes(data)
    return folder


def main(quick: bool) -> None:
    began = time.perf_counter()
    rows = fuzz(1000 if quick else 10_000)
    print(table(rows))
    print(f"{sum(r.files for r in rows)} damaged files in {time.perf_counter() - began:.0f} s", flush=True)
    if kept := keep(rows):
        print(f"kept: {kept} (`python -m bench.fuzz.worker READER NUMBER` takes one again)")
    if not all(r.good for r in rows):
        sys.exit(1)
