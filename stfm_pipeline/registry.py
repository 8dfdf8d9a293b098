"""Models in MLflow: logged without pickle, registered by dataset, promoted by alias, loaded in one line."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stfm_pipeline.alone import alone
from stfm_pipeline.errors import StfmError, UsageError
from stfm_pipeline.evaluate.choose import Decision, allowance
from stfm_pipeline.forecaster import Forecaster
from stfm_pipeline.points import reached
from stfm_pipeline.settings import Settings

log = logging.getLogger("stfm")
CHAMPION, CHALLENGER = "champion", "challenger"
ARTIFACT = "forecaster"
HISTORY = "decision_"
REQUIREMENTS = (
    "mlflow",
    "torch",
    "numpy",
    "pandas",
    "pyarrow",
    "polars",
    "pydantic",
    "pydantic-settings",
    "pyyaml",
    "safetensors",
    "dataframely",
    "jaxtyping",
    "holidays",
    "tzdata",
)


def connect(settings: Settings) -> Any:
    """The MLflow client on the configured store; pickled models are refused from here on."""
    import os

    import mlflow

    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    if settings.tracking_uri.startswith("sqlite:///"):
        _make_store(Path(settings.tracking_uri.removeprefix("sqlite:///")))
    _track(settings.tracking_uri)
    return mlflow.MlflowClient()


def _track(uri: str) -> None:
    """Set MLflow's store without its mark in the environment, which would outrank every later home."""
    import os

    import mlflow

    given = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    if given is not None:
        os.environ["MLFLOW_TRACKING_URI"] = given


def _make_store(path: Path) -> None:
    """Create the database whole or not at all: one that was left in the middle of its creation is of no use again."""
    import mlflow

    if path.exists():
        return
    with alone(path.with_name(f".{path.name}.lock"), "creating MLflow's database"):
        if path.exists():
            return
        scratch = path.with_name(f".{path.name}.part")
        scratch.unlink(missing_ok=True)
        _track(f"sqlite:///{scratch}")
        mlflow.MlflowClient().search_experiments(max_results=1)
        scratch.replace(path)


