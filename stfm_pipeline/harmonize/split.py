"""Chronological parts, frozen as dates the first time they are drawn."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import PARTS, Part, Split, Task
from stfm_pipeline.errors import ContractError

log = logging.getLogger("stfm")
Parts = dict[Part, slice]


def draw(times: NDArray[np.datetime64], rule: Split, task: Task) -> pl.DataFrame:
    """Split table (part, start, end, end exclusive) for these times; published counts may leave later steps unused."""
    t = len(times)
    if rule.counts is not None:
        counts = np.array(rule.counts)
    elif rule.of == "windows":
        counts = _by_windows(t, cast("tuple[float, ...]", rule.ratios), task)
    else:
        edges = np.round(np.cumsum((0.0, *cast("tuple[float, ...]", rule.ratios))) * t).astype(int)
        counts = np.diff(edges)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    if task.clip is not None and rule.counts is None:
        bounds[1:-1] = np.round(bounds[1:-1] / task.clip) * task.clip
    if task.clip is not None and (
        cut := [f"{p}: {b}" for p, b in zip(PARTS, bounds[:-1], strict=True) if b % task.clip]
    ):
        raise ContractError(
            "the split cuts through clips",
            expected=f"parts that start at multiples of {task.clip} steps",
            offenders=cut,
            fix="make the split's counts whole clips",
        )
    if bounds[-1] > t:
        raise ContractError(
            "the split is longer than the data", expected=f"{bounds[-1]} steps", found=f"{t} steps", fix="shorten it"
        )
    step = times[1] - times[0] if t > 1 else np.timedelta64(1, "us")
    stamps = np.append(times, times[-1] + step)[bounds]
    start = pl.Series(stamps[:-1]).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    end = pl.Series(stamps[1:]).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return pl.DataFrame({"part": list(PARTS), "start": start, "end": end})


def _by_windows(t: int, ratios: tuple[float, ...], task: Task) -> NDArray[np.int64]:
    windows = max(t - task.look_back - task.horizon + 1, 0)
    train, val, gate = (round(windows * r) for r in ratios[:3])
    last = windows - train - val - gate
    return np.array([train + task.look_back, val, gate, last + task.horizon - 1])


def carry(frozen: pl.DataFrame, times: NDArray[np.datetime64], task: Task) -> pl.DataFrame | None:
    """A frozen split on a longer clock: every boundary stays, the newest part takes the new steps.

    None where it cannot stay: the clock starts elsewhere, or no longer reaches into every part.
    """
    step = times[1] - times[0] if len(times) > 1 else np.timedelta64(1, "us")
    first, until = (
        pl.Series(np.append(times[:1], times[-1:] + step)).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    )
    if frozen["start"].min() != first:
        log.warning("the split is drawn anew: the clock starts at %s, not at %s", first, frozen["start"].min())
        return None
    last = frozen["end"].max()
    longer = frozen.with_columns(end=pl.when(pl.col("end") == last).then(until).otherwise("end"))
    try:
        check_lengths(parts_of(longer, times), task)
    except ContractError as error:
        log.warning(
            "the split is drawn anew: on this clock the old one leaves %s too short", ", ".join(error.offenders)
        )
        return None
    return longer


def parts_of(split: pl.DataFrame, times: NDArray[np.datetime64]) -> Parts:
    """Index range of each part on this clock; an unpublished gate falls back to val."""
    found: Parts = {}
    for row in split.to_dicts():
        edges = [np.datetime64(cast(datetime, row[k]).replace(tzinfo=None), "us") for k in ("start", "end")]
        lo, hi = (int(i) for i in np.searchsorted(times, edges))
        found[row["part"]] = slice(lo, hi)
    if found["gate"].start == found["gate"].stop:
        found["gate"] = found["val"]
    return found


def check_lengths(parts: Parts, task: Task) -> None:
    """Every part must hold at least one window: a whole horizon, and for train its look-back as well."""
    needed = {p: task.horizon + (task.look_back if p == "train" else 0) for p in PARTS}
    short = [p for p in PARTS if parts[p].stop - parts[p].start < needed[p]]
    if short:
        raise ContractError(
            "the split leaves parts without a single window",
            expected=f"at least {needed['train']} steps of train and {task.horizon} of each other part",
            found=", ".join(f"{p}: {parts[p].stop - parts[p].start}" for p in PARTS),
            offenders=short,
            fix="bring more data, shorten look_back or horizon, or change the split",
        )
