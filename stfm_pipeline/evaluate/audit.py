"""What a forecast cannot know: signs that it saw the targets, or that its steps are off by one.

Three measures, taken for our own systems as well, so that what is usual on a dataset stands beside what is not:

- alignment: the forecast of step h read as one of step h + k. An honest forecaster has a better one of that step, its
  own, so the other reading cannot fit the truth better. Only steps after the origin count; the channel with the
  largest gain speaks.
- surprises: correlation of the steps in the forecast's departure from climatology with those of the truth's, over the
  last half of the horizon. Nobody foresees nearly all of them.
- exact: the share of targets hit exactly, at the step of the horizon where it is largest, values that are common in the
  data (a count of 0) left out.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stfm_pipeline.evaluate.metrics import paired_bootstrap

LAGS = (-3, -2, -1, 1, 2, 3)
SHIFT_BEYOND = 0.05
FORESEEN = 0.9
EXACT_SHARE = 0.5
NEAR = 1e-5
FEW = 4


@dataclass(frozen=True)
class Finding:
    """The audit of one forecast; `shift` is the best other reading, `gain` how much better it fits (with interval)."""

    name: str
    shift: int | None
    gain: float | None
    low: float | None
    high: float | None
    surprises: float | None
    exact: float
    suspicions: tuple[str, ...]

    @property
    def suspect(self) -> bool:
        return bool(self.suspicions)


class Audit:
    """Sums of one contender over the windows of a set, in standardised units."""

    def __init__(self, windows: int, horizon: int, c: int) -> None:
        lags = [k for k in LAGS if abs(k) < horizon]
        self.moved = {k: np.zeros((windows, c)) for k in lags}
        self.own = {k: np.zeros((windows, c)) for k in lags}
        self.moments = np.zeros((6, c))
        self.hits, self.cells = np.zeros((horizon, c)), np.zeros((horizon, c))
        self._at = 0

    def add(
        self,
        forecast: Float[Tensor, "b h n c"],
        target: Float[Tensor, "b h n c"],
        observed: Bool[Tensor, "b h n c"],
        climate: Float[Tensor, "b h n c"],
        rare: Bool[Tensor, "b h n c"],
    ) -> None:
        """Add a batch, standardised; `climate` is the time-of-week forecast, `rare` leaves common targets out."""
        b, horizon = forecast.shape[:2]
        rows = slice(self._at, self._at + b)
        self._at += b
        for k in self.moved:
            there, here = _span(horizon, k), _span(horizon, -k)
            # A forecast may be lacking where its own target is; then neither reading counts.
            seen, truth = observed[:, there] & forecast[:, here].isfinite(), target[:, there]
            for sums, guess in ((self.moved, forecast[:, here]), (self.own, forecast[:, there])):
                error = torch.where(seen, guess - truth, 0.0).abs()
                sums[k][rows] = error.sum(dim=(1, 2), dtype=torch.float64).numpy()
        late = slice(max(0, horizon // 2 - 1), None)
        both = observed[:, late][:, 1:] & observed[:, late][:, :-1]
        x, y = ((v - climate)[:, late].diff(dim=1) for v in (forecast, target))
        x, y = (torch.where(both, v, 0.0).double() for v in (x, y))
        axes = (0, 1, 2)
        parts = (both.double(), x, y, x * x, y * y, x * y)
        self.moments += torch.stack([v.sum(dim=axes) for v in parts]).numpy()
        self.hits += (rare & ((forecast - target).abs() < NEAR)).sum(dim=(0, 2)).double().numpy()
        self.cells += rare.sum(dim=(0, 2)).double().numpy()

    def surprises(self) -> float | None:
        """The largest correlation over channels; None where nothing varies."""
        count, x, y, xx, yy, xy = self.moments
        n = np.maximum(count, 1)
        spread = (xx / n - (x / n) ** 2) * (yy / n - (y / n) ** 2)
        known = (count > 2) & (spread > 1e-12)
        if not known.any():
            return None
        return float(((xy / n - x * y / n**2)[known] / np.sqrt(spread[known])).max())

    def exact(self) -> Any:
        """Share of exact hits (h,), the largest over channels."""
        return (self.hits / np.maximum(self.cells, 1)).max(axis=1)

    def _gain(self, k: int, channel: int) -> float:
        moved, own = (float(sums[k][:, channel].sum()) for sums in (self.moved, self.own))
        return 1 - moved / own if own > 0 else 0.0 if moved == 0 else -np.inf

    def finding(self, name: str, block: int, usual: Any) -> Finding:
        """The verdict; `usual` (h,) is the largest share of exact hits of the baselines."""
        best: tuple[int, float, float, float] | None = None
        if self.moved:
            k, channel = max(itertools.product(self.moved, range(self.cells.shape[1])), key=lambda at: self._gain(*at))
            moved, own = (sums[k][:, channel, None] for sums in (self.moved, self.own))
            # A shift is plain enough to be seen in windows that are too few for blocks of a season.
            best = (k, *paired_bootstrap(moved, own, max(1, min(block, len(own) // FEW))))
        surprises, exact = self.surprises(), self.exact()
        suspicions = []
        if best is not None and best[2] > SHIFT_BEYOND:
            k = best[0]
            steps = f"{abs(k)} step{'s' if abs(k) > 1 else ''} {'later' if k > 0 else 'earlier'}"
            suspicions.append(f"fits the truth {steps} better than its own: it peeks, or its steps are off")
        if surprises is not None and surprises > FORESEEN:
            suspicions.append("foresees nearly every surprise: it saw the targets")
        far = exact > np.maximum(EXACT_SHARE, 2 * usual)
        if far.any():
            suspicions.append(f"hits the targets of step {int(far.argmax()) + 1} exactly: it saw them")
        shift, gain_, low_, high_ = best or (None, None, None, None)
        return Finding(name, shift, gain_, low_, high_, surprises, float(exact.max()), tuple(suspicions))


def _span(horizon: int, k: int) -> slice:
    """Steps of the horizon that are `k` after a step of the horizon."""
    return slice(k, None) if k > 0 else slice(None, horizon + k)
