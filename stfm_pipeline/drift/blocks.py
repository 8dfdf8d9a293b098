"""A signal as one row of statistics per block of whole seasons: what drift is looked for in.

Steps are autocorrelated and seasonal; blocks of at least a week, with each entity's usual season taken off, are nearly
neither. Shapes: `b` block, `t` step of a block, `n` entity, `g` group, `c` channel; group 0 is all entities together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stfm_pipeline.pages.axis import DAY_US, HOUR_US
from stfm_pipeline.pages.dataset.loaded import stride
from stfm_pipeline.tables import Signal

Floats = NDArray[np.float64]
WEEK_US = 7 * DAY_US
FEWEST = 8
FEWEST_CELLS = 24
ALIKE = 0.5
SAMPLE, POOLED = 512, 4096


@dataclass(frozen=True)
class Record:
    """A signal with what it is compared by.

    `phase` (t, z) is where in a season of `season` steps each step lies, `zone` (n,) an entity's column of it, `member`
    (g, n) who belongs to a group; `reference` counts the first steps, those that trained.
    """

    signal: Signal
    phase: NDArray[np.int64]
    zone: NDArray[np.int64]
    season: int
    groups: tuple[str, ...]
    member: NDArray[np.bool_]
    reference: int

    @property
    def block(self) -> int:
        """Steps of a block: the season, as often as makes a week."""
        return self.season * max(1, -(-WEEK_US // (self.season * self.signal.step_us)))

    @property
    def blocks(self) -> int:
        return len(self.signal.times) // self.block

    @property
    def known(self) -> int:
        """Whole blocks of the reference."""
        return min(self.reference // self.block, self.blocks)

    def start(self, block: int) -> np.datetime64:
        found: np.datetime64 = self.signal.times[0] + np.timedelta64(block * self.block * self.signal.step_us, "us")
        return found

    def until(self, blocks: int) -> Record:
        """What was there when so many blocks had ended."""
        s, t = self.signal, blocks * self.block
        cut = Signal(s.times[:t], s.entities, s.channels, s.values[:t], s.observed[:t])
        return replace(self, signal=cut, phase=self.phase[:t])

    def spans(self) -> Iterator[tuple[int, slice]]:
        return ((b, slice(b * self.block, (b + 1) * self.block)) for b in range(self.blocks))


@dataclass(frozen=True)
class Track:
    """One statistic (b, g, c) over all blocks, NaN where it cannot be told.

    Blocks `reference` say what is usual, blocks from `first` on are judged. A change below `least` is none; with
    `worse` only a rise is one. `unit` (g, c) is what 1 stands for, unless the statistic is the logarithm of a ratio.
    """

    kind: str
    values: Floats
    reference: slice
    first: int
    least: float
    worse: bool = False
    ratio: bool = False
    unit: Floats | float = 1.0

    def plain(self, values: Floats) -> Floats:
        """Values (..., g, c) as people would say them."""
        return np.asarray(np.exp(values) if self.ratio else values * self.unit)


@dataclass(frozen=True)
class Usual:
    """The reference's season (z, s, n, c) with how many values made it, and the deviation from it (n, c)."""

    profile: Floats
    count: NDArray[np.int64]
    deviation: Floats


