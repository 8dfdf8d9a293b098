"""What made a generated dataset, and the best that anybody can forecast of it.

Shapes: `n` entity, `m` state, `h` horizon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
OPTIMUM = "the optimum"
"""What stands in tables for the best forecast; no system can be called so."""
MEAN_ABS = float(np.sqrt(2 / np.pi))
"""Mean absolute value of a standard normal variable."""
DIGITS = 7
SETTLED = 1e-10
DOUBLINGS = 12
"""The covariance of a state that has gone on for 2^12 steps is that of one that always has."""
CLAIM = (
    "exact: the noise is Gaussian with a known covariance and a window shows the whole state, so the conditional mean "
    "is the best forecast of all, and its error has a known standard deviation at every step and entity"
)


class Truth(Protocol):
    """What is known of the best forecast: scores by channel, MAE and RMSE by step and on average, and the claim."""

    @property
    def claim(self) -> str: ...

    def optimum(self, horizon: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Show:
    """Where a window shows n numbers of the state: `column` of measured side information, or None for the signal less
    its level and cycle, `back` steps before the last one.
    """

    column: str | None = None
    back: int = 0


@dataclass(frozen=True)
class LinearGaussian:
    """Level (n,) + cycle (steps of a day in UTC, n) + the first n of a state that goes on as F s + e, e ~ N(0, Q).

    `transition` F and `noise` Q are (m, m); `shown` says of every n numbers of the state in turn where they are seen.
    """

    channel: str
    transition: Array
    noise: Array
    level: Array
    cycle: Array
    shown: tuple[Show, ...]
    claim: str = CLAIM

    @property
    def n(self) -> int:
        return len(self.level)

    def deviations(self, horizon: int, side: bool = True) -> Array:
        """(h, n): standard deviation of the error of the best forecast.

        Without `side`, of the best that is shown the signal alone, of an endless past: a Kalman filter that has
        settled.
        """
        spread, out = np.zeros_like(self.noise) if side else self._unseen(), []
        for _ in range(horizon):
            spread = self.transition @ spread @ self.transition.T + self.noise
            out.append(np.sqrt(np.diag(spread)[: self.n]))
        return np.stack(out)

    def alone(self, horizon: int, look_back: int) -> Array:
        """(h, n): the same for who sees of each entity its own look-back, side information included, and no other's."""
        now, parts = [k for k, s in enumerate(self.shown) if s.back == 0], len(self.shown)
        spread, power = self.noise, self.transition
        for _ in range(DOUBLINGS):
            spread, power = spread + power @ spread @ power.T, power @ power
        later = []
        for _ in range(horizon + look_back):
            blocks = np.einsum("aibi->iab", spread.reshape(parts, self.n, parts, self.n))
            later.append(blocks[:, now][:, :, now])
            spread = self.transition @ spread
        seen = [(a, back) for a in range(len(now)) for back in range(look_back)]
        among = [[later[j - i][:, a, b] if i <= j else later[i - j][:, b, a] for b, j in seen] for a, i in seen]
        known = np.moveaxis(np.array(among), -1, 0)
        out = []
        for h in range(1, horizon + 1):
            shared = np.stack([later[h + j][:, 0, b] for b, j in seen], axis=1)
            told = (shared * np.linalg.solve(known, shared[..., None])[..., 0]).sum(axis=1)
            out.append(np.sqrt(later[0][:, 0, 0] - told))
        return np.stack(out)

    def _unseen(self) -> Array:
        after, n = np.zeros_like(self.noise), self.n
        while True:
            before = self.transition @ after @ self.transition.T + self.noise
            known = before[:, :n]
            settled = before - known @ np.linalg.solve(before[:n, :n], known.T)
            settled = (settled + settled.T) / 2
            # What is seen is known, and not to within a rounding error that the next step would multiply.
            settled[:n] = settled[:, :n] = 0
            if np.abs(settled - after).max() < SETTLED * before.max():
                return np.asarray(settled)
            after = settled

    def optimum(self, horizon: int, side: bool = True) -> dict[str, Any]:
        """MAE and RMSE over all entities that no forecast can beat in expectation, by step and on average."""
        deviation = self.deviations(horizon, side)
        mae, mse = MEAN_ABS * deviation.mean(axis=1), np.square(deviation).mean(axis=1)
        scores = {"mae": (mae, mae.mean()), "rmse": (np.sqrt(mse), np.sqrt(mse.mean()))}
        # The last digits of a product of matrices are not the same everywhere.
        by_step = {k: [round(float(v), DIGITS) for v in steps] for k, (steps, _) in scores.items()}
        return {self.channel: {**by_step, "avg": {k: round(float(v), DIGITS) for k, (_, v) in scores.items()}}}


@dataclass(frozen=True)
class Determined:
    """Data without noise: the bound is 0 at every step, and `claim` says for whom."""

    channels: tuple[str, ...]
    claim: str

    def optimum(self, horizon: int) -> dict[str, Any]:
        none = [0.0] * horizon
        return {c: {"mae": none, "rmse": none, "avg": {"mae": 0.0, "rmse": 0.0}} for c in self.channels}
