"""Spatio-temporal foundation models as a pipeline: raw data in, a registered and evaluated model out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stfm_pipeline.forecaster import Forecaster

__version__ = "0.1.0"
__all__ = ["__version__", "load_model"]


def load_model(uri: str) -> Forecaster:
    """Load a registered model, e.g. ``models:/nyc-airports@champion``; see `stfm_pipeline.registry.load_model`."""
    from stfm_pipeline.registry import load_model as load

    return load(uri)
