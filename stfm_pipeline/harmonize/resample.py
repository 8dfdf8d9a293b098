"""Rows of one step made one by a channel's stated rule, from rows and from dense tables alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import Channel, Harmonize

Bools = NDArray[np.bool_]
Rounds = list[tuple[Any, Any]]


def refuses(channels: Sequence[Channel], rule: Harmonize) -> bool:
    """Whether a channel does not say what becomes of rows that share a step."""
    return any(_how(c, rule) == "error" for c in channels)


def thins(channels: Sequence[Channel]) -> bool:
    """Whether a channel asks for several rows a step, so that a single one is too few."""
    return any(c.at_least > 1 for c in channels)


def one_of(channel: Channel, rule: Harmonize) -> pl.Expr:
    """One value of a group of rows: the first or last row speaks, observed or not; the rest are of what is observed."""
    column, how = pl.col(channel.name), _how(channel, rule)
    # Where duplicates are an error there are none.
    value = column.first() if how == "error" else getattr(column, how)()
    return pl.when(column.count() >= channel.at_least).then(value).alias(channel.name)


def merged(
    values: NDArray[Any], known: Bools, present: Bools, rounds: Rounds, steps: int, channel: Channel, rule: Harmonize
) -> tuple[NDArray[np.float32], Bools, Bools]:
    """The same for rows of many cells: values, which are observed, and of which there were too few rows.

    `rounds` are the steps that have a first row and where it is, a second row and where it is, and so on.
    """
    shape, how = (steps, values.shape[1]), _how(channel, rule)
    count = np.zeros(shape, np.int32)
    for group, row in rounds:
        count[group] += known[row]
    out, seen = np.full(shape, {"min": np.inf, "max": -np.inf}.get(how, 0.0)), np.zeros(shape, np.bool_)
    for group, row in reversed(rounds) if how in ("first", "error") else rounds:
        here, speaks = values[row], known[row]
        if how in ("first", "last", "error"):
            out[group] = np.where(present[row], here, out[group])
            seen[group] = np.where(present[row], speaks, seen[group])
        elif how in ("mean", "sum"):
            out[group] += np.where(speaks, here, 0)
        else:
            pick = np.minimum if how == "min" else np.maximum
            out[group] = np.where(speaks, pick(out[group], here), out[group])
    if how == "mean":
        out /= np.maximum(count, 1)
    if how not in ("first", "last", "error"):
        seen = count > 0
    few = (count > 0) & (count < channel.at_least)
    with np.errstate(over="ignore"):
        single = out.astype(np.float32)
    return single, seen & ~few & np.isfinite(single), few


def _how(channel: Channel, rule: Harmonize) -> str:
    return channel.aggregate or rule.duplicates
