"""What is missing: shares by channel and part, the longest gaps, and heat strips of entities by time."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import PARTS
from stfm_pipeline.pages.axis import Axis, duration
from stfm_pipeline.pages.base import percent
from stfm_pipeline.pages.chart import Chart
from stfm_pipeline.pages.dataset.loaded import Loaded, stamp

ROWS, COLUMNS = 100, 250
NAMED = 16
SERIES_AT_ONCE = 1024


def missing(d: Loaded) -> list[dict[str, Any]]:
    """Per channel the missing share, overall and by part, and the entities with all or nothing observed."""
    seen = {p: d.signal.observed[d.parts[p]].mean(axis=(0, 1)) for p in PARTS}
    count = d.signal.observed.sum(axis=0, dtype=np.int64)
    return [
        {
            "channel": channel,
            "all": float(1 - count[:, k].sum() / (d.shape[0] * d.shape[1])),
            **{p: float(1 - seen[p][k]) for p in PARTS},
            "complete": int((count[:, k] == d.shape[0]).sum()),
            "empty": int((count[:, k] == 0).sum()),
        }
        for k, channel in enumerate(d.signal.channels)
    ]


def gaps(d: Loaded, most: int = 10) -> list[dict[str, Any]]:
    """The longest gap of each series, longest first, with the share that the series misses in all; land is no gap."""
    t, n, c = d.shape
    observed = d.signal.observed.reshape(t, n * c)
    there = observed.any(axis=0) | (d.spec.kind != "grid")
    blocks = [longest_run(~observed[:, i : i + SERIES_AT_ONCE]) for i in range(0, n * c, SERIES_AT_ONCE)]
    length, start = (np.concatenate(a) for a in zip(*blocks, strict=True))
    length = length * there
    worst = [int(i) for i in np.lexsort((start, -length))[:most] if length[i]]
    lacks = 1 - observed[:, worst].mean(axis=0)
    return [
        {
            "entity": d.signal.entities[i // c],
            "channel": d.signal.channels[i % c],
            "missing": float(share),
            **_span(d, int(start[i]), int(length[i])),
        }
        for i, share in zip(worst, lacks, strict=True)
    ]


def silent(d: Loaded) -> dict[str, Any] | None:
    """Steps at which no entity has any value: how many, and the longest stretch of them."""
    nothing = np.asarray(~d.signal.observed.any(axis=(1, 2)), np.bool_)
    length, start = longest_run(nothing[:, None])
    return {"count": int(nothing.sum()), **_span(d, int(start[0]), int(length[0]))} if nothing.any() else None


def longest_run(flags: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Length and start (m,) of the first longest run of true in each column of (t, m); 0 and 0 where there is none."""
    t, m = flags.shape
    padded = np.zeros((t + 2, m), np.int8)
    padded[1:-1] = flags
    column, edge = np.nonzero(np.diff(padded, axis=0).T)
    begin, length, column = edge[::2], edge[1::2] - edge[::2], column[::2]
    order = np.lexsort((begin, -length, column))
    first = order[np.flatnonzero(np.diff(column[order], prepend=-1))]
    found = np.zeros((2, m), np.int64)
    found[:, column[first]] = length[first], begin[first]
    return found[0], found[1]


def _span(d: Loaded, start: int, steps: int) -> dict[str, Any]:
    step = np.timedelta64(d.signal.step_us, "us")
    first = d.signal.times[start]
    return {
        "start": str(first),
        "end": str(first + steps * step),
        "steps": steps,
        "length": duration(steps * d.signal.step_us),
        "whole": steps == d.shape[0],
    }


def strips(d: Loaded) -> tuple[NDArray[np.float64], int, int]:
    """Observed share (rows, columns, c) of blocks of entities by steps, and the largest block's entities and steps."""
    t, n, _ = d.shape
    rows, columns = (np.arange(min(most, size)) * size // min(most, size) for most, size in ((ROWS, n), (COLUMNS, t)))
    byte = d.signal.observed.view(np.uint8)
    spans = zip(columns, [*columns[1:], t], strict=True)
    by_time = np.stack([byte[a:b].sum(axis=0, dtype=np.uint32) for a, b in spans])
    high, wide = np.diff(rows, append=n), np.diff(columns, append=t)
    total = np.add.reduceat(by_time, rows, axis=1, dtype=np.int64)
    return (total / (wide[:, None] * high)[:, :, None]).transpose(1, 0, 2), int(high.max()), int(wide.max())


def charts(d: Loaded, most: int) -> tuple[list[Markup], str]:
    """A strip for each of the first `most` channels that misses anything, and how large one of its cells is."""
    from stfm_pipeline.pictures import cells_png, data_uri

    observed, high, wide = strips(d)
    _, n, c = d.shape
    names = d.signal.entities
    if n <= NAMED:
        marks = [(i + 0.5, _cut(name)) for i, name in enumerate(names)]
    else:
        marks = [(i + 0.5, f"{i + 1:,}") for i in np.linspace(0, n - 1, 5).round().astype(int).tolist()]
    up = Axis(n, 0, tuple(marks), "" if n <= NAMED else "entity, in the order of the index")
    drawn = []
    for k in [k for k in range(c) if observed[..., k].min() < 1][:most]:
        said = f"{d.signal.channels[k]}: {percent(float(d.signal.observed[..., k].mean()))} observed"
        alt = f"Heat strip, entities down, time across; {said}. The tables below give shares and gaps."
        chart = Chart(said, alt, d.time_axis, up, int(np.clip(18 * n, 40, 220)), grid=False)
        chart.image(data_uri(cells_png(observed[..., k])))
        for at in d.borders:
            chart.rule(float(stamp(d.signal.times[[at]])[0]))
        drawn.append(chart.html())
    entities = "1 entity" if high == 1 else f"{high} entities"
    return drawn, f"{entities} by {duration(wide * d.signal.step_us)}"


def _cut(text: str, most: int = 18) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
