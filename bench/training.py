"""Training `stid` through the ordinary `fit`, in units of the matrix products that it cannot do without.

The panel has METR-LA's size (34 272 steps, 207 sensors, one channel) and a daily pattern that can be learned. One unit
is the time in which 1024-cubed fp32 products would do the training's floating-point operations (forward and backward,
counted by torch), at the best of at least 20 products run between the epochs, with the same number of threads. The
same ratio in processor time instead of wall time leaves out what other programs took from this one. How low it can
get depends on how much faster the processor is in bf16: the floor is what products of the layers' own shape take.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.child import line
from bench.loading import problem
from stfm_pipeline.systems.catalog import get_system
from stfm_pipeline.tasks.forecasting import hide, masked_loss
from stfm_pipeline.train import Budget, Fitted, fit
from stfm_pipeline.windows import Panel, Window

BATCH, EPOCHS, PRODUCTS, SIZE, WIDTH = 64, 5, 6, 1024, 128
PRECISIONS: tuple[Literal["fp32"], Literal["bf16"]] = ("fp32", "bf16")
RULE = replace(get_system("stid").training, learning_rate=2e-3, batch_size=BATCH)  # type: ignore[type-var]


Times = tuple[float, float]


def now() -> Times:
    """Wall and processor seconds."""
    return time.perf_counter(), time.process_time()


def since(began: Times, end: Times | None = None) -> Times:
    wall, processor = end or now()
    return wall - began[0], processor - began[1]


@dataclass(frozen=True)
class Clocked(Panel):
    """A panel that notes for each pass over its windows when it began and how long gathering took."""

    began: list[Times] = field(default_factory=list)
    gathering: list[float] = field(default_factory=list)

    def batches(self, origins: Tensor, size: int, needs: tuple[str, ...] = ()) -> Iterator[tuple[Tensor, Window]]:
        self.began.append(now())
        self.gathering.append(0.0)
        source = super().batches(origins, size, needs)
        while True:
            began = time.perf_counter()
            batch = next(source, None)
            self.gathering[-1] += time.perf_counter() - began
            if batch is None:
                return
            yield batch


@dataclass(frozen=True)
class Run:
    """A training: wall and processor seconds of each epoch without its validation, share spent on gathering."""

    fitted: Fitted
    epochs: list[Times]
    loading: float


def panel() -> Panel:
    """Speeds with rush hours of each sensor's own, slow weather over all of them, and noise that has a memory."""
    facts, arrays = problem()
    steps, nodes = len(arrays.values), facts.n
    generator = torch.Generator().manual_seed(0)
    clock = torch.arange(steps)
    day = 2 * torch.pi * clock[:, None] / facts.steps_per_day
    phase = torch.rand(2, nodes, generator=generator) * torch.pi
    workday = (clock // facts.steps_per_day % 7 < 5)[:, None]
    values = torch.sin(day + phase[0]) + workday * torch.sin(2 * day + phase[1])
    drawn = torch.randn(steps, nodes, generator=generator) + torch.randn(steps, 1, generator=generator)
    drift = torch.zeros(nodes)
    for t in range(steps):
        drift = 0.97 * drift + 0.1 * drawn[t]
        values[t] += drift
    values = ((values - values.mean(0)) / values.std(0))[..., None].contiguous()
    calendar = torch.stack(
        [clock % facts.steps_per_day + 1, clock // facts.steps_per_day % 7 + 1, torch.ones_like(clock)], dim=-1
    )
    arrays = replace(arrays, values=values, calendar=calendar[:, None].contiguous())
    first, second = int(0.7 * steps), int(0.8 * steps)
    parts = {"train": slice(0, first), "val": slice(first, second), "test": slice(second, steps)}
    seen = torch.ones(steps, dtype=torch.bool)
    return Panel(facts, arrays, parts, clock.numpy(), {}, seen, arrays.calendar - 1)  # type: ignore[arg-type]


def operations(data: Panel) -> float:
    """Floating-point operations per sample of a training step."""
    module = get_system("stid").build(data.problem)
    window = data.arrays.gather(data.origins("train")[:BATCH], data.problem)
    with FlopCounterMode(display=False) as counter:
        inputs, target = hide(window, data.problem.look_back)
        masked_loss(module(inputs), target, "mae", data.problem.tensors["weight"]).backward()
    return counter.get_total_flops() / BATCH


@dataclass(frozen=True)
class Products:
    """Times of matrix products: 1024-cubed in fp32, and in bf16 of the shape that the layers have."""

    wide: list[Times] = field(default_factory=list)
    narrow: list[Times] = field(default_factory=list)

    def add(self, rows: int, width: int) -> None:
        x, w = torch.randn(SIZE, SIZE), torch.randn(width, width, dtype=torch.bfloat16)
        layer = torch.randn(rows, width).bfloat16()
        for a, b, times in ((x, x, self.wide), (layer, w, self.narrow)):
            for _ in range(PRODUCTS):
                began = now()
                a @ b
                times.append(since(began))


def train(data: Panel, budget: Budget, precision: Literal["fp32", "bf16"], products: Products) -> Run:
    """Fit with matrix products between the epochs, whose times join `products`."""
    clocked = Clocked(**vars(data))

    def between(row: dict[str, float]) -> None:
        products.add(BATCH * data.problem.n, WIDTH)

    fitted = fit(
        get_system("stid"),
        clocked,
        budget,
        device="cpu",
        report=between,
        progress=False,
        training=RULE,
        precision=precision,
    )
    # A pass over train is followed by one over val: the second's beginning is the first's end.
    epochs = [since(a, b) for a, b in zip(clocked.began[::2], clocked.began[1::2], strict=True)]
    return Run(fitted, epochs, sum(clocked.gathering[::2]) / sum(wall for wall, _ in epochs))


def main(quick: bool) -> None:
    data = panel()
    budget = Budget("bench", epochs=EPOCHS, patience=EPOCHS, seeds=1, stride=12 if quick else 1)
    samples = len(data.origins("train")[:: budget.stride])
    flops = operations(data)
    products = Products()
    runs = {p: train(data, budget, p, products) for p in PRECISIONS}
    best = [min(column) for column in zip(*products.wide, strict=True)]
    floor = min(processor for _, processor in products.narrow) / best[1] * SIZE**3 / (BATCH * data.problem.n * WIDTH**2)
    units = [flops * samples * b / (2 * SIZE**3) for b in best]
    print(
        f"     stid 12 -> 12, batch {BATCH}, {flops / 1e6:.0f} MFLOP per sample, {samples} samples per epoch; "
        f"{torch.get_num_threads()} thread(s), best of {len(products.wide)} fp32 products "
        f"{2e-9 * SIZE**3 / best[0]:.0f} GFLOP/s ({2e-9 * SIZE**3 / best[1]:.0f} in processor time); "
        f"floor in bf16 {floor:.2f}"
    )
    ratios = {}
    for name, run in runs.items():
        wall, processor = ([e[k] / units[k] for e in run.epochs] for k in (0, 1))
        ratios[name] = median(wall), median(processor)
        speed = samples / median(e[0] for e in run.epochs)
        print(
            f"     {name}: {speed:.0f} samples/s; time / time of its FLOPs {ratios[name][0]:.2f} (epochs "
            f"{', '.join(f'{w:.2f}' for w in wall)}), in processor time {ratios[name][1]:.2f}; "
            f"gathering {100 * run.loading:.2f} %"
        )
    (wall, processor), share = ratios["bf16"], runs["bf16"].loading
    line(
        "stid trained as ever, bf16, dropout on: time / time of its FLOPs, median epoch",
        f"{wall:.2f} (in processor time {processor:.2f})",
        "0.75",
        wall <= 0.75,
    )
    line("share of it spent on gathering windows", f"{100 * share:.2f} %", "2 %", share <= 0.02)
    wide, narrow = (runs[p].fitted.val_loss for p in PRECISIONS)
    line(
        f"val MAE after {EPOCHS} epochs, bf16 / fp32",
        f"{narrow / wide:.4f} ({narrow:.4f}, {wide:.4f})",
        "1.01",
        narrow <= 1.01 * wide,
    )
