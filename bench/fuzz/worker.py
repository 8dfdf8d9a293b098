"""Takes damaged datasets down the road, one after another, in a process of its own: it may die, hang or run out.

By hand: `python -m bench.fuzz.worker READER NUMBER [--keep FOLDER]` says what becomes of one file.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

NAME = "fuzz"
MEMORY = 2 * 1024**3


def road(home: Path) -> tuple[str, str, list[str]]:
    """How it ended, the first line of why, and the stages that were published."""
    from stfm_pipeline.errors import StfmError
    from stfm_pipeline.lake import Lake
    from stfm_pipeline.road import materialize
    from stfm_pipeline.settings import Settings
    from stfm_pipeline.steps import STEPS

    settings, done = Settings(home=home), []
    lake = Lake(settings.lake_uri)
    try:
        for stage in STEPS:
            outcome = materialize(NAME, stage, lake, settings)
            if outcome.stage is None:
                failed = [f"{c.name} {c.details}" for c in outcome.checks if not c.passed]
                return "rejected", f"{stage}: {'; '.join(failed)}"[:300], done
            done.append(stage)
    except StfmError as error:
        return "rejected", str(error).splitlines()[0], done
    except MemoryError as error:
        return "memory", _where(error), done
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return "other", _where(error), done
    return "accepted", "", done


def _where(error: BaseException) -> str:
    last = [f for f in traceback.extract_tb(error.__traceback__) if "stfm_pipeline" in f.filename][-1:]
    where = f"{Path(last[0].filename).name}:{last[0].lineno}" if last else "?"
    return f"{type(error).__name__} at {where}: {str(error)[:200]}"


def left(home: Path, done: list[str]) -> list[str]:
    """What lies in the home and should not: stages that were not published, scratch, anything in the cache."""
    lake = home / "lake" / NAME
    found = [f"lake: {p.name}" for p in lake.glob("*") if p.name not in done]
    found += [str(p.relative_to(home)) for p in home.rglob("*") if p.name.startswith((".", "tmp")) and p.is_dir()]
    found += [str(p.relative_to(home)) for p in home.glob("cache/**/*") if p.is_file()]
    known = {"datasets", "lake", "locks", "cache"}
    return found + [p.name for p in home.iterdir() if p.name not in known]


def run(reader: str, number: int, home: Path) -> dict[str, Any]:
    """One file down the road, in a home of its own."""
    from bench.fuzz.readers import READERS, case

    shutil.rmtree(home, ignore_errors=True)
    (home / "datasets").mkdir(parents=True)
    made = case(reader, number)
    for name, data in made.files().items():
        (home / "datasets" / name).write_bytes(data)
    began = time.perf_counter()
    end, why, done = road(home)
    seconds = time.perf_counter() - began
    past = READERS[reader].header(made.data)
    return {"end": end, "why": why, "past": past, "seconds": seconds, "left": left(home, done), "file": made.file}


def main() -> None:
    import logging

    logging.getLogger("stfm").setLevel(logging.CRITICAL + 1)
    with tempfile.TemporaryDirectory(prefix="stfm-fuzz-", ignore_cleanup_errors=True) as folder:
        home = Path(folder, "home")
        os.environ["STFM_HOME"] = str(home)
        if len(sys.argv) > 2:
            print(json.dumps(run(sys.argv[1], int(sys.argv[2]), home)))
            if "--keep" in sys.argv:
                shutil.copytree(home / "datasets", sys.argv[-1], dirs_exist_ok=True)
            return
        out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        # Libraries map their memory first: the limit is for what a file makes them take.
        from bench.fuzz.readers import READERS

        for reader in READERS:
            run(reader, 0, home)
        if sys.platform == "linux":
            mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        print(json.dumps({"ready": True}), file=out)
        for line in sys.stdin:
            reader, number = json.loads(line)
            print(json.dumps(run(reader, number, home)), file=out)


if __name__ == "__main__":
    main()