def tracks(record: Record) -> list[Track]:
    """Level, scale, distribution, phase and missing share of every group and channel, block by block."""
    usual = usual_of(record)
    n, c, g = len(record.signal.entities), len(record.signal.channels), len(record.groups)
    member = record.member.astype(np.float64)
    out = {k: np.full((record.blocks, g, c), np.nan) for k in ("level", "scale", "distribution", "phase", "missing")}
    samples = np.full((record.blocks, g, c, SAMPLE), np.nan, np.float32)
    for b, span in record.spans():
        z, seen = _deviations(record, usual, b, span)
        count, total, square = seen.sum(axis=0), z.sum(axis=0), (z**2).sum(axis=0)
        cells = member @ count
        enough = cells >= FEWEST_CELLS
        within = member @ (square - total**2 / np.maximum(count, 1))
        freedom = np.maximum(cells - member @ (count > 0), 1)
        out["level"][b] = np.where(enough, member @ total / np.maximum(cells, 1), np.nan)
        out["scale"][b] = np.where(enough & (within > 0), np.log(np.maximum(within / freedom, 1e-12)) / 2, np.nan)
        measured = member @ record.signal.observed[span].sum(axis=0)
        out["missing"][b] = 1 - measured / (record.block * member.sum(axis=1, keepdims=True))
        out["phase"][b] = np.where(enough, _lag(record, usual, span, z), np.nan)
        for i, who in enumerate(record.member):
            for k in range(c):
                values = z[:, who, k][seen[:, who, k]]
                some = values[:: stride(len(values), SAMPLE, int(who.sum()), record.season)][:SAMPLE]
                samples[b, i, k, : len(some)] = some
    out["distribution"] = _distances(samples, record.known)
    first = -(-record.reference // record.block)
    hours = record.signal.step_us / HOUR_US
    spread = member @ usual.deviation / np.maximum(member.sum(axis=1, keepdims=True), 1)
    forms: dict[str, tuple[float, bool, Floats | float]] = {
        "level": (0.25, False, spread),
        "scale": (float(np.log(1.25)), True, 1.0),
        "distribution": (0.1, False, 1.0),
        "phase": (max(1.0, 0.5 / hours), False, hours),
        "missing": (0.05, False, 1.0),
    }
    assert usual.deviation.shape == (n, c)
    reference = slice(0, record.known)
    return [
        Track(k, out[k], reference, first, least, worse=k == "distribution", ratio=ratio, unit=unit)
        for k, (least, ratio, unit) in forms.items()
    ]


def usual_of(record: Record) -> Usual:
    signal, end = record.signal, record.known * record.block
    n, c, zones = len(signal.entities), len(signal.channels), record.phase.shape[1]
    profile, count = np.zeros((record.season, n, c)), np.zeros((record.season, n, c), np.int64)
    for z in range(zones):
        who = np.flatnonzero(record.zone == z)
        order = np.argsort(record.phase[:end, z], kind="stable")
        edges = np.searchsorted(record.phase[order, z], np.arange(record.season + 1))
        for s in range(record.season):
            rows = order[edges[s] : edges[s + 1]]
            seen = signal.observed[rows][:, who]
            count[s, who] = seen.sum(axis=0)
            total = np.where(seen, signal.values[rows][:, who], 0).sum(axis=0, dtype=np.float64)
            profile[s, who] = total / np.maximum(count[s, who], 1)
    usual = Usual(profile, count, np.ones((n, c)))
    size, square = np.zeros((n, c)), np.zeros((n, c))
    for b, span in record.spans():
        if b < record.known:
            apart, known = _deviations(record, usual, b, span)
            size += known.sum(axis=0)
            square += (apart**2).sum(axis=0)
    deviation = np.sqrt(square / np.maximum(size, 1))
    whole = np.sqrt(square.sum(axis=0) / np.maximum(size.sum(axis=0), 1))
    # A series that never moved is judged by how the others move.
    deviation = np.where(deviation > 1e-6 * np.maximum(whole, 1e-12), deviation, np.where(whole > 0, whole, 1.0))
    return replace(usual, deviation=deviation)


def _deviations(record: Record, usual: Usual, block: int, span: slice) -> tuple[Floats, NDArray[np.bool_]]:
    """Distance from the usual season in deviations (t, n, c), 0 where unknown, and where it is known.

    A block of the reference is compared with the season of the others, as any later block is.
    """
    phase = record.phase[span][:, record.zone]
    who = np.arange(len(record.zone))
    count = usual.count[phase, who]
    seen = record.signal.observed[span] & (count > 1)
    z = np.where(seen, (record.signal.values[span] - usual.profile[phase, who]) / usual.deviation, 0.0)
    if block < record.known:
        z *= count / np.maximum(count - 1, 1)
    return z, seen


def _lag(record: Record, usual: Usual, span: slice, z: Floats) -> Floats:
    """Steps (g, c) by which the block's rhythm comes later than the usual one; NaN where there is no rhythm."""
    if record.season < 2:
        return np.full((len(record.groups), z.shape[2]), np.nan)
    who = np.arange(len(record.zone))
    share = record.member / np.maximum(record.member.sum(axis=1, keepdims=True), 1)
    rhythm = usual.profile[record.phase[span][:, record.zone], who] / usual.deviation
    usually = np.einsum("gn,tnc->tgc", share, rhythm, optimize=True)
    now = usually + np.einsum("gn,tnc->tgc", share, z, optimize=True)
    usually, now = usually - usually.mean(axis=0), now - now.mean(axis=0)
    spectrum = np.fft.rfft(now, axis=0) * np.conj(np.fft.rfft(usually, axis=0))
    match = np.fft.irfft(spectrum, len(now), axis=0)
    day = max(2, min(record.season, DAY_US // record.signal.step_us or record.season))
    lags = np.arange(-(day // 2), (day + 1) // 2)
    best = match[lags].argmax(axis=0)
    at = lags[best]
    before, here, after = (np.take_along_axis(match, ((at + d) % len(now))[None], axis=0)[0] for d in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, 1), 0)
    # Noise is best matched anywhere; a rhythm that has only moved still looks like itself.
    alike = (here > 0) & (here >= ALIKE * np.sqrt((usually**2).sum(axis=0) * (now**2).sum(axis=0)))
    return np.where(alike, at + np.clip(shift, -0.5, 0.5), np.nan)


def _distances(samples: NDArray[np.float32], known: int) -> Floats:
    """Kolmogorov-Smirnov distance (b, g, c) of each block's values from those of the reference."""
    from scipy.stats import ks_2samp

    out = np.full(samples.shape[:3], np.nan)
    for i, k in np.ndindex(*samples.shape[1:3]):
        pooled = samples[:known, i, k].ravel()
        pooled = pooled[np.isfinite(pooled)]
        pooled = pooled[:: max(1, -(-len(pooled) // POOLED))]
        for b, row in enumerate(samples[:, i, k]):
            values = row[np.isfinite(row)]
            if len(values) >= FEWEST_CELLS and len(pooled) >= FEWEST_CELLS:
                distance = float(ks_2samp(values, pooled, method="asymp").statistic)
                # A block of the reference is in what it is compared with.
                out[b, i, k] = distance * (known / (known - 1) if b < known and known > 1 else 1)
    return out
