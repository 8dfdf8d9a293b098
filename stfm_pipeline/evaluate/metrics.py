"""The metric contract: explicit mask, sums in float64, per horizon and averaged, in data units and standardised.

NaN or an empty mask is an error, never a score. MAPE is null where more than a tenth of the targets are 0. All channels
together appear only in standardised form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from stfm_pipeline.errors import MetricError

Array = NDArray[np.float64]
ZERO_SHARE_FOR_MAPE = 0.1
SCALES = ("data", "standardised")
DRAWS = 1000


@dataclass(frozen=True)
class Row:
    """One line of a leaderboard. `channel` None = all channels; `horizon` a step number from 1, or "avg"."""

    dataset: str
    task: str
    system: str
    split: str
    scale: str
    channel: str | None
    horizon: int | str
    mse: float
    mae: float
    rmse: float
    mape: float | None
    r2: float | None
    n: int
    windows: int
    seeds: int


class Sums:
    """Error sums of one system on one part. Cells (h, c) per scale; windows, entities and hours in data units."""

    def __init__(self, windows: int, horizon: int, n: int, c: int, hours: int) -> None:
        self.cells = {s: np.zeros((6, horizon, c)) for s in SCALES}
        self.zeros = np.zeros((horizon, c))
        self.ape = np.zeros((horizon, c))
        self.window_abs, self.window_sq = np.zeros((windows, c)), np.zeros((windows, c))
        self.window_count = np.zeros((windows, c))
        self.entity_abs, self.entity_count = np.zeros((n, c)), np.zeros((n, c))
        self.hour_abs, self.hour_count = np.zeros((hours, c)), np.zeros((hours, c))
        self.fallback = np.zeros(c)
        self._at = 0

    def add(
        self,
        prediction: Float[Tensor, "b h n c"],
        target: Float[Tensor, "b h n c"],
        observed: Bool[Tensor, "b h n c"],
        std: Float[Tensor, "n c"],
        hour: Int[Tensor, "b h"],
        fallback: Bool[Tensor, "b h n c"] | None = None,
    ) -> None:
        """Add a batch in data units; `hour` is the civil time of day of each target step."""
        bad = ~prediction.isfinite() & observed
        if bool(bad.any()):
            first = [(self._at + i, *at) for i, *at in bad.nonzero()[:5].tolist()]
            raise MetricError(
                "a forecast is not finite where a target is observed",
                expected="finite forecasts",
                found=f"{int(bad.sum())} NaN or infinite cells",
                offenders=[f"(window, step, entity, channel) = {i}" for i in first],
                fix="mend the system; a missing forecast is not a score of 0",
            )
        b = len(prediction)
        zero = prediction.new_zeros(())
        error = torch.where(observed, prediction - target, zero)
        y = torch.where(observed, target, zero)
        size = error.abs()
        count = observed.sum(dim=2, dtype=torch.float64)
        per_step = size.sum(dim=2, dtype=torch.float64)
        square = error.square()
        per_step_sq = square.sum(dim=2, dtype=torch.float64)
        for scale, weight in (("data", None), ("standardised", 1 / std)):
            e, t = (error, y) if weight is None else (error * weight, y * weight)
            a = per_step if weight is None else e.abs().sum(dim=2, dtype=torch.float64)
            q = per_step_sq if weight is None else e.square().sum(dim=2, dtype=torch.float64)
            stack = [
                count.sum(0),
                a.sum(0),
                q.sum(0),
                t.sum(dim=(0, 2), dtype=torch.float64),
                t.square().sum(dim=(0, 2), dtype=torch.float64),
                count.sum(0),
            ]
            self.cells[scale] += torch.stack(stack).numpy()
        zeros = (target == 0) & observed
        self.zeros += zeros.sum(dim=(0, 2)).double().numpy()
        relative = torch.where(zeros, zero, size / torch.where(y == 0, 1.0, y.abs()))
        self.ape += relative.sum(dim=(0, 2), dtype=torch.float64).numpy()
        rows = slice(self._at, self._at + b)
        self.window_abs[rows] = per_step.sum(1).numpy()
        self.window_sq[rows] = per_step_sq.sum(1).numpy()
        self.window_count[rows] = count.sum(1).numpy()
        self._at += b
        self.entity_abs += size.sum(dim=(0, 1), dtype=torch.float64).numpy()
        self.entity_count += observed.sum(dim=(0, 1)).double().numpy()
        index = hour.reshape(-1).numpy()
        np.add.at(self.hour_abs, index, per_step.reshape(len(index), -1).numpy())
        np.add.at(self.hour_count, index, count.reshape(len(index), -1).numpy())
        if fallback is not None:
            self.fallback += (fallback & observed).sum(dim=(0, 1, 2)).double().numpy()

    @property
    def windows(self) -> int:
        return self._at

    def mae(self) -> Array:
        """MAE per channel (c,) in data units over all cells."""
        count, size = self.cells["data"][0].sum(0), self.cells["data"][1].sum(0)
        _need(count, "MAE")
        return np.asarray(size / count)

    def fallback_share(self) -> Array:
        return np.asarray(self.fallback / np.maximum(self.cells["data"][0].sum(0), 1))

    def rows(
        self, dataset: str, system: str, split: str, channels: Sequence[str], horizons: Sequence[int]
    ) -> list[Row]:
        """Rows per scale, channel (None = all, standardised only) and horizon ("avg" and the steps asked for)."""
        out = []
        for scale in SCALES:
            together = [(None, slice(None))] if scale == "standardised" else []
            each = [(name, slice(k, k + 1)) for k, name in enumerate(channels)]
            for channel, pick in [*together, *each]:
                steps: list[int | str] = ["avg", *horizons]
                for step in steps:
                    span = slice(None) if step == "avg" else slice(int(step) - 1, int(step))
                    part = self.cells[scale][:, span, pick].sum(axis=(1, 2))
                    zeros = float(self.zeros[span, pick].sum())
                    ape = float(self.ape[span, pick].sum())
                    scores = _scores(part, zeros, ape if scale == "data" else None)
                    out.append(
                        Row(dataset, "forecasting", system, split, scale, channel, step, *scores, self.windows, 1)
                    )
        return out


def _need(count: Array, what: str) -> None:
    if not (np.asarray(count) > 0).all():
        raise MetricError(
            f"{what}: no observed target to score against",
            expected="at least one observed cell per channel",
            fix="check the mask of this part of the data",
        )


def _scores(
    part: Array, zeros: float, ape: float | None
) -> tuple[float, float, float, float | None, float | None, int]:
    count, size, square, total, squares, _ = (float(v) for v in part)
    _need(np.array([count]), "score")
    spread = squares - total * total / count
    many_zeros = ape is None or zeros > ZERO_SHARE_FOR_MAPE * count
    mape = None if many_zeros or ape is None else ape / max(count - zeros, 1)
    mse = square / count
    r2 = 1 - square / spread if spread > 1e-12 * max(squares, 1) else None
    return mse, size / count, math.sqrt(mse), mape, r2, int(count)


def mean_rows(per_seed: Sequence[Sequence[Row]]) -> list[Row]:
    """The mean over seeds of each score; everything else must agree."""
    out = []
    for same in zip(*per_seed, strict=True):
        first = same[0]
        means: dict[str, Any] = {}
        for score in ("mse", "mae", "rmse", "mape", "r2"):
            values = [getattr(r, score) for r in same]
            means[score] = None if any(v is None for v in values) else float(np.mean(values))
        out.append(Row(**{**vars(first), **means, "seeds": len(same)}))
    return out


def season_block(horizon: int, seasons: Sequence[int]) -> int:
    """Length in windows of a bootstrap block: the horizon, or the longest season of at most 168 steps."""
    return max(horizon, *[s for s in seasons if s <= 168] or [1])


def observed_blocks(count: Array, block: int) -> float:
    """How many full blocks of windows the cells observed in them, `count` (windows, channels), are worth.

    Kish's effective size, (sum of n)^2 / sum of n^2 for n cells a window in each disjoint block: windows / block where
    all hold the same, 1 where all cells lie in one block. Of several channels the lowest: each counts alike.
    """
    whole = len(count) // block
    if not whole or not count.any(axis=0).all():
        return 0.0 if whole else len(count) / block
    edges = np.arange(whole + 1) * len(count) // whole
    cells = np.add.reduceat(count, edges[:-1]) / np.diff(edges)[:, None]
    return float((cells.sum(0) ** 2 / (cells**2).sum(0)).min() * len(count) / block / whole)


def block_bootstrap(
    ours: Sums,
    theirs: Sums,
    block: int,
    channel: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.025,
) -> tuple[float, float, float]:
    """Relative improvement of `ours` over `theirs` in MAE with its interval: (margin, low, high).

    With `channel` None, the mean over channels of the MAE ratio. Both must have been scored on the same cells.
    """
    if ours.windows != theirs.windows or not np.array_equal(ours.window_count, theirs.window_count):
        raise MetricError("two systems were scored on different cells", fix="score both on the same windows and mask")
    pick = slice(None) if channel is None else slice(channel, channel + 1)
    blocks = observed_blocks(ours.window_count[:, pick], block)
    return paired_bootstrap(ours.window_abs[:, pick], theirs.window_abs[:, pick], block, draws, seed, level, blocks)


LARGEST_LOG = 500.0


def paired_bootstrap(
    ours: Array,
    theirs: Array,
    block: int,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.025,
    blocks: float | None = None,
) -> tuple[float, float, float]:
    """1 - mean over channels of the ratio of two error sums (windows, channels), with an interval.

    Each bound is wrong with a chance of `level`: 0.025 makes the usual 95 %. Paired moving-block bootstrap over windows
    in time order (Kunsch 1989). Blocks of at least one season keep the windows' overlap and daily rhythm inside a
    block. The draws give the standard error of the log ratio alone, and Student's t with as many values as there are
    `blocks` the bounds: extreme quantiles of a handful of blocks end at the worst block, and at a level of 0.001 that
    is too near (docs/retraining.md). `blocks` are those that fit into the windows, fewer where cells are missing
    (`observed_blocks`). Fewer than two say nothing: (margin, -inf, inf).
    """
    from scipy.special import stdtrit

    def log_ratio(a: Array, b: Array) -> Array:
        # Without any error on either side, as where a draw holds no cell of a channel, neither is better.
        ratio = np.where((a == 0) & (b == 0), 1.0, a / np.maximum(b, 1e-12)).mean(axis=-1)
        return np.asarray(np.log(np.maximum(ratio, 1e-12)))

    centre, w = float(log_ratio(ours.sum(0), theirs.sum(0))), len(ours)
    whole = -math.expm1(centre)
    blocks = w / block if blocks is None else blocks
    if blocks < 2:
        return whole, -math.inf, math.inf
    starts = np.random.default_rng(seed).integers(0, w - block + 1, size=(draws, -(-w // block)))
    sums = [np.concatenate([np.zeros((1, s.shape[1])), s.cumsum(0)]) for s in (ours, theirs)]
    a, b = ((s[starts + block] - s[starts]).sum(axis=1) for s in sums)
    error = float(log_ratio(a, b).std()) * math.sqrt(blocks / (blocks - 1))
    # Hardly more than two blocks reach beyond all numbers.
    reach = min(float(stdtrit(blocks - 1, 1 - level)) * error, LARGEST_LOG)
    return whole, -math.expm1(centre + reach), -math.expm1(centre - reach)
