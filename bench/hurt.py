"""One run of a small road, to be hurt: files land, tables go on, two systems are trained and meet the champion.

`python -m bench.hurt run PHASE [--die POINT N | --before-alias | --io BYTES]` prints each publish point it reaches, and
at its end what the home holds; `python -m bench.hurt read KNOWN` reads what is published until its input ends. Phases:
land, data, models, whole, promote.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import platform
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

NAME = "traffic"
SYSTEMS = ("last-value", "dlinear")
DATA, MODELS = ("raw", "harmonized", "embedded", "enriched"), ("trained_last_value", "trained_dlinear")
DAYS, LANDS = 200, 2
GENERATION = "generation"
# write, pwrite64, sendfile, copy_file_range
WRITES = {"x86_64": (1, 18, 40, 326), "aarch64": (64, 68, 71, 285)}
SECCOMP = {"x86_64": 317, "aarch64": 277}


def run(phase: str) -> None:
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.settings import Settings

    settings = Settings()
    lake = Lake(settings.lake_uri)
    if phase == "promote":
        from stfm_pipeline import registry

        crowned = registry.promote(settings, NAME, registry.versions(settings, NAME)[0]["version"])
        assert crowned["aliases"] == [registry.CHAMPION]
    if phase in ("land", "data", "whole"):
        from stfm_pipeline.landing import take_in

        taken = take_in(lake, settings)
        stuck = [t.reason for t in taken if "stays where it is" in t.reason]
        assert not stuck, stuck
    if phase in ("data", "whole"):
        from stfm_pipeline.road import materialize

        for stage in DATA:
            outcome = materialize(NAME, stage, lake, settings)
            assert outcome.stage is not None, outcome.checks
    if phase in ("models", "whole"):
        from stfm_pipeline import decision, scoring, training

        for system in SYSTEMS:
            assert training.train_system(NAME, system, lake, settings, progress=False).stage is not None
        assert scoring.evaluate_dataset(NAME, lake, settings).stage is not None
        assert decision.crown(NAME, lake, settings).stage is not None


def make(home: Path) -> None:
    """A champion on all but the last days, which lie in the landing folder, and beside them a file that is no table."""
    from bench.road import write
    from stfm_pipeline.landing import put
    from stfm_pipeline.settings import Settings

    folder = home / "datasets"
    write(folder, DAYS * 24, 6, "1h", "csv")
    lines = (folder / "speed.csv").read_text().splitlines()
    cut = 1 + (DAYS - LANDS) * 24
    (folder / "speed.csv").write_text("\n".join(lines[:cut]) + "\n")
    run("whole")
    new = {"speed-more.csv": [lines[0], *lines[cut:]], "speed-broken.csv": [lines[0], "yesterday" + ",many" * 6]}
    for name, text in new.items():
        (home / name).write_text("\n".join(text) + "\n")
        put(NAME, [home / name], Settings())
        (home / name).unlink()


def publish_points(deadly: int | None, which: str = "any") -> None:
    """Print what is reached; SIGKILL at the n-th that is called so."""
    from stfm_pipeline import points

    seen: Counter[str] = Counter()

    def hook(name: str) -> None:
        seen.update([name, "any"])
        print(name, flush=True)
        if seen[which] == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    points.hooks.append(hook)


def die_before_the_alias() -> None:
    """SIGKILL when the decision is written and the alias is about to move."""
    from mlflow import MlflowClient

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    MlflowClient.set_registered_model_alias = die  # type: ignore[method-assign]


def size(home: Path) -> int:
    total = 0
    for path in home.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def break_after(more: int, home: Path) -> None:
    """When the home has grown by so many bytes, the kernel answers EIO to every write of this process from then on."""
    most = size(home) + more

    def watch() -> None:
        while size(home) < most:
            time.sleep(0.005)
        print("eio", flush=True)
        refuse_writes()

    threading.Thread(target=watch, daemon=True).start()


class _Filter(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.POINTER(_Filter)))


def refuse_writes() -> None:
    """A seccomp filter over all threads: EIO for writes of 16 bytes or more, but to the standard streams.

    Wake-ups between threads are writes of 8 bytes and go through.
    """
    load, equal, at_least, give, allow = 0x20, 0x15, 0x35, 0x06, 0x7FFF0000
    numbers = WRITES[platform.machine()]
    steps = [_Filter(load, 0, 0, 0)]
    steps += [_Filter(equal, len(numbers) - i, 0, n) for i, n in enumerate(numbers)]
    steps += [_Filter(give, 0, 0, allow), _Filter(load, 0, 0, 16), _Filter(at_least, 0, 3, 3)]
    steps += [_Filter(load, 0, 0, 32), _Filter(at_least, 0, 1, 16)]
    steps += [_Filter(give, 0, 0, 0x00050000 | errno.EIO), _Filter(give, 0, 0, allow)]
    program = _Program(len(steps), (_Filter * len(steps))(*steps))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.syscall(SECCOMP[platform.machine()], 1, 1, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "no seccomp filter can be set")


def content(lake: Any, stage: Any) -> str:
    """Identity of a stage's tables; raw facts also say when a file was taken."""
    from stfm_pipeline.digest import data_version

    return data_version({t: lake.read(stage, t) for t in stage.tables}, {})


