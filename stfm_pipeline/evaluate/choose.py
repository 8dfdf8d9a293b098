"""Who leads on val, and whether the leader may become champion on gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stfm_pipeline.evaluate.metrics import DRAWS, Array, Sums, block_bootstrap, observed_blocks

MIN_DISJOINT_HORIZONS = 20
MIN_DISJOINT_WINDOWS = 200
MIN_BLOCKS = 3
LEAST = 0.005
CAPACITY, REFILL, SHARE = 0.02, 0.03, 0.25
DAYS_OF_A_YEAR = 365.25


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
    """Whether a candidate may take the champion's place, why, and the margins and numbers it was decided on.

    `level` is the chance of error that was spent: 0 where nothing was decided. Lengths in windows.
    """

    promote: bool
    reason: str
    margins: list[dict[str, Any]] = field(default_factory=list)
    level: float = 0.0
    block: int = 0
    blocks: float = 0.0
    draws: int = 0


def allowance(left: float | None, days: float) -> float:
    """What may be spent now, given what the last decision left and the days since (None: there was none).

    Decisions that come again and again would promote by chance sooner or later. So the chance of error is kept in a
    bucket: it holds at most `CAPACITY`, and `REFILL` a year flows in. Each decision takes the `SHARE` of what is there.
    In any year no more than CAPACITY + REFILL = 5 % can be taken, however often is decided, and it never runs dry.
    """
    return CAPACITY if left is None else min(CAPACITY, left + REFILL * max(days, 0.0) / DAYS_OF_A_YEAR)


def decide(candidate: Sums, rivals: Mapping[str, Sums], block: int, level: float = SHARE * CAPACITY) -> Decision:
    """Promote only if the candidate beats every rival: the lower bound of each margin, at `level`, is above `LEAST`.

    The margin is the relative improvement in MAE, averaged over channels, on windows that chose neither. Another seed
    of the same model can be better for weeks on end, longer than any block, but not by much: less than half a percent
    is no reason to change the champion (docs/retraining.md). To be promoted wrongly a candidate has to pass the very
    rival that it is no better than, so the level needs no correction for the number of rivals (an intersection-union
    test, Berger 1982). With fewer than `MIN_BLOCKS` blocks of observed cells nothing is decided.
    """
    blocks = observed_blocks(candidate.window_count, block)
    if blocks < MIN_BLOCKS:
        fit = candidate.windows / block
        missing = f" ({fit:.1f} fit into it, but cells are missing)" if fit - blocks > 0.05 else ""
        reason = (
            f"not decided: gate holds {blocks:.1f} blocks of {block} windows{missing}, a margin needs at least "
            f"{MIN_BLOCKS}: wait for more data, or give gate a larger share of the split"
        )
        return Decision(False, reason, [], 0.0, block, blocks)
    margins: list[dict[str, Any]] = []
    for name, theirs in rivals.items():
        margin, low, high = block_bootstrap(candidate, theirs, block, level=level)
        margins.append({"rival": name, "margin": margin, "low": low, "high": high})
    lost = [m for m in margins if m["low"] <= LEAST]
    worst = min(lost or margins, key=lambda m: float(m["low"] if lost else m["margin"]))
    interval = f"{100 * (1 - 2 * level):.4g} % interval {worst['low']:+.1%} to {worst['high']:+.1%}"
    numbers = f"margin {worst['margin']:+.1%}, {interval}"
    reason = (
        f"not better than {worst['rival']} by {LEAST:.1%} beyond doubt: {numbers}"
        if lost
        else f"beats every rival on gate; the closest is {worst['rival']}: {numbers}"
    )
    return Decision(not lost, reason, margins, level, block, blocks, DRAWS)
