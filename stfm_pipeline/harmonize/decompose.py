"""Signals as sums of parts, each from the present and the past alone.

`seasonal`, `trend`, `remainder`: the season is a profile that STL (Cleveland et al., 1990) found in the training part;
the trend is the mean of what is left over the last period. `detail1` ... `smooth`: the redundant Haar transform a
trous, each scale a mean over twice as many last steps as the one before (Renaud, Starck, Murtagh, 2005).
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.rules import Decompose
from stfm_pipeline.tables import Check, Signal, stretches

Values = NDArray[np.float64]
Mask = NDArray[np.bool_]


def reach(rule: Decompose) -> int:
    """How many steps before a value its parts look back on."""
    return max((rule.period or 1) - 1, (1 << rule.levels) - 1)


def names(rule: Decompose, channels: tuple[str, ...]) -> tuple[str, ...]:
    """The parts of all channels, such as `level.trend`, channel after channel."""
    season = ("seasonal", "trend", "remainder") if rule.period else ()
    scales = (*(f"detail{i + 1}" for i in range(rule.levels)), "smooth") if rule.levels else ()
    return tuple(f"{c}.{part}" for c in channels for part in (*season, *scales))


def components(signal: Signal, profile: NDArray[np.float64], rule: Decompose) -> Signal:
    """The parts of a signal, observed where it is; `profile` (phase, n, c) is the season's."""
    parts = names(rule, signal.channels)
    each = len(parts) // len(signal.channels)
    out = np.zeros((*signal.values.shape[:2], len(parts)), np.float32)
    phase = phases(signal.times, signal.step_us, rule.period or 1)
    for k in range(len(signal.channels)):
        for n in stretches(len(signal.entities), len(signal.times)):
            seen = signal.observed[:, n, k]
            x = np.where(seen, signal.values[:, n, k], 0).astype(np.float64)
            found = _season(x, seen, profile[:, n, k][phase], rule.period) if rule.period else []
            found += _scales(x, seen, rule.levels) if rule.levels else []
            for i, part in enumerate(found):
                out[:, n, k * each + i] = np.where(seen, part, 0)
    return Signal(signal.times, signal.entities, parts, out, np.repeat(signal.observed, each, axis=2))


def phases(times: NDArray[np.datetime64], step: int, period: int) -> NDArray[np.int64]:
    """The place of each step in the season, counted from 1970, so that it does not depend on where a clock starts."""
    return np.asarray(times.astype(np.int64) // step % period)


def _season(x: Values, seen: Mask, season: Values, period: int) -> list[Values]:
    trend = _trailing_mean(np.where(seen, x - season, 0), seen, period)
    return [season, trend, x - season - trend]


def _scales(x: Values, seen: Mask, levels: int) -> list[Values]:
    found, finer = [], x
    for level in range(1, levels + 1):
        coarser = _trailing_mean(x, seen, 2**level)
        found.append(finer - coarser)
        finer = coarser
    return [*found, finer]


def _trailing_mean(x: Values, seen: Mask, width: int) -> Values:
    """Means over what is observed of the last `width` steps; `x` is 0 where it is not."""
    return trailing_sum(x, width) / np.maximum(trailing_sum(seen.astype(np.float64), width), 1)


def trailing_sum(x: Values, width: int) -> Values:
    """Sums of (t, n) over the last `width` steps, in an order that does not depend on where the series starts."""
    out, done, block, size = np.zeros_like(x), 0, x, 1
    while True:
        if width & size:
            out = out + _later(block, done)
            done += size
        if 2 * size > width:
            return out
        block, size = block + _later(block, size), 2 * size


def _later(x: Values, steps: int) -> Values:
    out = np.zeros_like(x)
    out[steps:] = x[: max(len(x) - steps, 0)]
    return out


def fit(signal: Signal, train: slice, period: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What STL finds in the training part: the `seasonal` value per phase, entity and channel, and how strong it is.

    The profile is the mean of STL's seasonal part over the steps of a phase and sums to 0. Strength is
    1 - Var(remainder) / Var(part + remainder), from 0 to 1 (Wang, Smith, Hyndman, 2006). Gaps are bridged by straight
    lines for this alone; a series with less than two periods observed has no season, and no strength.
    """
    from statsmodels.tsa.seasonal import STL

    n, c = len(signal.entities), len(signal.channels)
    phase = phases(signal.times[train], signal.step_us, period)
    profile, strength = np.zeros((period, n, c)), np.full((2, n, c), np.nan)
    steps = np.arange(len(phase))
    for i, k in np.ndindex(n, c):
        seen = np.flatnonzero(signal.observed[train, i, k])
        if len(seen) < 2 * period or np.ptp(values := signal.values[train, i, k][seen].astype(np.float64)) == 0:
            continue
        found = STL(np.interp(steps, seen, values), period=period).fit()
        total, count = (np.bincount(phase[seen], weights, minlength=period) for weights in (found.seasonal[seen], None))
        means = total / np.maximum(count, 1)
        profile[:, i, k] = means - means.mean()
        for row, part in enumerate((found.seasonal, found.trend)):
            whole = np.var((part + found.resid)[seen])
            strength[row, i, k] = max(0.0, 1 - np.var(found.resid[seen]) / whole) if whole > 0 else 0.0
    ids = {"entity": np.repeat(np.array(signal.entities), c), "channel": np.tile(np.array(signal.channels), n)}
    table = {"phase": np.repeat(np.arange(period, dtype=np.int32), n * c)}
    table |= {name: np.tile(column, period) for name, column in ids.items()} | {"seasonal": profile.ravel()}
    strong = {name: pl.Series(strength[row].ravel()).fill_nan(None) for row, name in enumerate(("seasonal", "trend"))}
    return pl.DataFrame(table), pl.DataFrame({**ids, **strong})


def profile_of(table: pl.DataFrame | None, n: int, c: int) -> NDArray[np.float64]:
    """The profile (phase, n, c), with no phase where there is none."""
    return np.zeros((0, n, c)) if table is None else table["seasonal"].to_numpy().reshape(-1, n, c)


def check(signal: Signal, parts: Signal | None, profile: NDArray[np.float64], rule: Decompose | None) -> Check:
    """Whether parts sum to the signal, and are the same where its second half is cut off; without a rule, of none."""
    promise = "parts sum to the value they are parts of, and are the same where what follows is cut off"
    name = "components_sum_and_look_back"
    if parts is None or rule is None:
        return Check(name, True, promise, {})
    t, n, c = signal.values.shape
    grouped = parts.values.reshape(t, n, c, -1).astype(np.float64)
    ways = [grouped[..., :3]] if rule.period else []
    ways += [grouped[..., -rule.levels - 1 :]] if rule.levels else []
    broken = {}
    for way in ways:
        off = signal.observed & (np.abs(way.sum(axis=-1) - signal.values) > 1e-5 * np.abs(way).sum(axis=-1))
        if off.any():
            broken[f"sums of {way.shape[-1]} parts"] = f"{int(off.sum())} are not the value"
    half = slice(0, t // 2)
    early = Signal(signal.times[half], signal.entities, signal.channels, signal.values[half], signal.observed[half])
    if t // 2 and not np.array_equal(components(early, profile, rule).values, parts.values[half]):
        broken["the first half"] = "differs when the second is cut off"
    return Check(name, not broken, promise, broken)
