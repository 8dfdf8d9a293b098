"""enriched -> trained systems -> evaluation -> champion: the road's second half, each step published like a stage."""

from stfm_pipeline.experiment.decision import champion_is_stale, crown
from stfm_pipeline.experiment.evaluation import entries, evaluate_dataset, evaluated_already, evaluation_plan
from stfm_pipeline.experiment.sweep import sweep
from stfm_pipeline.experiment.training import (
    TRAINING_CODE,
    Plan,
    fresh,
    stage_of,
    stale_systems,
    train_system,
    trained_systems,
    training_plan,
)

__all__ = [
    "TRAINING_CODE",
    "Plan",
    "champion_is_stale",
    "crown",
    "entries",
    "evaluate_dataset",
    "evaluated_already",
    "evaluation_plan",
    "fresh",
    "stage_of",
    "stale_systems",
    "sweep",
    "train_system",
    "trained_systems",
    "training_plan",
]
