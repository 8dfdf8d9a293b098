"""One process at a time: locks that end with the process that holds them."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("stfm")


@contextmanager
def alone(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock file at `path`; who comes second waits, and says so.

    The lock belongs to the open file, so that it never outlives a process, and it keeps threads apart as well. Its
    file stays: removing it would let two hold two files of one name. Processes on other machines are not kept out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting: another process is %s", doing)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
