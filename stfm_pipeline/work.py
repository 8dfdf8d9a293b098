"""Where trainings keep their checkpoints until they are published: `work/<dataset>/<stage>/<plan>-<seed>`."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from stfm_pipeline.settings import Settings


def folder(settings: Settings, dataset: str, stage: str, plan: str, seed: int) -> Path:
    """A seed's checkpoints; made if it is not there."""
    path = settings.root / "work" / dataset / stage / f"{plan}-{seed}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def clear(settings: Settings, dataset: str, stage: str, but: str | None = None) -> None:
    """Remove a stage's checkpoints, or those of other plans than `but`: nobody will go on from them."""
    above = settings.root / "work" / dataset / stage
    for path in above.glob("*"):
        if but is None or not path.name.startswith(f"{but}-"):
            shutil.rmtree(path, ignore_errors=True)
    for empty in (above, above.parent):
        with suppress(OSError):
            empty.rmdir()
