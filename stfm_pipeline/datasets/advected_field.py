"""A field that a known, steady flow carries over a periodic plane: made here, so the best forecast is known.

x_t(p) = 0.98 x_{t-1}(p - v(p)) + e_t(p) on 32 x 32 cells: the value upstream, between four cells by bilinear weights
(which is where the diffusion comes from), a little damped, and Gaussian noise that is smooth in space and new at every
step. The flow is a shear in both directions without divergence, from 0.1 to 0.9 cells east and -0.5 to 0.5 cells south
a step; what leaves on one side comes in on the other. Edges join each cell to its eight neighbours, around the plane.

On reproducibility see `diffusing_graph`: the same holds here.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import Channel, DatasetSpec, Facts, Harmonize, RawTables, Task
from stfm_pipeline.tables import dense_observations
from stfm_pipeline.truth import LinearGaussian, Show

SEED, SIDE, STEPS, BURN_IN = 20250602, 32, 5000, 300
CELLS = SIDE * SIDE
START = datetime(2024, 1, 1, tzinfo=UTC)
CORNER, SPACING = (-8.0, 8.0), 0.5
DAMPED, LEVEL = 0.98, 15.0
EAST, SOUTH = (0.5, 0.4), (0.0, 0.5)

SPEC = DatasetSpec(
    name="advected-field",
    title="Generated: a field carried by a known flow",
    kind="grid",
    licence="made by code of this project (Apache-2.0)",
    description=(
        "A linear advection with diffusion and smooth Gaussian noise on 32 x 32 cells of a periodic plane. Its "
        "Bayes-optimal error is known exactly, so that it shows how much of what can be learned a system has learned."
    ),
    channels=(Channel(name="field", unit="units", description="what the flow carries, around 15"),),
    zone="UTC",
    seasons=(24,),
    harmonize=Harmonize(step="1h"),
    task=Task(look_back=12, horizon=12),
    facts=Facts(steps=STEPS, entities=CELLS),
)


@cache
def _upstream() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each cell the four around the place that its value comes from, and their shares (n, 4)."""
    row, col = np.divmod(np.arange(CELLS), SIDE)
    wave = np.round(np.sin(np.arange(SIDE) * (2 * np.pi / SIDE)), 9)
    at = row - (SOUTH[0] + SOUTH[1] * wave[col]), col - (EAST[0] + EAST[1] * wave[row])
    (up, down), (left, right) = (np.stack([np.floor(a), np.floor(a) + 1]).astype(np.int64) % SIDE for a in at)
    south, east = (a - np.floor(a) for a in at)
    cells = np.stack([up * SIDE + left, up * SIDE + right, down * SIDE + left, down * SIDE + right], axis=1)
    shares = [(1 - south) * (1 - east), (1 - south) * east, south * (1 - east), south * east]
    return cells, np.stack(shares, axis=1)


def smooth(field: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice the weights 1, 2, 1 along both of the last two axes, around the plane, at the variance of white noise."""
    for _ in range(2):
        for axis in (-1, -2):
            field = np.roll(field, 1, axis) * 0.25 + field * 0.5 + np.roll(field, -1, axis) * 0.25
    # The weights 1, 4, 6, 4, 1 in 16 have squares that sum to 70 / 256, once along each axis.
    return np.asarray(field * (256 / 70))


def truth() -> LinearGaussian:
    """The advection as a matrix; a window's last step is the whole state."""
    cells, shares = _upstream()
    transition = np.zeros((CELLS, CELLS))
    np.add.at(transition, (np.arange(CELLS)[:, None], cells), DAMPED * shares)
    spread = smooth(np.eye(CELLS).reshape(CELLS, SIDE, SIDE)).reshape(CELLS, CELLS)
    level, cycle = np.full(CELLS, LEVEL), np.zeros((24, CELLS))
    return LinearGaussian("field", transition, spread.T @ spread, level, cycle, (Show(),))


def simulate(steps: int) -> NDArray[np.float64]:
    """The field less its level at the first `steps` steps (t, n), unrounded."""
    cells, shares = _upstream()
    noise = np.random.Generator(np.random.PCG64(SEED))
    x = np.zeros((BURN_IN + steps, CELLS))
    for t in range(1, len(x)):
        came = sum(shares[:, k] * x[t - 1, cells[:, k]] for k in range(4))
        x[t] = DAMPED * came + smooth(noise.standard_normal((SIDE, SIDE))).ravel()
    return x[BURN_IN:]


def read(files: dict[str, Path]) -> RawTables:
    """Raw tables: observations, cells and their neighbours. There are no files."""
    values = np.round(LEVEL + simulate(STEPS), 4).astype(np.float32)
    hour = timedelta(hours=1)
    times = pl.datetime_range(START, START + (STEPS - 1) * hour, hour, time_unit="us", eager=True).alias("time")
    row, col = np.divmod(np.arange(CELLS), SIDE)
    names = pl.Series("entity", [f"r{r:02d}c{c:02d}" for r, c in zip(row, col, strict=True)])
    around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    near = np.stack([(row + i) % SIDE * SIDE + (col + j) % SIDE for i, j in around], axis=1)
    return {
        "observations": dense_observations(times, {"field": values}),
        "entities": pl.DataFrame(
            {
                "entity": names,
                "lon": CORNER[0] + SPACING * col,
                "lat": CORNER[1] - SPACING * row,
                "row": row.astype(np.int32),
                "col": col.astype(np.int32),
            }
        ),
        "edges": pl.DataFrame(
            {
                "source": names.gather(near.ravel()),
                "target": names.gather(np.repeat(np.arange(CELLS), len(around))),
                "weight": np.ones(near.size),
            }
        ),
    }
