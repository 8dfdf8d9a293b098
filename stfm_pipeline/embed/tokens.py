"""Values as tokens: quantile bins, and a codebook of temporal patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import Tokens
from stfm_pipeline.harmonize import scaler
from stfm_pipeline.tables import Signal

VALUES = 1_000_000
PATCHES = 20_000
PATCHES_AT_ONCE = 8192
ROUNDS = 300
Floats = NDArray[np.floating]


def bins(signal: Signal, train: slice, count: int) -> pl.DataFrame:
    """Bins of each channel with equal shares of the training values: `code`, `low`, `high`, `mean`, `count`.

    Edges are quantiles in data units, values themselves; equal ones are one, so that a channel that is mostly 0 has
    fewer bins. The first and the last bin have no outer edge. Of more than a million values, those of some steps, drawn
    at random, are looked at.
    """
    rows = train.start + _some(train.stop - train.start, VALUES // max(1, len(signal.entities)))
    values, observed = signal.values[rows], signal.observed[rows]
    frames = []
    for k, channel in enumerate(signal.channels):
        known = values[..., k][observed[..., k]].astype(np.float64)
        edges = np.zeros(0)
        if len(known):
            edges = np.unique(np.quantile(known, np.arange(1, count) / count, method="lower"))
            edges = edges[edges > known.min()]
        codes = to_bins(known, edges)
        counts = np.bincount(codes, minlength=len(edges) + 1)
        means = np.bincount(codes, known, len(edges) + 1) / np.maximum(counts, 1)
        frame = pl.DataFrame(
            {
                "channel": pl.repeat(channel, len(counts), dtype=pl.String, eager=True),
                "code": np.arange(len(counts), dtype=np.int32),
                "low": pl.Series([None, *edges], dtype=pl.Float64),
                "high": pl.Series([*edges, None], dtype=pl.Float64),
                "mean": np.where(counts > 0, means, np.nan),
                "count": counts.astype(np.int64),
            }
        )
        frames.append(frame.with_columns(pl.col("mean").fill_nan(None)))
    return pl.concat(frames)


def _some(count: int, most: int) -> NDArray[np.int64]:
    """All of `count` positions, or about `most` of them drawn at random, always the same: no season is favoured."""
    most = max(1, most)
    return np.arange(count) if count <= most else np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def to_bins(values: Floats, edges: Floats) -> NDArray[np.int64]:
    """Codes of values by inner edges in rising order; a value at an edge belongs to the bin that begins there."""
    return np.searchsorted(edges, values, side="right")


def inner_edges(table: pl.DataFrame, channel: str) -> Floats:
    """The inner edges of a channel's bins."""
    return np.asarray(table.filter(channel=channel)["low"].drop_nulls().to_numpy())


@dataclass(frozen=True)
class Codebook:
    """Patches (k, p) in standard units with how often each is the nearest in train, and what they miss.

    `facts` hold mean squared errors on train and val of the codebook, of the training mean alone, and of one principal
    component (one number a patch, as a code is), and how many codes are dead: no training patch's nearest.
    """

    codes: NDArray[np.float32]
    counts: NDArray[np.int64]
    facts: dict[str, Any]

    def to_frame(self) -> pl.DataFrame:
        return pl.DataFrame(
            {
                "code": np.arange(len(self.codes), dtype=np.int32),
                "count": self.counts,
                "patch": pl.Series(self.codes).cast(pl.List(pl.Float32)),
            }
        )


def of_spec(signal: Signal, parts: dict[Any, slice], scales: pl.DataFrame, rule: Tokens) -> Codebook:
    """The codebook that a dataset asks for, of values standardised by its scaler."""
    mean, std = scaler.arrays(scales, len(signal.entities), len(signal.channels))
    return codebook(signal, parts, mean, std, rule.codebook, rule.steps)


def codebook(signal: Signal, parts: dict[Any, slice], mean: Floats, std: Floats, size: int, length: int) -> Codebook:
    """Vector quantisation of patches of `length` steps of every series, standardised by `mean` and `std` (n, c).

    Codes are drawn by k-means++ and moved to the means of their patches until none changes (Lloyd, 1982): the fixed
    point of the codebook loss of VQ-VAE (van den Oord et al., 2017) where the encoder is the identity. Of more than
    20 000 training patches, so many are drawn at random to learn from; patches with a gap are left out.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    found = {p: patches(signal, parts[p], mean, std, length) for p in ("train", "val")}
    train = found["train"][_some(len(found["train"]), PATCHES)]
    size = min(size, len(np.unique(train, axis=0)))
    if not size:
        return Codebook(np.zeros((0, length), np.float32), np.zeros(0, np.int64), {"codes": 0})
    # Sums in another order would round to another codebook.
    with threadpool_limits(1):
        fitted = KMeans(size, n_init=1, max_iter=ROUNDS, tol=0, random_state=0).fit(train)
    codes = fitted.cluster_centers_
    codes = codes[np.lexsort(codes.T[::-1])].astype(np.float32)
    middle = train.mean(axis=0)
    axis = np.linalg.svd(train - middle, full_matrices=False)[2][:1]
    counts, errors = {}, {}
    for part, own in found.items():
        nearest = quantise(own, codes)
        counts[part] = np.bincount(nearest, minlength=size)
        errors[part] = {
            "codebook": _error(own - codes[nearest]),
            "mean": _error(own - middle),
            "one_component": _error((own - middle) - (own - middle) @ axis.T @ axis),
        }
    facts = {
        "codes": size,
        "steps": length,
        "rounds": int(fitted.n_iter_),
        "patches": {p: len(v) for p, v in found.items()},
        "error": errors,
        "dead": int((counts["train"] == 0).sum()),
        "unused_in_val": int((counts["val"] == 0).sum()),
    }
    return Codebook(codes, counts["train"], facts)


def patches(signal: Signal, part: slice, mean: Floats, std: Floats, length: int) -> NDArray[np.float32]:
    """(m, length) standardised stretches of every series within a part, one after the other, that have no gap.

    Of more than 200 000 those that begin at some steps, drawn at random.
    """
    width = signal.values[0].size
    begins = _some((part.stop - part.start) // length, 10 * PATCHES // width)
    rows = (part.start + begins[:, None] * length + np.arange(length)).ravel()
    standard = ((signal.values[rows] - mean) / std).astype(np.float32)
    shape = (len(begins), length, width)
    whole = signal.observed[rows].reshape(shape).all(axis=1)
    return np.asarray(standard.reshape(shape).swapaxes(1, 2)[whole])


def quantise(patches: Floats, codes: Floats) -> NDArray[np.int64]:
    """The nearest code of each patch; of equal ones the first."""
    out = np.zeros(len(patches), np.int64)
    half = (codes.astype(np.float64) ** 2).sum(axis=1) / 2
    for i in range(0, len(patches), PATCHES_AT_ONCE):
        part = patches[i : i + PATCHES_AT_ONCE].astype(np.float64)
        out[i : i + len(part)] = (half - part @ codes.T.astype(np.float64)).argmin(axis=1)
    return out


def _error(rest: Floats) -> float | None:
    return round(float((rest.astype(np.float64) ** 2).mean()), 6) if len(rest) else None
