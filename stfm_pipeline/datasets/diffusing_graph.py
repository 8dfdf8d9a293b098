"""A level that diffuses along the directed edges of a known graph: made here, so the best forecast is known.

x_t = 0.4 x_{t-1} + 0.88 W x_{t-1} - 0.3 x_{t-2} + 0.15 z_{t-2} + e_t with e_t ~ N(0, 1) at every entity and step; W is
the mean over the entities that have an edge to this one, weighted by the edges. z is an entity's own weather,
z_t = 0.9 z_{t-1} + N(0, 0.25), measured an hour before it is called z_t and known an hour after. What is observed is a
level of each entity's own, a daily cycle in UTC with an amplitude of its own, and x.

So each kind of information carries some of what can be known: edges most of it, the time of day the cycle, the weather
what is still on its way, and the two lags a rhythm of about ten hours that shows in spectra.

Numbers are drawn from numpy's PCG64 by a stated seed and combined one by one, never as a product of matrices, and
rounded to 0.0001: the same on every machine, as far as exp and cos agree to 9 digits and numpy draws the same normal
numbers, which it promises within a version alone (NEP 19). Rounding adds a variance of 1e-9.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import Channel, DatasetSpec, Facts, Harmonize, Join, RawTables, Task
from stfm_pipeline.tables import dense_observations
from stfm_pipeline.truth import LinearGaussian, Show

SEED, ENTITIES, STEPS, BURN_IN = 20250601, 150, 8000, 500
START = datetime(2024, 1, 1, tzinfo=UTC)
REGION = {"lon": (6.0, 15.0), "lat": (47.5, 54.5)}
KM_PER_DEGREE = 111.32
SOURCES, NEAREST = 2, 4
OWN, ALONG, SECOND, FORCING = 0.4, 0.88, -0.3, 0.15
MEMORY, DRIVE = 0.9, 0.5
DAY = 24

SPEC = DatasetSpec(
    name="diffusing-graph",
    title="Generated: a level that diffuses along a known graph",
    kind="graph",
    licence="made by code of this project (Apache-2.0)",
    description=(
        "A stable vector autoregression on a directed weighted graph of 150 places with a daily cycle, Gaussian noise "
        "and weather known with a lag. Its Bayes-optimal error is known exactly, so that it shows how much of what can "
        "be learned a system has learned."
    ),
    channels=(Channel(name="level", unit="units", description="own level, daily cycle and what diffuses"),),
    zone="UTC",
    seasons=(DAY,),
    harmonize=Harmonize(step="1h", scale_per="entity"),
    joins=(Join(table="weather", columns=("forcing",), availability="past", lag="1h", tolerance="0h"),),
    task=Task(look_back=12, horizon=12),
    facts=Facts(steps=STEPS, entities=ENTITIES),
)


def _parts() -> list[np.random.Generator]:
    """Streams of places, edges, levels, noise and weather, each independent of how much the others are used."""
    return [np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(SEED).spawn(5)]


@cache
def _graph() -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Places (n, 2) as lon, lat; for each entity those that have an edge to it, and the edges' weights (n, SOURCES).

    Sources are drawn from the nearest; a weight falls with distance, by half at the median one.
    """
    places, edges, *_ = _parts()
    low, high = np.array(list(REGION.values())).T
    xy = np.round(low + (high - low) * places.random((ENTITIES, 2)), 5)
    flat = xy * KM_PER_DEGREE * [np.cos(np.radians(np.mean(REGION["lat"]))), 1]
    distance = np.round(np.sqrt(np.square(flat[:, None] - flat[None]).sum(axis=2)), 3)
    np.fill_diagonal(distance, np.inf)
    near = np.argsort(distance, axis=1, kind="stable")[:, :NEAREST]
    chosen = edges.permuted(near, axis=1)[:, :SOURCES].astype(np.int64)
    far = np.take_along_axis(distance, chosen, axis=1)
    return xy, chosen, np.round(np.exp2(-far / np.median(far)), 6)


@cache
def _own() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Level (n,) and daily cycle (DAY, n) of every entity."""
    levels = _parts()[2]
    level, amplitude = np.round(levels.uniform(20, 60, ENTITIES), 3), np.round(levels.uniform(0.5, 1.5, ENTITIES), 3)
    angle = np.arange(DAY) * (2 * np.pi / DAY)
    shape = np.round(np.cos(angle - 15 / DAY * 2 * np.pi) + 0.4 * np.cos(2 * angle), 9)
    return level, shape[:, None] * amplitude


def truth() -> LinearGaussian:
    """The autoregression in the order x_t, x_{t-1}, z_t, z_{t-1}, all of which a window shows."""
    _, sources, weight = _graph()
    level, cycle = _own()
    n, one = ENTITIES, np.eye(ENTITIES)
    along = np.zeros((n, n))
    np.put_along_axis(along, sources, weight / weight.sum(axis=1, keepdims=True), axis=1)
    transition, noise = np.zeros((2, 4, n, 4, n))
    transition[0, :, 0], transition[0, :, 1], transition[0, :, 3] = (
        OWN * one + ALONG * along,
        SECOND * one,
        FORCING * one,
    )
    transition[1, :, 0], transition[2, :, 2], transition[3, :, 2] = one, MEMORY * one, one
    noise[0, :, 0], noise[2, :, 2] = one, DRIVE**2 * one
    shown = (Show(), Show(back=1), Show("forcing"), Show("forcing", back=1))
    return LinearGaussian("level", transition.reshape(4 * n, -1), noise.reshape(4 * n, -1), level, cycle, shown)


def simulate(steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and z of the first `steps` steps (t, n), unrounded."""
    _, sources, weight = _graph()
    share = weight / weight.sum(axis=1, keepdims=True)
    noise, weather = _parts()[3:]
    x, z = np.zeros((2, BURN_IN + steps, ENTITIES))
    for t in range(2, BURN_IN + steps):
        z[t] = MEMORY * z[t - 1] + DRIVE * weather.standard_normal(ENTITIES)
        came = sum(share[:, k] * x[t - 1, sources[:, k]] for k in range(SOURCES))
        x[t] = OWN * x[t - 1] + ALONG * came + SECOND * x[t - 2] + FORCING * z[t - 2] + noise.standard_normal(ENTITIES)
    return x[BURN_IN:], z[BURN_IN:]


def read(files: dict[str, Path]) -> RawTables:
    """Raw tables: observations, entities, edges and the weather. There are no files."""
    x, z = simulate(STEPS)
    xy, sources, weight = _graph()
    level, cycle = _own()
    hour = timedelta(hours=1)
    times = pl.datetime_range(START, START + (STEPS - 1) * hour, hour, time_unit="us", eager=True).alias("time")
    names = pl.Series("entity", [f"n{i:03d}" for i in range(ENTITIES)])
    values = np.round(level + cycle[np.arange(STEPS) % DAY] + x, 4).astype(np.float32)
    n = np.arange(ENTITIES)
    return {
        "observations": dense_observations(times, {"level": values}),
        "entities": pl.DataFrame({"entity": names, "lon": xy[:, 0], "lat": xy[:, 1]}),
        "edges": pl.DataFrame(
            {
                "source": names.gather(sources.ravel()),
                "target": names.gather(np.repeat(n, SOURCES)),
                "weight": weight.ravel(),
            }
        ),
        "weather": pl.DataFrame(
            {
                "entity": names.gather(np.tile(n, STEPS)),
                "time": (times - hour).gather(np.repeat(np.arange(STEPS), ENTITIES)),
                "forcing": np.round(z, 4).ravel(),
            }
        ),
    }
