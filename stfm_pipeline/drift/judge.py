"""Which statistics have left their reference: a test per look, channel, group and kind, corrected for all of them.

A look is a block that has ended; looking more often changes nothing. At each look the mean of the last 1 and the last 4
blocks meets the blocks of the reference in a t-test whose sample sizes are the effective ones under the reference's own
autocorrelation of blocks. All tests of a look are corrected together (Benjamini and Hochberg, 1995: where nothing has
drifted, that bounds the chance of any alarm) and for the looks of a year.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stfm_pipeline.drift.blocks import FEWEST, Floats, Track

RATE = 0.5
# Blocks are not normal: however many there are, their tails are taken to be those of a t with this much freedom.
FREEDOM = 6
WINDOWS = (1, 4)


@dataclass(frozen=True)
class Verdict:
    """Of one track: `centre` and `band` (g, c) of the reference, and per block (b, g, c) the least corrected `p` as
    expected false alarms in a year, the window it comes from, and whether it is an alarm."""

    track: Track
    centre: Floats
    band: Floats
    p: Floats
    window: NDArray[np.int64]
    alarm: NDArray[np.bool_]

    def change(self, block: int, window: int) -> Floats:
        """The mean (g, c) of the window that ends with the block."""
        return np.asarray(self.track.values[block - window + 1 : block + 1].mean(axis=0))

    def since(self, block: int, group: int, channel: int) -> int:
        """The block at which the evidence of an alarm begins: the likeliest one for a shift that lasts until now."""
        path = self.track.values[self.track.first : block + 1, group, channel] - self.centre[group, channel]
        window = int(self.window[block, group, channel])
        path = np.nan_to_num(path * np.sign(path[-window:].mean()))
        tail = np.cumsum(path[::-1]) / np.sqrt(np.arange(1, len(path) + 1))
        return block - int(tail.argmax())


def judge(tracks: Sequence[Track], looks_per_year: float) -> list[Verdict]:
    """Every track judged at every look, all of a look's tests corrected together."""
    from scipy.stats import false_discovery_control

    tests = [(i, m, *_test(track, m)) for i, track in enumerate(tracks) for m in WINDOWS]
    raw = np.stack([test[2] for test in tests], axis=1)
    corrected = np.full(raw.shape, np.nan)
    for b in range(len(raw)):
        told = np.isfinite(raw[b])
        if told.any():
            corrected[b][told] = false_discovery_control(raw[b][told], method="bh") * looks_per_year
    out = []
    for i, track in enumerate(tracks):
        mine = [j for j, test in enumerate(tests) if test[0] == i]
        p = corrected[:, mine]
        # A window that left the reference counts before one that did not, then the smaller p.
        real = np.stack([tests[j][3] for j in mine], axis=1)
        alarm = (np.nan_to_num(p, nan=np.inf) <= RATE) & real
        rank = np.where(alarm, 0, 1e9) + np.nan_to_num(p, nan=1e8)
        best = rank.argmin(axis=1)[:, None]
        centre, _, _ = _usual(track)
        out.append(
            Verdict(
                track,
                centre,
                _furthest(track, 1),
                np.take_along_axis(p, best, axis=1)[:, 0],
                np.array(WINDOWS)[best[:, 0]],
                alarm.any(axis=1),
            )
        )
    return out


def _usual(track: Track) -> tuple[Floats, Floats, Floats]:
    """Mean, deviation and autocorrelation (g, c) of the reference's blocks; NaN where they are too few."""
    known = track.values[track.reference]
    seen = np.isfinite(known)
    count = seen.sum(axis=0)
    few = count < FEWEST
    mean = np.where(seen, known, 0).sum(axis=0) / np.maximum(count, 1)
    apart = np.where(seen, known - mean, 0)
    variance = (apart**2).sum(axis=0) / np.maximum(count - 1, 1)
    together = (apart[1:] * apart[:-1]).sum(axis=0) / np.maximum((apart**2).sum(axis=0), 1e-300)
    # A reference that never moved is granted a little, so that its first move is not beyond all measure.
    deviation = np.maximum(np.sqrt(variance), track.least / 5)
    return np.where(few, np.nan, mean), np.where(few, np.nan, deviation), np.clip(together, 0, 0.9)


def _test(track: Track, window: int) -> tuple[Floats, NDArray[np.bool_]]:
    """p-values (b, g, c) of the window that ends with each block, NaN where not judged, and whether the window is
    further away than any of the reference and than the least change that matters."""
    from scipy.stats import t

    mean, deviation, together = _usual(track)
    size = np.isfinite(track.values[track.reference]).sum(axis=0)
    loss = (1 + together) / (1 - together)
    theirs, ours = np.maximum(size / loss, 2), np.maximum(window / loss, 1)
    now = _means(track.values, window)
    now[: track.first + window - 1] = np.nan
    apart = now - mean
    score = apart / (deviation * np.sqrt(1 / ours + 1 / theirs))
    freedom = np.minimum(theirs - 1, FREEDOM)
    p = t.sf(score, freedom) if track.worse else 2 * t.sf(np.abs(score), freedom)
    distance = apart if track.worse else np.abs(apart)
    with np.errstate(invalid="ignore"):
        real = (distance >= track.least) & (distance > _furthest(track, window))
    return np.asarray(p), np.asarray(real)


def _means(values: Floats, window: int) -> Floats:
    """Means of the last `window` blocks at each block, NaN before there are so many."""
    out = np.full(values.shape, np.nan)
    if len(values) >= window:
        out[window - 1 :] = np.lib.stride_tricks.sliding_window_view(values, window, axis=0).mean(axis=-1)
    return out


def _furthest(track: Track, window: int) -> Floats:
    """The largest distance (g, c) from the mean among the reference's own windows."""
    mean, _, _ = _usual(track)
    apart = np.abs(_means(track.values[track.reference], window) - mean)
    return np.where(np.isnan(mean), np.nan, np.nan_to_num(apart).max(axis=0, initial=0))
