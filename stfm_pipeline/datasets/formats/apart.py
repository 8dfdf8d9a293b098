"""Reading a table in a process of its own, where a damaged file can bring down the library that reads it.

NetCDF-4 says which axis is which in HDF5's heap, and HDF5 (1.14) writes beyond its memory on one that is damaged: what
then dies, or goes on with other data changed, is a process that does nothing else. Found by `python -m bench fuzz`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import TypeAdapter

import stfm_pipeline
from stfm_pipeline import errors
from stfm_pipeline.datasets.formats.base import Form, Scene
from stfm_pipeline.errors import SourceError, StfmError
from stfm_pipeline.large import Chunks, Table, frames_of, is_large
from stfm_pipeline.settings import Settings

ASKED, ANSWER, FRAME, CELLS = "asked.json", "answer.json", "frame.arrow", "cells.arrow"


class Folder:
    """A folder that is there as long as anybody holds this."""

    def __init__(self) -> None:
        scratch = Settings().cache / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix="read-", dir=scratch))
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def read_apart(table: str, form: Form, files: dict[str, Path], scene: Scene) -> Table:
    """What `form.read` gives, with what it notes in `scene`; a reader that breaks is a `SourceError`."""
    place = Folder()
    try:
        return _read_apart(table, form, files, scene, place)
    except BaseException:
        # Whoever looks at the error holds on to everything that led to it.
        place.remove()
        raise


def _read_apart(table: str, form: Form, files: dict[str, Path], scene: Scene, place: Folder) -> Table:
    folder = place.path
    asked = {"form": form.model_dump(mode="json"), "table": table, "files": {k: str(v) for k, v in files.items()}}
    told = {k: v for k, v in asdict(scene).items() if k != "cells"}
    (folder / ASKED).write_text(json.dumps({**asked, "scene": told}))
    root = str(Path(stfm_pipeline.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", __name__, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode or not (folder / ANSWER).is_file():
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"code {done.returncode}"
        raise SourceError(
            f"{table}: the library that reads {', '.join(form.names())} broke on it",
            found=f"{how}: {last}",
            fix="the file is damaged; fetch or write it again",
        )
    answer = json.loads((folder / ANSWER).read_text())
    if "problem" in answer:
        raise _error(answer)
    for name, value in answer.items():
        setattr(scene, name, value)
    if (folder / CELLS).is_file():
        scene.cells = pl.read_ipc(folder / CELLS)
    return _table(place)


def _table(place: Folder) -> Table:
    """What was read, a few rows at a time where it is large."""
    import pyarrow as pa

    path = place.path / FRAME
    if not is_large((path.stat().st_size,), np.uint8):
        return pl.read_ipc(path)

    def frames() -> Iterator[pl.DataFrame]:
        # The folder stays while rows of it are asked for.
        with pa.OSFile(str(place.path / FRAME), "rb") as file, pa.ipc.open_file(file) as read:
            for i in range(read.num_record_batches):
                frame = pl.from_arrow(read.get_batch(i))
                assert isinstance(frame, pl.DataFrame)
                yield frame

    columns = list(pl.read_ipc_schema(path))
    return Chunks(pl.scan_ipc(path).select("time").collect()["time"], columns, frames)


def _error(answer: dict[str, str]) -> Exception:
    if answer["kind"] == "MemoryError":
        return MemoryError(answer["problem"])
    found: StfmError = getattr(errors, answer["kind"])(answer["problem"])
    found.args = (answer["text"],)
    return found


def main(folder: Path) -> None:
    """Read what is asked for in `folder`, and leave the table, or what is wrong with the file, beside it."""
    from stfm_pipeline.datasets.formats import Table, read_here

    asked = json.loads((folder / ASKED).read_text())
    scene = Scene(**asked["scene"])
    files = {name: Path(path) for name, path in asked["files"].items()}
    try:
        frame = read_here(asked["table"], TypeAdapter(Table).validate_python(asked["form"]), files, scene)
    except (StfmError, MemoryError) as error:
        problem = getattr(error, "problem", str(error))
        answer = {"kind": type(error).__name__, "problem": problem, "text": str(error)}
        (folder / ANSWER).write_text(json.dumps(answer))
        return
    _write(frame, folder / FRAME)
    if scene.cells is not None:
        scene.cells.write_ipc(folder / CELLS)
    noted = {k: getattr(scene, k) for k in ("entities", "listed", "columns", "rows")}
    (folder / ANSWER).write_text(json.dumps(noted))


def _write(table: Table, path: Path) -> None:
    import pyarrow as pa

    frames = (frame.to_arrow() for frame in frames_of(table))
    first = next(frames)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, first.schema) as out:
        for rows in chain([first], frames):
            out.write_table(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
