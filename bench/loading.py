"""Batches of windows gathered from memory, beside torch's DataLoader without workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch.utils.data import DataLoader, Dataset

from bench.child import line
from stfm_pipeline.windows import Arrays, Problem

STEPS, NODES, WINDOWS = 34_272, 207, 2560


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def side_by_side(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of both, run alternately."""
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return median(a for a, _ in pairs), median(b for _, b in pairs)


def problem() -> tuple[Problem, Arrays]:
    """A made-up signal of METR-LA's size."""
    n, c = NODES, 1
    values = torch.randn(STEPS, n, c)
    empty, none = torch.zeros(STEPS, n, 0), torch.zeros(STEPS, n, 0, dtype=torch.bool)
    calendar = torch.ones(STEPS, 1, 5, dtype=torch.long)
    arrays = Arrays(
        values, values > -9, calendar, torch.zeros(STEPS, 1, dtype=torch.long), empty, none, empty.clone(), none.clone()
    )
    tensors = {
        "mean": torch.zeros(n, c),
        "std": torch.ones(n, c),
        "weight": torch.ones(n, c),
        "zone": torch.zeros(n, dtype=torch.long),
        "spatial": torch.randn(n, 10),
        "frequency": torch.randn(n, 8),
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
        countries=(None,),
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
        return WINDOWS

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.arrays.values[i : i + 24], self.arrays.observed[i : i + 24]


def main(quick: bool) -> None:
    facts, arrays = problem()
    order = torch.randperm(WINDOWS) + 12

    def ours() -> None:
        for chunk in torch.split(order, 64):
            arrays.gather(chunk, facts)

    def theirs() -> None:
        for _ in DataLoader(Slices(arrays), batch_size=64, shuffle=True):
            pass

    a, b = side_by_side(ours, theirs, rounds=3 if quick else 7)
    line(
        f"{WINDOWS} windows of 24 x {NODES} in batches of 64, gathered / DataLoader",
        f"{a / b:.2f} ({a:.3f} s, {b:.3f} s)",
        "1",
        a <= b,
    )
