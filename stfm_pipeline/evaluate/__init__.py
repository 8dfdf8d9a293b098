"""One metric contract for every system: metrics, calibration, choice, report."""
