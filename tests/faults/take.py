"""Taking in what has landed as a process that dies just before the n-th change it makes in the landing folders.

`python take.py N`; `python take.py` only prints the changes.
"""

from __future__ import annotations

import os
import signal
import sys

from fixtures.changes import changes

from stfm_pipeline import landing
from stfm_pipeline.lake import Lake
from stfm_pipeline.settings import Settings

if __name__ == "__main__":
    settings, seen = Settings(), 0

    def die(change: str) -> None:
        global seen
        seen += 1
        sys.stdout.write(f"{change}\n")
        sys.stdout.flush()
        if sys.argv[1:] == [str(seen)]:
            os.kill(os.getpid(), signal.SIGKILL)

    with changes(settings.landing, die):
        landing.take_in(Lake(settings.lake_uri), settings)
