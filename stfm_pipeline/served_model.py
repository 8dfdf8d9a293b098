"""The model as MLflow runs it: this file is its code ("models from code"), the saved forecaster its only artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

ARTIFACT = "forecaster"


class ServedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """Long frame in, long frame out; `params` may hold `zone` for naive times."""

    def load_context(self, context: Any) -> None:
        from stfm_pipeline.forecaster import Forecaster

        self.forecaster = Forecaster.load(Path(context.artifacts[ARTIFACT]))

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        zone = (params or {}).get("zone") or None
        forecast: pd.DataFrame = self.forecaster.predict(model_input, zone=zone)
        return forecast


mlflow.models.set_model(ServedModel())
