"""Distributions before and after harmonisation, and what was masked on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import Channel, Harmonize
from stfm_pipeline.harmonize import scaler
from stfm_pipeline.lake import Lake
from stfm_pipeline.pages.axis import Axis, linear, logarithmic
from stfm_pipeline.pages.chart import Chart
from stfm_pipeline.pages.dataset.loaded import Loaded, stride

SAMPLE = 1_000_000
QUANTILES = {"1 %": 0.01, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "99 %": 0.99}
COLUMNS = ("minimum", *QUANTILES, "maximum")
BINS = 60
END = 2**62
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Values:
    """Values of one channel at one stage: an even sample, and of all of them the number and the extremes."""

    sample: Floats
    count: int
    low: float
    high: float

    @property
    def quantiles(self) -> list[float]:
        """In the order of COLUMNS; the extremes are those of all values, the rest of the sample."""
        return [self.low, *map(float, np.quantile(self.sample, list(QUANTILES.values()))), self.high]

    def outside(self, borders: Floats) -> float:
        """The share of values that bins leave out."""
        return float(np.mean((self.sample < borders[0]) | (self.sample > borders[-1])))


def distributions(d: Loaded, lake: Lake, most: int) -> tuple[list[dict[str, Any]], list[Markup]]:
    """Per channel what was masked and a row of numbers per stage that has values; histograms of the first `most`."""
    stages = {"raw": raw(d, lake), **dict(zip(("harmonized", "standardised"), harmonized(d, lake), strict=True))}
    entries: list[dict[str, Any]] = []
    charts: list[Markup] = []
    for c in d.spec.channels:
        known = {s: found[c.name] for s, found in stages.items() if c.name in found}
        compared = {s: v for s, v in known.items() if s != "standardised"}
        borders = edges([v.sample for v in compared.values()])
        lost = d.stages["harmonized"].facts["masked"][c.name]
        entries.append(
            {
                "channel": c.name,
                "unit": c.unit,
                "absent": c.absent,
                "masked": {_reason(c, why, d.spec.harmonize): n for why, n in lost.items() if why != "values" and n},
                "rows": [{"stage": s, "count": v.count, "quantiles": v.quantiles} for s, v in known.items()],
                "tails": max((v.outside(borders) for v in compared.values()), default=0.0),
            }
        )
        if compared and len(charts) < most:
            charts.append(histogram(c, compared, borders))
    return entries, charts


def raw(d: Loaded, lake: Lake) -> dict[str, Values]:
    """The source's finite values per channel, read a few rows at a time, whether rows are long or dense."""
    stage = d.stages.get("raw")
    if stage is None or "observations" not in stage.tables:
        return {}
    dense = "dense_observations" in stage.facts
    width = d.shape[1] if dense else 1
    rows = stage.facts["rows"]["observations"]
    step = stride(rows * width, SAMPLE, d.shape[1], *d.spec.seasons)
    gathered: dict[str, _Gathered] = {c: _Gathered() for c in d.spec.channel_names}
    for at, frame in lake.rows(stage, "observations", list(gathered), 0, END, 512 if dense else 65_536):
        for c, found in gathered.items():
            column = frame[c].explode(empty_as_null=False) if dense else frame[c]
            cells = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
            found.add(cells.reshape(len(frame), -1), np.flatnonzero(at % step == 0))
    return {c: v for c, found in gathered.items() if (v := found.values())}


def harmonized(d: Loaded, lake: Lake) -> tuple[dict[str, Values], dict[str, Values]]:
    """Observed cells per channel in data units, and as a model sees them."""
    t, n, c = d.shape
    mean, std = scaler.arrays(lake.read(d.stages["harmonized"], "scaler"), n, c)
    step = stride(t * n, SAMPLE, *d.spec.seasons)
    plain, scaled = ([_Gathered() for _ in range(c)] for _ in range(2))
    start = 0
    for values, observed in d.blocks():
        kept = np.arange(-start % step, len(values), step)
        for k in range(c):
            cells = np.where(observed[..., k], values[..., k], np.nan)
            plain[k].add(cells, kept)
            scaled[k].add((cells - mean[:, k]) / std[:, k], kept)
        start += len(values)
    return tuple(
        {c: v for c, g in zip(d.signal.channels, found, strict=True) if (v := g.values())} for found in (plain, scaled)
    )  # type: ignore[return-value]


