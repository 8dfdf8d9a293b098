"""Drift: whether recent data and the champion's recent errors are still like those they are compared with."""

from stfm_pipeline.drift.run import measure_drift

__all__ = ["measure_drift"]
