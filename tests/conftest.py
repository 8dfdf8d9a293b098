"""Shared fixtures: a home of its own for every test, and a synthetic dataset at each stage of the road."""

from __future__ import annotations

import os

# Before anything imports torch: one thread is fastest at this size, and results do not depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"

import shutil
from collections.abc import Callable
from pathlib import Path

from jaxtyping import install_import_hook

# Shapes in annotations are checked in tests and free in production.
SHAPED = ("windows", "tasks", "backbones", "systems", "forecaster", "evaluate.metrics", "evaluate.calibration")
install_import_hook([f"stfm_pipeline.{name}" for name in SHAPED], "beartype.beartype")

import pytest
from fixtures import gridded
from fixtures.synthetic import make_dataset

from stfm_pipeline.datasets import catalog
from stfm_pipeline.datasets.spec import Dataset
from stfm_pipeline.lake import Lake
from stfm_pipeline.road import materialize
from stfm_pipeline.settings import Settings
from stfm_pipeline.steps import STEPS


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing a test does leaves its own folder."""
    folder = tmp_path / "home"
    monkeypatch.setenv("STFM_HOME", str(folder))
    for name in ("STFM_DATA", "STFM_LAKE", "STFM_OFFLINE", "STFM_DEBUG", "MLFLOW_TRACKING_URI", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def settings(home: Path) -> Settings:
    return Settings()


@pytest.fixture
def lake(settings: Settings) -> Lake:
    return Lake(settings.lake_uri)


@pytest.fixture
def add_dataset(monkeypatch: pytest.MonkeyPatch) -> Callable[[Dataset], Dataset]:
    """Makes a dataset known for the length of a test."""
    known: dict[str, Dataset] = {}
    monkeypatch.setattr(catalog, "_registered", known)

    def add(dataset: Dataset) -> Dataset:
        catalog.register(dataset)
        return dataset

    return add


@pytest.fixture
def synthetic(add_dataset: Callable[[Dataset], Dataset]) -> Dataset:
    return add_dataset(make_dataset())


@pytest.fixture(scope="session")
def enriched_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose lake holds the synthetic dataset down to `enriched`; made once, only ever copied."""
    return _down_the_road(make_dataset(), tmp_path_factory.mktemp("enriched"))


@pytest.fixture(scope="session")
def enriched_grid_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for the synthetic grid."""
    return _down_the_road(gridded.make_dataset(), tmp_path_factory.mktemp("gridded"))


def _down_the_road(dataset: Dataset, folder: Path) -> Path:
    settings = Settings(home=folder)
    catalog.register(dataset)
    try:
        for stage in STEPS:
            outcome = materialize(dataset.spec.name, stage, Lake(str(settings.root / "lake")), settings)
            assert outcome.stage is not None, outcome.checks
    finally:
        catalog._registered.pop(dataset.spec.name, None)
    return settings.root


@pytest.fixture
def enriched(enriched_home: Path, synthetic: Dataset, lake: Lake) -> Lake:
    """A lake of the test's own in which the synthetic dataset has come down the data road."""
    shutil.copytree(enriched_home / "lake", lake.uri)
    return lake


@pytest.fixture
def enriched_grid(enriched_grid_home: Path, add_dataset: Callable[[Dataset], Dataset], lake: Lake) -> Lake:
    """A lake of the test's own in which the synthetic grid has come down the data road."""
    add_dataset(gridded.make_dataset())
    shutil.copytree(enriched_grid_home / "lake", lake.uri)
    return lake


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the synthetic dataset has a champion; made once, treat it as read-only."""
    from stfm_pipeline import decision, scoring, training

    folder = tmp_path_factory.mktemp("trained")
    before = {k: os.environ.get(k) for k in ("STFM_HOME", "MLFLOW_TRACKING_URI")}
    os.environ["STFM_HOME"] = str(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    catalog.register(make_dataset("trained"))
    try:
        settings = Settings()
        store = Lake(settings.lake_uri)
        for stage in STEPS:
            materialize("trained", stage, store, settings)
        for system in ("constant", "historical-median", "seasonal-naive", "dlinear", "stid"):
            training.train_system("trained", system, store, settings, progress=False)
        scoring.evaluate_dataset("trained", store, settings)
        decision.crown("trained", store, settings)
    finally:
        catalog._registered.pop("trained", None)
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)
    return folder


@pytest.fixture
def trained(trained_home: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Settings, Lake]:
    """Settings and lake of the home that has a champion for the dataset `trained`."""
    monkeypatch.setenv("STFM_HOME", str(trained_home))
    monkeypatch.setattr(catalog, "_registered", {"trained": make_dataset("trained")})
    found = Settings()
    return found, Lake(found.lake_uri)
