"""Who leads on val, and whether the leader may become champion on gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stfm_pipeline.evaluate.metrics import Array, Sums, block_bootstrap

MIN_DISJOINT_HORIZONS = 20
MIN_DISJOINT_WINDOWS = 200


def val_scores(mae: Mapping[str, Array], baselines: set[str]) -> dict[str, float]:
    """Mean over channels of MAE / best-baseline MAE; below 1 beats every baseline on average."""
    best = np.min([mae[b] for b in baselines], axis=0)
    return {name: float((values / best).mean()) for name, values in mae.items()}


def too_short_to_rank(
    steps: int, horizon: int, series: int, season: int = 1, clock: int = 0, steps_per_day: int = 1
) -> str | None:
    """Why a test part is too short to rank anybody, or None.

    It must hold twenty disjoint horizons, two hundred disjoint windows over all its series, and one longest season.
    `clock` is the length of the whole dataset in steps.
    """
    disjoint = steps // horizon
    if steps < season:
        span, test = (f"{n / steps_per_day:.3g} days" for n in (clock, steps))
        span = "one week" if clock == 7 * steps_per_day else span
        return f"{span}, {test.replace('days', 'test days')}, not a benchmark: test is shorter than one season"
    if disjoint >= MIN_DISJOINT_HORIZONS and disjoint * series >= MIN_DISJOINT_WINDOWS:
        return None
    return (
        f"test holds {disjoint} disjoint horizons of {horizon} steps over {series} series; ranking asks for at least "
        f"{MIN_DISJOINT_HORIZONS} horizons and {MIN_DISJOINT_WINDOWS} windows"
    )


@dataclass(frozen=True)
class Decision:
    """Whether a candidate may take the champion's place, why, and the margins it was decided on."""

    promote: bool
    reason: str
    margins: list[dict[str, Any]] = field(default_factory=list)


def decide(candidate: Sums, rivals: Mapping[str, Sums], block: int) -> Decision:
    """Promote only if the candidate beats every rival: the 95 % interval of its margin lies above 0.

    The margin is the relative improvement in MAE, averaged over channels, on windows that chose neither.
    """
    margins: list[dict[str, Any]] = []
    for name, theirs in rivals.items():
        margin, low, high = block_bootstrap(candidate, theirs, block)
        margins.append({"rival": name, "margin": margin, "low": low, "high": high})
    lost = [m for m in margins if m["low"] <= 0]
    if lost:
        worst = min(lost, key=lambda m: float(m["low"]))
        reason = (
            f"not better than {worst['rival']} beyond doubt: margin {worst['margin']:+.1%}, "
            f"95 % interval {worst['low']:+.1%} to {worst['high']:+.1%}"
        )
        return Decision(False, reason, margins)
    closest = min(margins, key=lambda m: float(m["margin"]))
    reason = (
        f"beats every rival on gate; the closest is {closest['rival']}: margin {closest['margin']:+.1%}, "
        f"95 % interval {closest['low']:+.1%} to {closest['high']:+.1%}"
    )
    return Decision(True, reason, margins)
