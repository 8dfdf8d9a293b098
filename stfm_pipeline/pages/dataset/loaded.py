"""A harmonized dataset in memory, with its civil seasons and a sample of entities for what is costly to measure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import PARTS, DatasetSpec
from stfm_pipeline.embed.temporal import civil_codes
from stfm_pipeline.harmonize.split import Parts, parts_of
from stfm_pipeline.lake import Lake, Stage
from stfm_pipeline.pages.axis import DAY_US, Axis, dates, duration
from stfm_pipeline.tables import ROWS_AT_ONCE, Signal

CELLS = 6_000_000
MOST_ENTITIES, FEWEST_ENTITIES = 256, 12
Block = tuple[NDArray[np.float32], NDArray[np.bool_]]


@dataclass(frozen=True)
class Season:
    """A declared season: its length in steps, its name, and where in it each step lies, (t, zones)."""

    steps: int
    name: str
    civil: bool
    phase: NDArray[np.int64]


@dataclass(frozen=True)
class Loaded:
    """`zone` (n,) is the column of `calendar` (time of day, day of week; each (t, z)) that an entity lives by."""

    spec: DatasetSpec
    stages: dict[str, Stage]
    entities: pl.DataFrame
    signal: Signal
    split: pl.DataFrame
    parts: Parts
    zone: NDArray[np.int64]
    calendar: tuple[NDArray[np.int64], NDArray[np.int64]] | None

    @property
    def shape(self) -> tuple[int, int, int]:
        t, n, c = self.signal.values.shape
        return t, n, c

    @cached_property
    def time_axis(self) -> Axis:
        """The clock from its first step to the end of its last."""
        first, last = (float(stamp(self.signal.times[[i]])[0]) for i in (0, -1))
        return dates(first, last + self.signal.step_us)

    @property
    def borders(self) -> list[int]:
        """Steps at which another part of the split begins."""
        return sorted({self.parts[p].start for p in PARTS} - {0, self.shape[0]})

    @cached_property
    def chosen(self) -> NDArray[np.int64]:
        """The entities that seasons and spectra are measured on, evenly spaced in the index: all where they are few."""
        t, n, c = self.parts["train"].stop - self.parts["train"].start, *self.shape[1:]
        most = int(np.clip(CELLS // max(1, t * c), FEWEST_ENTITIES, MOST_ENTITIES))
        return np.unique(np.linspace(0, n - 1, min(most, n)).round().astype(np.int64))

    @cached_property
    def training(self) -> Block:
        """Values and mask of the chosen entities over the training part."""
        train = self.parts["train"]
        return self.signal.values[train][:, self.chosen], self.signal.observed[train][:, self.chosen]

    def blocks(self) -> Iterator[Block]:
        """Values and mask a few steps at a time."""
        for i in range(0, self.shape[0], ROWS_AT_ONCE):
            yield self.signal.values[i : i + ROWS_AT_ONCE], self.signal.observed[i : i + ROWS_AT_ONCE]

    @cached_property
    def seasons(self) -> tuple[Season, ...]:
        """The declared seasons; a day or a week is one of civil time where the calendar is at hand."""
        step = self.signal.step_us
        day = DAY_US // step if step and DAY_US % step == 0 else 0
        found = []
        for steps in (s for s in self.spec.seasons if s > 1):
            if self.calendar is not None and day and steps in (day, 7 * day):
                tod, dow = self.calendar
                week = steps == 7 * day
                found.append(Season(steps, "week" if week else "day", True, dow * day + tod if week else tod))
            else:
                counted = np.arange(self.shape[0])[:, None] % steps
                found.append(Season(steps, duration(steps * step), False, counted))
        return tuple(found)

    def by_zone(self, season: Season) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
        """Which of the chosen entities share a phase of the season, and that phase over the training part."""
        zone = self.zone[self.chosen] if season.civil else np.zeros(len(self.chosen), np.int64)
        for z in np.unique(zone):
            yield zone == z, season.phase[self.parts["train"], z]


def load(spec: DatasetSpec, lake: Lake, stages: dict[str, Stage]) -> Loaded | None:
    """The published signal with its civil calendar, or None before the harmonized stage."""
    if "harmonized" not in stages:
        return None
    entities, split, rows = (lake.read(stages["harmonized"], t) for t in ("entities", "split", "signal"))
    signal = Signal.from_frame(rows, entities["entity"].to_list(), spec.channel_names)
    zone, calendar = np.zeros(len(entities), np.int64), None
    if "embedded" in stages:
        zones = lake.read(stages["embedded"], "zones")
        civil = lake.read(stages["embedded"], "calendar").select("tod", "dow").cast(pl.Int64)
        tod, dow = (civil[c].to_numpy().reshape(len(signal.times), len(zones)) for c in ("tod", "dow"))
        calendar = tod, dow
        zone = civil_codes(entities, zones)
    return Loaded(spec, stages, entities, signal, split, parts_of(split, signal.times), zone, calendar)


def stamp(times: NDArray[Any]) -> NDArray[np.float64]:
    """Times as UTC microseconds."""
    return times.astype("datetime64[us]").astype(np.int64).astype(np.float64)


def stride(cells: int, most: int, *repeats: int) -> int:
    """The least step between samples that leaves at most `most` and beats with none of the repeats of the data."""
    step = max(1, -(-cells // most))
    while any(math.gcd(step, r) > 1 for r in repeats if r > 0):
        step += 1
    return step
