"""Statistics of the training part by civil time, with a stated chain of fallbacks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from stfm_pipeline.tasks.forecasting import Inputs
from stfm_pipeline.windows import Panel, Problem

WEEKEND = 5
MIN_COUNT = 3
Statistic = Callable[..., Any]


def training_median(panel: Panel) -> Float[Tensor, "n c"]:
    """Median of observed training values per entity and channel, or of the channel where an entity has none."""
    values = _known(panel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        own = np.nanmedian(values, axis=0)
        whole = np.nanmedian(values, axis=(0, 1))
    return torch.from_numpy(np.where(np.isnan(own), np.nan_to_num(whole), own).astype(np.float32))


def _known(panel: Panel) -> NDArray[np.float32]:
    train = panel.parts["train"]
    values, observed = panel.arrays.values[train].numpy(), panel.arrays.observed[train].numpy()
    return np.where(observed, values, np.float32(np.nan))


class Climatology(nn.Module):
    """Time-of-week statistic per entity and channel.

    A level speaks where it has at least three training values: time of week, else weekday class (working day or
    weekend) and time of day, else time of day, else the entity's median. Only the last counts as fallback. On a day of
    the week that training never saw, the time of day is the first that can speak.
    """

    zone: Tensor
    median: Tensor
    table: Tensor
    has_own: Tensor

    def __init__(self, problem: Problem, statistic: Statistic) -> None:
        super().__init__()
        self.statistic, self.day = statistic, problem.steps_per_day
        size = (8 * self.day, problem.n, problem.c)
        self.register_buffer("zone", problem.tensors["zone"].clone())
        self.register_buffer("median", torch.zeros(problem.n, problem.c))
        self.register_buffer("table", torch.zeros(size))
        self.register_buffer("has_own", torch.zeros(size, dtype=torch.bool))

    def fit(self, panel: Panel) -> None:
        self.median.copy_(training_median(panel))
        values = _known(panel)
        calendar = panel.arrays.calendar[panel.parts["train"]].numpy()
        table = np.empty((8 * self.day, *values.shape[1:]), np.float32)
        own = np.empty(table.shape, np.bool_)
        for z in np.unique(self.zone.numpy()):
            nodes = self.zone.numpy() == z
            tod, dow = calendar[:, z, 0] - 1, calendar[:, z, 1] - 1
            table[:, nodes], own[:, nodes] = self._levels(values[:, nodes], tod, dow, self.median.numpy()[nodes])
        self.table.copy_(torch.from_numpy(table))
        self.has_own.copy_(torch.from_numpy(own))

    def _levels(self, values: Any, tod: Any, dow: Any, median: Any) -> tuple[Any, Any]:
        groups = [
            (dow * self.day + tod, 7 * self.day),
            ((dow >= WEEKEND) * self.day + tod, 2 * self.day),
            (tod, self.day),
        ]
        found = [self._by_group(values, codes, size) for codes, size in groups]
        week = np.arange(7 * self.day)
        index = [week, (week // self.day >= WEEKEND) * self.day + week % self.day, np.arange(8 * self.day) % self.day]
        table = np.broadcast_to(median, (8 * self.day, *median.shape)).copy()
        own = np.zeros(table.shape, np.bool_)
        for (level, enough), at in zip(reversed(found), reversed(index), strict=True):
            table[: len(at)] = np.where(enough[at], level[at], table[: len(at)])
            own[: len(at)] |= enough[at]
        return table, own

    def _by_group(self, values: Any, codes: Any, size: int) -> tuple[Any, Any]:
        level = np.zeros((size, *values.shape[1:]), np.float32)
        enough = np.zeros(level.shape, np.bool_)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            for code in range(size):
                rows = values[codes == code]
                enough[code] = (~np.isnan(rows)).sum(axis=0) >= MIN_COUNT
                if len(rows):
                    level[code] = np.where(enough[code], self.statistic(rows, axis=0), 0)
        return level, enough

    def forward(self, inputs: Inputs) -> tuple[Float[Tensor, "b h n c"], Bool[Tensor, "b h n c"]]:
        civil = inputs.calendar_ahead[:, :, self.zone]
        known = civil[..., 0] > 0
        dow = torch.where(civil[..., 1] > 0, civil[..., 1] - 1, 7)
        code = dow * self.day + civil[..., 0] - 1
        node = torch.arange(len(self.zone), device=code.device)
        safe = code.clamp(min=0)
        own = self.has_own[safe, node] & known[..., None]
        return torch.where(known[..., None], self.table[safe, node], self.median), ~own
