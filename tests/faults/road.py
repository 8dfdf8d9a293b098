"""The whole road of the synthetic dataset as a process that can be hurt.

`python road.py POINT N` kills itself where POINT is reached for the n-th time; `python road.py bytes N` lets no file
grow beyond so many bytes, as a full disk would not.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
from collections import Counter

from fixtures.synthetic import make_dataset

from stfm_pipeline import decision, points, scoring, training
from stfm_pipeline.datasets.catalog import register
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS

SYSTEMS = ("last-value", "dlinear")


def whole_road() -> None:
    register(make_dataset())
    settings = Settings()
    lake = Lake(settings.lake_uri)
    for stage in STEPS:
        assert materialize("synthetic", stage, lake, settings).stage is not None
    for system in SYSTEMS:
        assert training.train_system("synthetic", system, lake, settings, progress=False).stage is not None
    assert scoring.evaluate_dataset("synthetic", lake, settings).stage is not None
    assert decision.crown("synthetic", lake, settings).stage is not None


def die_at(point: str, times: int) -> None:
    """SIGKILL at the n-th time that a point, or with `any` whichever, is reached; what was reached is printed."""
    seen: Counter[str] = Counter()

    def hook(name: str) -> None:
        seen.update([name, "any"])
        sys.stdout.write(f"{name}\n")
        sys.stdout.flush()
        if seen[point] == times:
            os.kill(os.getpid(), signal.SIGKILL)

    points.hooks.append(hook)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if sys.argv[1:2] == ["bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    elif len(sys.argv) > 1:
        die_at(sys.argv[1], int(sys.argv[2]))
    whole_road()
