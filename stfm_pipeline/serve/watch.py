"""The model that answers, and the watch that puts another in its place when the alias moves."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from stfm_pipeline.errors import StfmError
from stfm_pipeline.forecaster import Forecaster
from stfm_pipeline.forecasts import Latest, latest
from stfm_pipeline.serve.metrics import Metrics
from stfm_pipeline.settings import Settings
from stfm_pipeline.windows import Problem

if TYPE_CHECKING:
    from stfm_pipeline.lake import Lake

log = logging.getLogger("stfm")
AGAIN = 60.0


@dataclass(frozen=True)
class Served:
    """A version of a registered model that has forecast once."""

    name: str
    version: int
    run_id: str
    forecaster: Forecaster

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What every answer says about where it comes from."""
        lineage = self.forecaster.lineage
        return {
            "model": self.name,
            "version": self.version,
            "run_id": self.run_id,
            "system": self.forecaster.system,
            "fingerprint": lineage["fingerprint"],
            "tables": {stage: facts["data_version"] for stage, facts in lineage["tables"].items()},
        }


def first_frame(problem: Problem) -> pl.DataFrame:
    """A frame to warm a model up with: one entity at its mean, up to now."""
    now = int(time.time() * 1e6) // problem.step_us * problem.step_us
    times = now + np.arange(-problem.look_back, 0) * problem.step_us
    mean = problem.tensors["mean"][0].tolist()
    return pl.DataFrame(
        {
            "unique_id": [problem.entities[0]] * len(times),
            "ds": pl.Series(times).cast(pl.Datetime("us", "UTC")),
            **{c: [mean[k]] * len(times) for k, c in enumerate(problem.channels)},
        }
    )


class Watch:
    """Looks at the alias, and at the lake where there is one, every few seconds in a thread of its own.

    Who reads `served` or `latest` gets one that is whole, and keeps it until it is done. What fails leaves both as they
    are: the reason is in `troubles`, in the log and in the metrics.
    """

    def __init__(self, name: str, alias: str, lake: Lake, settings: Settings, metrics: Metrics, every: float) -> None:
        self.name, self.alias, self.every = name, alias, every
        self.lake, self.settings, self.metrics = lake, settings, metrics
        self.served: Served | None = None
        self.latest: tuple[Served, Latest] | None = None
        self.troubles: dict[str, str] = {}
        self._refused: tuple[int, float] | None = None
        self._scored: object = None
        self._client: Any = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    @property
    def data_age(self) -> float:
        """Seconds since the last observation in the lake."""
        return time.time() - self.latest[1].origin.timestamp() if self.latest is not None else float("nan")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self.every)

    def look(self) -> None:
        """Look once."""
        try:
            self._look_at_alias()
        except Exception as error:
            self.metrics.watch_errors.inc()
            self._trouble("registry", error)
        try:
            self._look_at_lake()
        except Exception as error:
            self._trouble("lake", error)

    def _look_at_alias(self) -> None:
        from stfm_pipeline.registry import connect

        # One client for good: a store that is gone must not be made anew.
        self._client = self._client or connect(self.settings)
        found = self._client.get_model_version_by_alias(self.name, self.alias)
        self.troubles.pop("registry", None)
        number = int(found.version)
        if self.served is not None and self.served.version == number:
            self.troubles.pop("model", None)
            self._refused = None
            return
        if self._refused is not None and self._refused[0] == number and time.monotonic() < self._refused[1] + AGAIN:
            return
        try:
            new = self._load(number, str(found.run_id))
        except Exception as error:
            self._refused = (number, time.monotonic())
            self.metrics.failed_swaps.inc()
            self._trouble("model", error, f"version {number} of {self.name} cannot serve")
            return
        self._put(new)

    def _load(self, number: int, run_id: str) -> Served:
        from stfm_pipeline.registry import load_model

        forecaster = load_model(f"models:/{self.name}/{number}", self.settings)
        new = Served(self.name, number, run_id, forecaster)
        forecaster.predict(first_frame(forecaster.problem))
        assert new.facts
        return new

    def _put(self, new: Served) -> None:
        old, self.served = self.served, new
        self._refused = None
        self.troubles.pop("model", None)
        self.metrics.model.clear()
        self.metrics.model.labels(new.name, str(new.version), new.run_id, new.forecaster.system).set(1)
        if old is not None:
            self.metrics.swaps.inc()
        was = f" instead of version {old.version}" if old is not None else ""
        log.info("%s: version %d (%s) serves%s", self.name, new.version, new.forecaster.system, was)

    def _look_at_lake(self) -> None:
        served = self.served
        if served is None:
            return
        # The last table that is published; its fingerprint moves with all that it was made from, its own data may not.
        stage = self.lake.stage(self.name, "enriched")
        current = (served.version, stage.fingerprint if stage is not None else None)
        if stage is not None and current != self._scored:
            found = latest(served.forecaster, self.name, self.lake, self.settings)
            self.latest = (served, found)
            log.info("%s: forecast from %s on", self.name, found.origin.isoformat())
        self._scored = current
        self.troubles.pop("lake", None)

    def _trouble(self, what: str, error: Exception, problem: str | None = None) -> None:
        text = str(error) if isinstance(error, StfmError) else f"{type(error).__name__}: {error}".splitlines()[0]
        text = f"{problem}: {text}" if problem else text
        if self.troubles.get(what) != text:
            serving = self.served.version if self.served is not None else None
            still = f"; version {serving} goes on serving" if serving is not None else "; nothing serves yet"
            log.warning("%s: %s%s", what, text, still)
        self.troubles[what] = text
