"""Ratios measured side by side in one run: `make bench`. Below 1 is faster than what it is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import pandas as pd
import polars as pl
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from stfm_pipeline.systems.stid import STID
from stfm_pipeline.tables import scatter
from stfm_pipeline.tasks.forecasting import hide, masked_loss
from stfm_pipeline.windows import Arrays, Problem

STEPS, NODES, ROUNDS = 34_272, 207, 5


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def side_by_side(ours: Callable[[], object], theirs: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """Median seconds of both, run alternately."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return median(a for a, _ in pairs), median(b for _, b in pairs)


def problem() -> tuple[Problem, Arrays]:
    n, c = NODES, 1
    values = torch.randn(STEPS, n, c)
    empty, none = torch.zeros(STEPS, n, 0), torch.zeros(STEPS, n, 0, dtype=torch.bool)
    calendar = torch.ones(STEPS, 1, 3, dtype=torch.long)
    arrays = Arrays(
        values, values > -9, calendar, torch.zeros(STEPS, 1, dtype=torch.long), empty, none, empty.clone(), none.clone()
    )
    tensors = {
        "mean": torch.zeros(n, c),
        "std": torch.ones(n, c),
        "weight": torch.ones(n, c),
        "zone": torch.zeros(n, dtype=torch.long),
        "spatial": torch.randn(n, 10),
        "edge_index": torch.zeros(2, 0, dtype=torch.long),
        "edge_weight": torch.zeros(0),
    }
    facts = Problem(
        dataset="bench",
        kind="graph",
        look_back=12,
        horizon=12,
        entities=tuple(map(str, range(n))),
        channels=("speed",),
        minimum=(None,),
        step_us=300_000_000,
        steps_per_day=288,
        zones=("UTC",),
        zone="UTC",
        country=None,
        seasons=(288,),
        past=(),
        ahead=(),
        loss="mae",
        tensors=tensors,
    )
    return facts, arrays


class Slices(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return 64 * 40

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.arrays.values[i : i + 24], self.arrays.observed[i : i + 24]


def loading(facts: Problem, arrays: Arrays) -> None:
    order = torch.randperm(64 * 40) + 12

    def ours() -> None:
        for chunk in torch.split(order, 64):
            arrays.gather(chunk, facts)

    def theirs() -> None:
        for _ in DataLoader(Slices(arrays), batch_size=64, shuffle=True):
            pass

    a, b = side_by_side(ours, theirs)
    print(f"loading 2560 windows of 24 x {NODES}: gather / DataLoader = {a / b:.3f} ({a:.3f} s, {b:.3f} s)")


def training(facts: Problem, arrays: Arrays) -> None:
    torch.manual_seed(0)
    module = STID(facts, width=32, layers=3)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    origins = torch.arange(12, 12 + 64)

    def step() -> None:
        inputs, target = hide(arrays.gather(origins, facts), 12)
        loss = masked_loss(module(inputs), target, "mae", facts.tensors["weight"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()
    with FlopCounterMode(display=False) as counter:
        step()
    x, y = torch.randn(1024, 1024), torch.randn(1024, 1024)
    a, b = side_by_side(lambda: [step() for _ in range(5)], lambda: [x @ y for _ in range(5)])
    ideal = counter.get_total_flops() * b / (5 * 2 * 1024**3)
    print(f"stid step, batch 64, fp32: time / time of its FLOPs as 1024-cubed matmuls = {a / 5 / ideal:.2f}")


def densifying() -> None:
    hours, rng = 8760, np.random.default_rng(0)
    times = (np.datetime64("2024-01-01T00") + np.arange(hours)).astype("datetime64[us]")
    names = [f"s{i}" for i in range(NODES)]
    rows = pl.DataFrame(
        {
            "entity": np.tile(np.array(names), hours),
            "time": np.repeat(times, NODES),
            "v": rng.random(hours * NODES),
        }
    ).with_columns(pl.col("time").dt.replace_time_zone("UTC"))
    frame: pd.DataFrame = rows.to_pandas()
    a, b = side_by_side(
        lambda: scatter(rows, times, names, ["v"]),
        lambda: frame.pivot(index="time", columns="entity", values="v").to_numpy(),
        rounds=3,
    )
    print(f"{len(rows) / 1e6:.1f} M long rows to dense: scatter / pandas pivot = {a / b:.3f} ({a:.2f} s, {b:.2f} s)")


if __name__ == "__main__":
    facts, arrays = problem()
    loading(facts, arrays)
    training(facts, arrays)
    densifying()
