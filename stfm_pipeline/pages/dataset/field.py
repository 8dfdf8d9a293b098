"""What a grid looks like: a step, the mean and the share observed, a pixel per cell; and its patches."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup
from numpy.typing import NDArray

from stfm_pipeline.pages.axis import Axis, linear
from stfm_pipeline.pages.chart import Chart
from stfm_pipeline.pages.dataset.loaded import Loaded

LAND = (128, 128, 128, 150)
LOW, HIGH = 0.02, 0.98
WIDEST, NARROWEST, FLAT = 6.0, 0.6, 3.0
BAR = 14
GOLDEN_ANGLE = 137.508
TOLD_APART = 600
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sheet:
    """A grid as it is drawn: axes, the plot's width over its height, and whether its first row is at the bottom."""

    x: Axis
    y: Axis
    aspect: float
    upside_down: bool
    said: str


def fields(d: Loaded, most: int) -> dict[str, Any]:
    """Three maps and a colour scale per channel, for the first `most` channels, and what is said of them."""
    sheet, train = _sheet(d), d.parts["train"]
    never = np.asarray(~d.signal.observed.any(axis=0), np.bool_)
    rows = []
    for k, channel in enumerate(d.spec.channels[:most]):
        if never[:, k].all():
            continue
        seen = d.signal.observed[train][..., k]
        count = seen.sum(axis=0)
        total = np.where(seen, d.signal.values[train][..., k], 0).sum(axis=0, dtype=np.float64)
        mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        at = int(np.flatnonzero(d.signal.observed[..., k].any(axis=1))[-1])
        last = np.where(d.signal.observed[at, :, k], d.signal.values[at, :, k], np.nan).astype(np.float64)
        low, high = (float(q) for q in np.nanquantile(np.concatenate([last, mean]), (LOW, HIGH)))
        when = str(d.signal.times[at])[:16].replace("T", " ")
        share = d.signal.observed[..., k].mean(axis=0)
        maps = [
            (f"{channel.name}, step of {when} UTC", _shaded(last, low, high)),
            (f"{channel.name}, mean over train", _shaded(mean, low, high)),
            (f"{channel.name}, share of steps observed", _observed(share)),
        ]
        drawn = [_map(d, sheet, title, pixels, never[:, k]) for title, pixels in maps]
        rows.append({"maps": drawn, "scale": _scale(low, high, channel.unit)})
    land = int(never.all(axis=1).sum())
    notes = [sheet.said, f"Grey is land: {land:,} cells without a value in any channel." if land else ""]
    return {"rows": rows, "notes": [n for n in notes if n], "land": land}


def patches(d: Loaded, patch: NDArray[np.int64]) -> Markup | None:
    """The patches of a grid, each in its own tone; None where there are more than an eye tells apart."""
    if len(np.unique(patch)) > TOLD_APART:
        return None
    pixels = np.array([_tone(int(p)) for p in patch], np.uint8)
    title = f"Map: {len(patch):,} cells in {len(np.unique(patch)):,} patches"
    return _map(d, _sheet(d), title, pixels, np.zeros(len(patch), np.bool_))


@cache
def _tone(patch: int) -> tuple[int, int, int, int]:
    r, g, b = colorsys.hls_to_rgb(round(patch * GOLDEN_ANGLE) % 360 / 360, 0.5 + 0.08 * (patch % 3 - 1), 0.6)
    return round(255 * r), round(255 * g), round(255 * b), 255


def _sheet(d: Loaded) -> Sheet:
    """Longitude and latitude where rows and columns run along them, else rows and columns; north is up if it can be."""
    height, width = d.stages["harmonized"].facts["grid"]
    lon, lat = (
        d.entities[c].cast(pl.Float64).fill_null(np.nan).to_numpy().reshape(height, width) for c in ("lon", "lat")
    )
    known = np.isfinite(lon + lat).all()
    bent = max(np.ptp(lon, axis=0).max(), np.ptp(lat, axis=1).max())
    upside_down = bool(known and lat[0].mean() < lat[-1].mean())
    east, north = np.unwrap(lon[0], period=360), np.sort(lat[:, 0])
    if known and bent < 1e-6 and height > 1 and width > 1 and (np.diff(east) > 0).all():
        across, up = _edges(east), _edges(north)
        squeeze = max(0.1, float(np.cos(np.deg2rad(north.mean()))))
        aspect = (across[1] - across[0]) * squeeze / (up[1] - up[0])
        flat = aspect > FLAT
        axes = linear(*across, "longitude"), linear(*up, "latitude", ticks=2 if flat else 5)
        return Sheet(*axes, float(np.clip(aspect, NARROWEST, WIDEST)), upside_down, "")
    said = "Drawn in its own rows and columns, which do not run along longitudes and latitudes."
    if not known:
        said = "Nothing says where its cells are on Earth: drawn in its own rows and columns."
    ends = (0.0, float(height)) if upside_down else (float(height), 0.0)
    ticks = tuple((v, text) for v, text in linear(0, height).ticks)
    aspect = float(np.clip(width / height, NARROWEST, WIDEST))
    return Sheet(linear(0, width, "column"), Axis(*ends, ticks, "row"), aspect, upside_down, said)


def _edges(centres: Floats) -> tuple[float, float]:
    first, last = (centres[1] - centres[0]) / 2, (centres[-1] - centres[-2]) / 2
    return float(centres[0] - first), float(centres[-1] + last)


def _shaded(values: Floats, low: float, high: float) -> NDArray[np.uint8]:
    """Colours (n, 4) of values between two ends; what is not known is clear."""
    import matplotlib

    share = np.clip((values - low) / (high - low if high > low else 1), 0, 1)
    colours: NDArray[np.uint8] = matplotlib.colormaps["viridis"](np.nan_to_num(share), bytes=True)
    colours[~np.isfinite(values), 3] = 0
    return colours


def _observed(share: Floats) -> NDArray[np.uint8]:
    from stfm_pipeline.pictures import CELL_TONE

    colours = np.zeros((len(share), 4), np.uint8)
    colours[:, :3] = CELL_TONE
    colours[:, 3] = np.where(share > 0, np.round(40 + 215 * share), 0)
    return colours


def _map(d: Loaded, sheet: Sheet, title: str, pixels: NDArray[np.uint8], land: NDArray[np.bool_]) -> Markup:
    from stfm_pipeline.pictures import data_uri, pixels_png

    height, width = d.stages["harmonized"].facts["grid"]
    image = np.where(land[:, None], np.array(LAND, np.uint8), pixels).reshape(height, width, 4)
    chart = Chart(title, f"{title}: {height} rows, {width} columns.", sheet.x, sheet.y, sheet.aspect, grid=False)
    chart.image(data_uri(pixels_png(image[::-1] if sheet.upside_down else image)))
    return chart.html()


def _scale(low: float, high: float, unit: str) -> Markup:
    """A strip of all colours with what they stand for."""
    from stfm_pipeline.pictures import data_uri, pixels_png

    ends = np.linspace(low, high, 256)
    said = f"Colours from {low:.4g} to {high:.4g} {unit}, which 2 % of cells are below or above"
    chart = Chart("", said, linear(low, high if high > low else low + 1, unit), Axis(0, 1), BAR, grid=False)
    return chart.image(data_uri(pixels_png(_shaded(ends, low, high)[None]))).html()