def state(phase: str) -> dict[str, Any]:
    """What a home holds now: versions of the tables, their rows, the files that landed, and the registry."""
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.settings import Settings
    from stfm_pipeline.sources import file_hash

    settings = Settings()
    lake = Lake(settings.lake_uri)
    raw = lake.require(NAME, "raw")
    files = [p for p in settings.landing.rglob("speed-*.csv") if p.is_file()]
    found: dict[str, Any] = {
        "contents": {s: content(lake, lake.require(NAME, s)) for s in DATA},
        "rows": sorted(map(str, lake.read(raw, "observations").rows())),
        "files": sorted(f"{p.parent.name} {p.name} {file_hash(p)}" for p in files),
        "left": sorted(str(p.relative_to(settings.root)) for p in settings.landing.glob("*/accepted/.*")),
    }
    if phase in ("models", "whole"):
        from stfm_pipeline import registry

        decided = lake.require(NAME, "champion").facts
        rows = registry.versions(settings, NAME)
        newest, alias = rows[0], registry.CHAMPION if decided["promoted"] else registry.CHALLENGER
        agree = newest["version"] == decided["version"] and newest["decision"]["promote"] == decided["promoted"]
        found["models"] = len(rows)
        found["agree"] = agree and newest["aliases"] == [alias] and any(registry.CHAMPION in r["aliases"] for r in rows)
        found["left"] += sorted(str(p.relative_to(settings.root)) for p in settings.root.glob("work/*"))
    return found


def read(known: dict[str, list[str]]) -> None:
    """Read every stage that is published, at least once, and compare it with what it may be; a line at the end."""
    from stfm_pipeline.digest import data_version
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.settings import Settings

    settings = Settings()
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    reads, wrong, which = 0, [], 0
    lake = Lake(settings.lake_uri)
    names = (*DATA, *MODELS, "evaluated", "champion")
    while not over.wait(0.05) or which < len(names):
        which, name = which + 1, names[which % len(names)]
        began = _generation(settings.root)
        try:
            stage = lake.stage(NAME, name)
            tables = {t: lake.read(stage, t) for t in stage.tables} if stage is not None else {}
            good = stage is None or data_version(tables, stage.facts) == stage.data_version
            if stage is not None and name in known:
                good = good and data_version(tables, {}) in known[name]
            said = "" if good else f"{name}: not a version that was published"
        except Exception as error:
            said = f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}"
        # A home that was exchanged meanwhile was not read.
        if began is not None and began == _generation(settings.root):
            reads += 1
            wrong += [said] if said else []
    print(json.dumps({"reads": reads, "wrong": wrong}))


def _generation(home: Path) -> str | None:
    try:
        return (home / GENERATION).read_text()
    except OSError:
        return None


def main() -> None:
    import logging

    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("make", "run", "state", "read"))
    parser.add_argument("phase")
    parser.add_argument("--die", nargs=2, default=("any", None))
    parser.add_argument("--before-alias", action="store_true")
    parser.add_argument("--io", type=int)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    home = Path(os.environ["STFM_HOME"])
    if given.what == "read":
        read(json.loads(Path(given.phase).read_text()))
        return
    if given.what == "make":
        make(home)
    elif given.what == "run":
        point, times = given.die
        publish_points(int(times) if times else None, point)
        if given.before_alias:
            die_before_the_alias()
        if given.io is not None:
            break_after(given.io, home)
        run(given.phase)
    print(json.dumps(state(given.phase)), flush=True)


if __name__ == "__main__":
    main()