def _experiment(client: Any, settings: Settings, dataset: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(dataset)
    if found is not None:
        return str(found.experiment_id)
    location = f"{settings.artifact_uri.rstrip('/')}/{dataset}"
    if "://" not in location:
        location = Path(location).as_uri()
    try:
        return str(client.create_experiment(dataset, artifact_location=location))
    except MlflowException:
        # Another process may have created it in between.
        again = client.get_experiment_by_name(dataset)
        if again is None:
            raise
        return str(again.experiment_id)


@contextmanager
def run(
    settings: Settings, dataset: str, name: str, tags: dict[str, str], digest: str | None = None
) -> Iterator[tuple[Any, str]]:
    """An MLflow run in the dataset's experiment, ended as failed if the block raises; yields (client, run id)."""
    import mlflow

    client = connect(settings)
    with mlflow.start_run(
        experiment_id=_experiment(client, settings, dataset), run_name=name, tags={"dataset": dataset, **tags}
    ) as active:
        if digest is not None:
            from mlflow.entities import Dataset, DatasetInput

            table = json.dumps({"uri": f"{settings.lake_uri}/{dataset}/enriched"})
            source = DatasetInput(Dataset(dataset, digest, source_type="delta", source=table))
            client.log_inputs(active.info.run_id, [source])
        yield client, active.info.run_id


def log_forecaster(forecaster: Forecaster, example: Any) -> str:
    """Log a forecaster into the active run as a pyfunc model; returns its `models:/` URI."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import ColSpec

    from stfm_pipeline import served_model

    problem = forecaster.problem
    bounds = [f"{c}_q{level:g}" for c in problem.channels for level in forecaster.levels]
    signature = ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "unique_id"),
                ColSpec(_any(), "ds", required=False),
                *(ColSpec(DataType.double, c) for c in problem.channels),
                *(ColSpec(DataType.double, c, required=False) for c in (*problem.past, *problem.ahead)),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(DataType.string, "unique_id"),
                ColSpec(_any(), "ds", required=False),
                *(ColSpec(DataType.double, c) for c in (*problem.channels, *bounds)),
            ]
        ),
        params=ParamSchema([ParamSpec("zone", DataType.string, "")]),
    )
    with tempfile.TemporaryDirectory() as folder:
        saved = forecaster.save(Path(folder) / ARTIFACT)
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=served_model.__file__,
            artifacts={ARTIFACT: str(saved)},
            code_paths=[str(Path(served_model.__file__).parent)],
            pip_requirements=requirements(),
            signature=signature,
            input_example=example,
            metadata={"licence": forecaster.facts.get("licence"), "system": forecaster.system},
        )
    reached("artifact")
    return str(info.model_uri)


def _any() -> Any:
    """Times arrive as text over HTTP and as zoned datetimes in Python; the model checks them itself."""
    from mlflow.types.schema import AnyType

    return AnyType()  # type: ignore[no-untyped-call]


def requirements() -> list[str]:
    """What a model needs to forecast, pinned to what it was made with."""
    return [f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS]


def load_model(uri: str, settings: Settings | None = None) -> Forecaster:
    """A forecaster from MLflow, e.g. `models:/nyc-airports@champion`. Nothing is unpickled."""
    import mlflow

    connect(settings or Settings())
    with tempfile.TemporaryDirectory(prefix="stfm-model-") as scratch:
        try:
            folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch))
        except Exception as error:
            raise StfmError(
                f"no model at '{uri}'",
                expected="a URI such as models:/nyc-airports@champion",
                found=f"{str(error).splitlines()[0]} (tracking: {mlflow.get_tracking_uri()})",
                fix="`stfm models list` shows what is registered; `MLFLOW_TRACKING_URI` says where to look",
            ) from error
        return Forecaster.load(folder / "artifacts" / ARTIFACT)


def register(settings: Settings, dataset: str, model_uri: str, run_id: str, tags: dict[str, str]) -> int:
    """Register a logged model as a new version of the dataset's registered model; a run is registered once."""
    client = connect(settings)
    if not client.search_registered_models(f"name='{dataset}'"):
        client.create_registered_model(dataset, tags={"dataset": dataset, "licence": tags.get("licence", "")})
    for existing in client.search_model_versions(f"name='{dataset}'"):
        if existing.run_id == run_id:
            return int(existing.version)
    # A tracking server takes a logged model as a source only beside its id.
    model = model_uri.removeprefix("models:/")
    made = client.create_model_version(dataset, source=model_uri, run_id=run_id, tags=tags, model_id=model)
    reached("register")
    return int(made.version)


def champion_version(settings: Settings, dataset: str, alias: str = CHAMPION) -> Any | None:
    """The version an alias points to, or None; raises where MLflow cannot say."""
    client = connect(settings)
    models = client.search_registered_models(f"name='{dataset}'")
    number = models[0].aliases.get(alias) if models else None
    return client.get_model_version(dataset, str(number)) if number is not None else None


def decisions(settings: Settings, dataset: str) -> list[dict[str, Any]]:
    """Every change of the crown and every refusal, newest first: decided on gate, by hand, or rolled back."""
    found = connect(settings).search_registered_models(f"name='{dataset}'")
    rows = [json.loads(v) for m in found for k, v in m.tags.items() if k.startswith(HISTORY)]
    return sorted(rows, key=lambda r: -int(r["number"]))


def allowed(history: list[dict[str, Any]], until: str) -> float:
    """The chance of error there is for decisions on data up to `until`: see `choose.allowance`.

    Time since the last decision passes by the clock or by the data, whichever is faster.
    """
    last = next((d for d in history if d.get("left") is not None), None)
    if last is None:
        return allowance(None, 0)
    by_clock = datetime.now(UTC) - datetime.fromisoformat(last["decided_at"])
    by_data = datetime.fromisoformat(until) - datetime.fromisoformat(last["until"])
    return allowance(float(last["left"]), max(by_clock, by_data).total_seconds() / 86400)


def apply_decision(
    settings: Settings, dataset: str, number: int, decision: Decision, kind: str = "decided", **known: Any
) -> dict[str, Any]:
    """Write the decision on the version and into the history, then move the alias: champion, or challenger if refused.

    Evidence that was decided on before makes no new entry, so that a crash in between costs nothing: what the newest
    entry says is done again. An older entry moves nothing, for the crown has changed since. Returns the entry.
    """
    client = connect(settings)
    history = decisions(settings, dataset)
    evidence = known.get("evidence")
    record = next((d for d in history if evidence is not None and d.get("evidence") == evidence), None)
    if record is None:
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        place = {"number": 1 + max((int(d["number"]) for d in history), default=0), "kind": kind, "version": number}
        record = {**place, **asdict(decision), **known, "decided_at": stamp}
        client.set_registered_model_tag(dataset, f"{HISTORY}{record['number']:06d}", json.dumps(record))
    elif record is not history[0]:
        log.info("%s: decided on before, entry %d; %s since", dataset, record["number"], history[0]["kind"])
        return record
    client.set_model_version_tag(dataset, number, "decision", json.dumps(record))
    if decision.promote:
        _crown(client, dataset, number, record["decided_at"])
    else:
        client.set_registered_model_alias(dataset, CHALLENGER, str(number))
        reached("alias")
    return record


def _crown(client: Any, dataset: str, number: int, stamp: str) -> None:
    client.set_model_version_tag(dataset, number, "crowned_at", stamp)
    client.set_registered_model_alias(dataset, CHAMPION, str(number))
    reached("alias")
    model = client.get_registered_model(dataset)
    if str(model.aliases.get(CHALLENGER)) == str(number):
        client.delete_registered_model_alias(dataset, CHALLENGER)


def versions(settings: Settings, dataset: str | None = None) -> list[dict[str, Any]]:
    """Registered versions, newest first, with aliases, system, licence and decision."""
    client = connect(settings)
    wanted = f"name='{dataset}'" if dataset else None
    out = []
    for model in client.search_registered_models(wanted):
        aliases: dict[str, list[str]] = {}
        for alias, number in model.aliases.items():
            aliases.setdefault(str(number), []).append(alias)
        for v in client.search_model_versions(f"name='{model.name}'"):
            decision = json.loads(v.tags.get("decision", "null"))
            out.append(
                {
                    "name": model.name,
                    "version": int(v.version),
                    "aliases": aliases.get(str(v.version), []),
                    "system": v.tags.get("system"),
                    "started": v.tags.get("started"),
                    "licence": v.tags.get("licence"),
                    "uri": f"models:/{model.name}/{v.version}",
                    "run_id": v.run_id,
                    "crowned_at": v.tags.get("crowned_at"),
                    "decision": decision,
                }
            )
    return sorted(out, key=lambda row: (row["name"], -row["version"]))


def lineages(settings: Settings, dataset: str) -> list[dict[str, Any]]:
    """What each registered version of a dataset was made from."""
    import mlflow

    out = []
    for row in versions(settings, dataset):
        path = f"{row['uri']}/artifacts/{ARTIFACT}/lineage.json"
        with tempfile.TemporaryDirectory() as folder:
            found = mlflow.artifacts.download_artifacts(artifact_uri=path, dst_path=folder)
            out.append(json.loads(Path(found).read_text()))
    return out


def show(settings: Settings, dataset: str, number: int | None = None) -> dict[str, Any]:
    """One version (default: the champion, else the newest); an unknown one is a `UsageError`."""
    rows = versions(settings, dataset)
    if not rows:
        raise UsageError(f"no model is registered for '{dataset}'", fix=f"run `stfm run {dataset}`")
    if number is None:
        return next((r for r in rows if CHAMPION in r["aliases"]), rows[0])
    found = next((r for r in rows if r["version"] == number), None)
    if found is None:
        raise UsageError(f"'{dataset}' has no version {number}", expected=", ".join(str(r["version"]) for r in rows))
    return found


def promote(settings: Settings, dataset: str, number: int) -> dict[str, Any]:
    """Make a version champion by hand; the decision says so."""
    show(settings, dataset, number)
    with alone(settings.lock(dataset, CHAMPION), f"deciding on the champion of {dataset}"):
        apply_decision(settings, dataset, number, Decision(True, "promoted by hand"), "by hand")
    return show(settings, dataset, number)


def rollback(settings: Settings, dataset: str) -> dict[str, Any]:
    """Give the crown back to the version that wore it before the present champion."""
    with alone(settings.lock(dataset, CHAMPION), f"deciding on the champion of {dataset}"):
        history, now = decisions(settings, dataset), champion_version(settings, dataset)
        worn: list[int] = []
        for row in reversed(history):
            if row["kind"] == "rollback":
                worn = worn[:-1]
            elif row["promote"] and worn[-1:] != [row["version"]]:
                worn.append(row["version"])
        if history and now is not None and history[0]["kind"] == "rollback" and int(now.version) != worn[-1]:
            # One that was written down and then cut short; to write another would go back by two.
            number = worn[-1]
            _crown(connect(settings), dataset, number, history[0]["decided_at"])
        elif len(worn) < 2:
            raise UsageError(
                f"'{dataset}' has no earlier champion to roll back to", fix=f"`stfm models decisions {dataset}`"
            )
        else:
            number = worn[-2]
            decision = Decision(True, f"rolled back from version {worn[-1]}")
            apply_decision(settings, dataset, number, decision, "rollback")
    return show(settings, dataset, number)
