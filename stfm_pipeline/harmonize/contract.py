"""What a harmonized stage promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from stfm_pipeline import origins
from stfm_pipeline.datasets.spec import Channel, DatasetSpec
from stfm_pipeline.harmonize import split
from stfm_pipeline.harmonize.mask import is_masked
from stfm_pipeline.large import total
from stfm_pipeline.tables import Check, Signal, step_us


def contract(
    spec: DatasetSpec, signal: Signal, stated: dict[str, Any], parts: split.Parts, goes_on: bool
) -> list[Check]:
    """What a harmonized stage with these facts promises; one failed check and nothing is published."""
    gaps = np.diff(signal.times.astype(np.int64))
    facts = spec.facts.unlike(stated, goes_on)
    needed = {p: spec.task.horizon + (spec.task.look_back if p == "train" else 0) for p in parts}
    seen = {p: int(signal.observed[s.start : s.stop].any(axis=(1, 2)).sum()) for p, s in parts.items()}
    borders = [edge for p in ("train", "val", "gate", "test") for edge in (parts[p].start, parts[p].stop)]
    if parts["gate"] == parts["val"]:
        del borders[4:6]
    crossing = _crossing(spec, parts)
    strays = {c.name: n for k, c in enumerate(spec.channels) if (n := _outside(c, signal, k))}
    unitless = [c.name for c in spec.channels if not c.unit.strip()]
    return [
        Check(
            "regular_clock", bool((gaps == step_us(spec.harmonize.step)).all()), "every step has the stated length", {}
        ),
        Check(
            "masked_values_are_finite",
            is_masked(signal.values, signal.observed),
            "observed cells are finite, unobserved cells hold 0",
            {},
        ),
        Check(
            "every_part_is_observed",
            all(seen[p] >= min(n, parts[p].stop - parts[p].start) for p, n in needed.items()),
            "no part is little but a gap: it has as many steps with a value as a window needs",
            {p: f"expected {n} steps with a value, found {seen[p]}" for p, n in needed.items() if seen[p] < n},
        ),
        Check(
            "parts_in_order",
            borders == sorted(borders),
            "train, val, gate and test follow one another and share no step, so that no target lies in two of them",
            {},
        ),
        Check(
            "no_window_crosses_the_split",
            not crossing,
            "targets of a window lie in one part, training windows do as a whole, and so do windows in a clip",
            crossing,
        ),
        Check("ranges_kept", not strays, "observed values lie inside their channel's range", strays),
        Check("units_stated", not unitless, "every channel has a unit", dict.fromkeys(unitless, "states none")),
        Check("facts_match", not facts, "size, edges and gaps of the table are those of its documentation", facts),
    ]


def _crossing(spec: DatasetSpec, parts: split.Parts) -> dict[str, str]:
    """The windows of each part that reach where they must not, by their first target step."""
    task = spec.task
    found: dict[str, str] = {}
    for name, part in parts.items():
        every = origins.origins(part, task.look_back, task.horizon, task.clip)
        bad = origins.strays(every, part, task.look_back, task.horizon, task.clip)
        if len(bad):
            found[name] = f"{len(bad)} of {len(every)} windows, the first at step {bad[0]}"
    return found


def _outside(channel: Channel, signal: Signal, k: int) -> int:
    """How many observed values lie outside a channel's range; a sum of several rows has another one."""
    if channel.aggregate == "sum":
        return 0
    low = -np.inf if channel.minimum is None else channel.minimum
    high = np.inf if channel.maximum is None else channel.maximum

    def strays(values: Any, observed: Any) -> Any:
        return (observed[..., k] & ((values[..., k] < np.float32(low)) | (values[..., k] > np.float32(high)))).sum()

    return total(strays, signal.values, signal.observed)


def same_again(learned: dict[str, pl.DataFrame], again: dict[str, pl.DataFrame]) -> Check:
    """Whether what was learned comes out the same from the table cut off after the training part."""
    other = {name: "differs" for name, table in learned.items() if not table.equals(again[name])}
    promise = "cut off after the training part, the table gives the same scaler, edges and whatever else is learned"
    return Check("learned_from_training_part_alone", not other, promise, other)