class _Gathered:
    """Blocks (rows, entities) of one channel as they pass by; NaN is no value."""

    def __init__(self) -> None:
        self.parts: list[NDArray[Any]] = []
        self.count, self.low, self.high = 0, math.inf, -math.inf

    def add(self, cells: NDArray[Any], kept: NDArray[np.int64]) -> None:
        known = np.isfinite(cells)
        self.count += int(known.sum())
        self.low = min(self.low, float(np.min(cells, where=known, initial=np.inf)))
        self.high = max(self.high, float(np.max(cells, where=known, initial=-np.inf)))
        self.parts.append(cells[kept][known[kept]])

    def values(self) -> Values | None:
        sample = np.concatenate(self.parts).astype(np.float64) if self.parts else np.zeros(0)
        return Values(sample, self.count, self.low, self.high) if len(sample) else None


def _reason(channel: Channel, why: str, rule: Harmonize) -> str:
    """The rule of a mask in words."""
    low, high = ("" if v is None else f"{v:g}" for v in (channel.minimum, channel.maximum))
    codes = ", ".join(f"{v:g}" for v in channel.missing)
    return {
        "missing_code": f"with a code for missing ({codes})",
        "out_of_range": f"outside {low or '−∞'} to {high or '∞'} {channel.unit}",
        "outliers": f"outliers beyond {rule.outliers.threshold:g} MADs" if rule.outliers else "outliers",
    }.get(why, why.replace("_", " "))


def cells(quantiles: list[float]) -> list[str]:
    """Quantiles with as many decimals as tell the middle ones apart."""
    if all(v == round(v) for v in quantiles):
        return [f"{v:,.0f}" for v in quantiles]
    middle = quantiles[1:-1]
    size = max(max(map(abs, middle[1:-1])), middle[-1] - middle[0], 1e-9)
    decimals = min(6, max(0, 2 - math.floor(math.log10(size))))
    return [f"{round(v, decimals) + 0.0:,.{decimals}f}" for v in quantiles]


def edges(samples: list[Floats]) -> Floats:
    """Borders of bins over all but a thousandth of the values at either end; whole numbers lie within bins."""
    if not samples:
        return np.array([0.0, 1.0])
    low = min(float(np.quantile(s, 0.001)) for s in samples)
    high = max(float(np.quantile(s, 0.999)) for s in samples)
    if all((s == np.round(s)).all() for s in samples):
        width = max(1, math.ceil((high - low + 1) / BINS))
        return np.arange(math.floor(low), math.ceil(high) + width + 1, width).astype(np.float64) - 0.5
    if not high > low:
        return np.array([low - 0.5, low + 0.5])
    return np.linspace(low, high, BINS + 1).astype(np.float64)


def histogram(channel: Channel, known: dict[str, Values], borders: Floats) -> Markup:
    """Raw and harmonized values of one channel in the same bins."""
    heights = {k: np.histogram(v.sample, borders)[0] / len(v.sample) for k, v in known.items()}
    said = "; ".join("{0} from {1} to {7}, median {4}".format(k, *cells(v.quantiles)) for k, v in known.items())
    alt = f"Histogram of {channel.name} in {channel.unit}: {said}."
    x = linear(float(borders[0]), float(borders[-1]), channel.unit)
    chart = Chart(channel.name, alt, x, _heights(*heights.values()))
    for kind, style in (("harmonized", "area t0"), ("raw", "line t4")):
        if kind in heights:
            chart.steps(borders, heights[kind], style, kind)
    return chart.html()


def _heights(*shares: Floats) -> Axis:
    """Linear, or logarithmic where one bin towers over the others, as zeros do."""
    known = np.concatenate(shares)
    known = known[known > 0]
    top = float(known.max()) if len(known) else 1.0
    if len(known) > 3 and top > 20 * float(np.median(known)):
        return logarithmic(max(float(known.min()) / 2, top / 1e5), top * 1.5, "share of values, logarithmic")
    return linear(0, top * 1.08, "share of values")
