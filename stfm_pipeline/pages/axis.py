"""Axes with ticks where people count: round values, powers of ten, lengths of time, dates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
PERIODS = (
    *(s * 1_000_000 for s in (1, 5, 15)),
    *(m * 60_000_000 for m in (1, 5, 15)),
    *(h * HOUR_US for h in (1, 3, 6, 12)),
    *(d * DAY_US for d in (1, 3.5, 7, 30, 91, 365)),
)
# Polars durations between ticks, and their lengths in hours.
CALENDAR = {
    **{f"{h}h": h for h in (1, 3, 6, 12)},
    **{f"{d}d": 24 * d for d in (1, 2, 4, 7, 14)},
    **{f"{m}mo": 730 * m for m in (1, 2, 3, 6)},
    **{f"{y}y": 8766 * y for y in (1, 2, 5, 10, 50)},
}
MOST_TICKS = 8
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with labelled ticks. A logarithmic axis is given and read in plain values."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...] = ()
    title: str = ""
    log: bool = False

    def share(self, values: ArrayLike) -> NDArray[np.float64]:
        """Where values lie between the ends, 0 to 1; what lies outside is outside."""
        v, low, high = np.asarray(values, np.float64), self.low, self.high
        if self.log:
            v, low, high = np.log(np.maximum(v, low)), math.log(low), math.log(high)
        return np.asarray((v - low) / (high - low if high != low else 1))


def duration(micros: float) -> str:
    """A length of time in the unit people would use: `15 min`, `12 h`, `3.5 d`."""
    for unit, size, until in (("s", 1e6, 60e6), ("min", 60e6, HOUR_US), ("h", HOUR_US, DAY_US)):
        if micros < until:
            return f"{micros / size:.3g} {unit}"
    days = micros / DAY_US
    return f"{days:.3g} d" if days < 100 else f"{days:,.0f} d"


def linear(low: float, high: float, title: str = "", ticks: int = 5) -> Axis:
    """A linear axis with ticks at round values."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / ticks
    base = 10.0 ** math.floor(math.log10(rough))
    round_ones = (1, 2, 2.5, 5, 10) if base >= 10 else (1, 2, 5, 10)
    step = min((m * base for m in round_ones), key=lambda s: abs(math.log(s / rough)))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    at = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
    plain = decimals <= 5 and max(abs(low), abs(high)) < 1e7
    return Axis(low, high, tuple((float(v), f"{v:,.{decimals}f}" if plain else f"{v:.3g}") for v in at), title)


def logarithmic(low: float, high: float, title: str = "") -> Axis:
    """A logarithmic axis with ticks at powers of ten."""
    high = max(high, low * 10)
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    every = math.ceil(len(powers) / 6)
    named = {p: f"{10.0**p:,g}" if -3 <= p <= 4 else f"10{str(p).translate(SUPERSCRIPT)}" for p in powers}
    return Axis(low, high, tuple((10.0**p, text) for p, text in named.items() if p % every == 0), title, log=True)


def periods(low: float, high: float, title: str = "period") -> Axis:
    """A logarithmic axis of lengths of time in microseconds, with ticks where people count."""
    axis = Axis(low, max(high, 2 * low), (), title, log=True)
    kept: list[tuple[float, str]] = []
    for value in PERIODS:
        place = float(axis.share(value))
        if low <= value <= high and (not kept or place - float(axis.share(kept[-1][0])) > 0.12):
            kept.append((value, duration(value)))
    return Axis(axis.low, axis.high, tuple(kept), title, log=True)


def dates(start: float, end: float, title: str = "") -> Axis:
    """An axis of UTC microseconds with ticks at round hours, days, months or years; the first names its year."""
    first, last = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=float(v)) for v in (start, end))
    hours = (last - first) / timedelta(hours=1)
    every = next((k for k, size in CALENDAR.items() if hours / size <= MOST_TICKS), "50y")
    grid = pl.datetime_range(first, last + timedelta(hours=CALENDAR[every]), every, time_unit="us", eager=True)
    stamps = [s for s in grid.dt.truncate(every).to_list() if first <= s <= last]
    named = [
        f"{s:%Y}" if every.endswith("y") or (every.endswith("mo") and s.month == 1)
        else f"{s:%b}" if every.endswith("mo")
        else f"{s:%H:%M}" if every.endswith("h") and s.hour
        else f"{s.day} {s:%b}"
        for s in stamps
    ]  # fmt: skip
    if named and every.endswith(("d", "mo")) and named[0] != f"{stamps[0]:%Y}":
        named[0] += f" {stamps[0]:%Y}"
    return Axis(start, end, tuple((s.timestamp() * 1e6, text) for s, text in zip(stamps, named, strict=True)), title)
