"""Where things live. Everything hangs off `$STFM_HOME` and each part can be pointed elsewhere by configuration."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


def project_root(start: Path | None = None) -> Path | None:
    """The nearest folder at or above `start` (default: the current one) that holds a `workspace.yaml`."""
    here = (start or Path.cwd()).resolve()
    return next((p for p in (here, *here.parents) if (p / "workspace.yaml").is_file()), None)


class Settings(BaseSettings):
    """Read from the environment: `STFM_HOME`, `STFM_LAKE`, `STFM_DATA`, `STFM_OFFLINE`, `MLFLOW_TRACKING_URI`."""

    model_config = SettingsConfigDict(env_prefix="STFM_", extra="ignore")

    home: Path | None = None
    lake: str | None = None
    artifacts: str | None = None
    data: Path | None = None
    offline: bool = False

    @cached_property
    def root(self) -> Path:
        if self.home is not None:
            return self.home.expanduser().resolve()
        return (project_root() or Path.cwd().resolve()) / ".stfm"

    @property
    def lake_uri(self) -> str:
        return self.lake or str(self.root / "lake")

    @property
    def tracking_uri(self) -> str:
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def artifact_uri(self) -> str:
        return self.artifacts or str(self.root / "artifacts")

    @property
    def dagster_home(self) -> Path:
        return Path(os.environ.get("DAGSTER_HOME") or self.root / "dagster")

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def landing(self) -> Path:
        return self.root / "landing"

    def lock(self, owner: str, what: str) -> Path:
        """The lock file of those who write `what` of a dataset, or of the sources."""
        return self.root / "locks" / f"{owner}.{what}"
