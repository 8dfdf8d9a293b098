"""Universal patching: balanced patches of any set of places, and rectangles where the places are a grid."""

from __future__ import annotations

import time

import numpy as np

from bench.child import line
from stfm_pipeline.embed.spatial import balanced_patches

SIZE = 16


def seconds(entities: int, rounds: int = 5) -> float:
    """Least CPU seconds of several rounds: on a busy machine the wall clock measures the others."""
    xy = np.random.default_rng(0).random((entities, 2))
    found = []
    for _ in range(rounds):
        began = time.process_time()
        balanced_patches(xy, SIZE)
        found.append(time.process_time() - began)
    return min(found)


def rectangles(side: int) -> tuple[int, int]:
    """Patches of a square grid, and how many of them are full rectangles of the common size."""
    rows, columns = np.divmod(np.arange(side * side), side)
    patch = balanced_patches(np.stack([columns, rows], axis=1).astype(float), SIZE)
    full = 0
    for code in np.unique(patch):
        inside = patch == code
        area = (np.ptp(rows[inside]) + 1) * (np.ptp(columns[inside]) + 1)
        full += int(area == inside.sum() == SIZE)
    return int(patch.max()) + 1, full


def main(quick: bool) -> None:
    sizes = (1_000, 10_000) if quick else (1_000, 10_000, 100_000)
    times = [seconds(n) for n in sizes]
    exponent = float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
    listed = ", ".join(f"{n:,} in {t:.4f} s" for n, t in zip(sizes, times, strict=True))
    line(
        f"patches of {SIZE}: CPU seconds and their exponent in entities",
        f"{listed}; {exponent:.2f}",
        "1.2",
        exponent <= 1.2,
    )
    patches, full = rectangles(64)
    line("rectangles among the patches of a 64 x 64 grid", f"{full} of {patches}", "all", full == patches)
