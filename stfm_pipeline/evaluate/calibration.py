"""Split-conformal prediction intervals (Lei et al., JASA 2018) and how often they hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stfm_pipeline.tasks.forecasting import forecast_of, hide
from stfm_pipeline.windows import Panel

LEVELS = (0.1, 0.9)
MIN_RESIDUALS = 50


def conformal_offsets(
    residuals: Float[Tensor, "w h n c"], observed: Bool[Tensor, "w h n c"], levels: tuple[float, ...] = LEVELS
) -> Float[Tensor, "q h n c"]:
    """Signed offsets to add to a forecast, one per level, horizon, entity and channel, in the residuals' units.

    Finite-sample ranks over the calibration windows; a series with fewer than fifty residuals takes the offset of its
    horizon and channel pooled over all entities.
    """
    w, h, n, c = residuals.shape
    own = _ranked(residuals, observed, levels)
    pooled = _ranked(
        residuals.movedim(2, 1).reshape(w * n, h, 1, c), observed.movedim(2, 1).reshape(w * n, h, 1, c), levels
    )
    enough = observed.sum(dim=0) >= MIN_RESIDUALS
    return torch.where(enough, own, pooled)


def _ranked(residuals: Tensor, observed: Tensor, levels: tuple[float, ...]) -> Tensor:
    ordered = torch.where(observed, residuals, torch.inf).sort(dim=0).values
    count = observed.sum(dim=0)
    out = []
    for level in levels:
        rank = (level * (count + 1)).floor() if level < 0.5 else (level * (count + 1)).ceil()
        index = (rank.long() - 1).clamp(min=0).minimum((count - 1).clamp(min=0))
        value = ordered.gather(0, index[None])[0]
        out.append(torch.where(count > 0, value, 0.0))
    return torch.stack(out)


@dataclass
class Coverage:
    """How often targets fell inside the interval, over the cells of one group."""

    inside: float = 0.0
    count: float = 0.0
    width: float = 0.0

    def add(self, inside: Tensor, width: Tensor, cells: Tensor) -> None:
        self.inside += float((inside & cells).sum())
        self.count += float(cells.sum())
        self.width += float(torch.where(cells, width, 0.0).sum(dtype=torch.float64))

    def row(self, part: str, channel: str, group: str, nominal: float) -> dict[str, object]:
        share = self.inside / self.count if self.count else math.nan
        return {
            "split": part,
            "channel": channel,
            "group": group,
            "nominal": nominal,
            "coverage": share if self.count else None,
            "mean_width": self.width / self.count if self.count else None,
            "n": int(self.count),
        }


@torch.inference_mode()
def calibrate(module: nn.Module, panel: Panel, needs: tuple[str, ...], system: str) -> Float[Tensor, "q h n c"]:
    """Offsets in standardised units from the module's residuals on val."""
    residuals, observed = [], []
    for _, window in panel.batches(panel.origins("val"), 64, needs):
        inputs, target = hide(window, panel.problem.look_back)
        forecast, _ = forecast_of(module(inputs), target, system)
        residuals.append(target.values - forecast)
        observed.append(target.observed)
    return conformal_offsets(torch.cat(residuals), torch.cat(observed)).clone()
