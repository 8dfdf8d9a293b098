"""Seasons of the training part: how strong they are, what they look like, and which periods stand out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stfm_pipeline.datasets.spec import Channel
from stfm_pipeline.embed.strength import strengths
from stfm_pipeline.pages.axis import DAY_US, Axis, duration, linear, logarithmic, periods
from stfm_pipeline.pages.base import number, percent
from stfm_pipeline.pages.chart import Chart
from stfm_pipeline.pages.dataset.loaded import Loaded, Season

POINTS = 400
# Smaller than the one in twenty that comes out: the level of few neighbours is itself uncertain.
FALSE_ALARM = 0.01
LEAST_SHARE = 0.001
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
Floats = NDArray[np.float64]


def strength(d: Loaded) -> list[dict[str, Any]]:
    """Per channel and season the strength of season and trend: quartiles over entities, None where nobody has one."""
    values, observed = d.training
    rows = []
    for season in d.seasons:
        found = np.full((2, *values.shape[1:]), np.nan)
        for here, phase in d.by_zone(season):
            found[:, here] = strengths(values[:, here], observed[:, here], season.steps, phase)
        for k, channel in enumerate(d.signal.channels):
            rows.append(
                {
                    "channel": channel,
                    "season": season.name,
                    "steps": season.steps,
                    "civil": season.civil,
                    "strength": quartiles(found[0, :, k]),
                    "trend": quartiles(found[1, :, k]),
                    "series": int(np.isfinite(found[0, :, k]).sum()),
                }
            )
    return sorted(rows, key=lambda r: d.signal.channels.index(r["channel"]))


def quartiles(values: NDArray[Any]) -> list[float] | None:
    """Lower quartile, median, upper quartile of what is known."""
    known = values[np.isfinite(values)]
    return [float(v) for v in np.quantile(known, (0.25, 0.5, 0.75))] if len(known) else None


def shape(d: Loaded, season: Season) -> Floats:
    """Mean of observed training cells of the chosen entities at each phase of a season: (period, c), NaN if none."""
    values, observed = d.training
    total, count = np.zeros((2, season.steps, values.shape[2]))
    for here, phase in d.by_zone(season):
        seen = observed[:, here]
        np.add.at(total, phase, np.where(seen, values[:, here], 0).sum(axis=1, dtype=np.float64))
        np.add.at(count, phase, seen.sum(axis=1))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def shape_charts(d: Loaded, most: int) -> list[Markup]:
    """The mean of the first `most` channels over the longest season that the training part holds twice."""
    fitting = [s for s in d.seasons if 2 * s.steps <= len(d.training[0])]
    if not fitting:
        return []
    season = max(fitting, key=lambda s: s.steps)
    found = zip(d.spec.channels, shape(d, season).T, strict=True)
    return [_shape_chart(d, season, c, mean) for c, mean in found if np.isfinite(mean).any()][:most]


def _shape_chart(d: Loaded, season: Season, channel: Channel, mean: Floats) -> Markup:
    us, name = d.signal.step_us, season.name if season.civil else f"season of {season.name}"
    low, high = float(np.nanmin(mean)), float(np.nanmax(mean))
    pad = 0.06 * (high - low or 1)
    y = linear(0.0 if 0 <= low < 0.5 * high else low - pad, high + pad, channel.unit)
    peak = _moment(season, int(np.nanargmax(mean)), us)
    said = f"from {number(low, 3)} to {number(high, 3)} {channel.unit}, highest at {peak}"
    alt = f"Mean {name} of {channel.name}: {said}."
    chart = Chart(f"{channel.name}: mean {name}", alt, _season_axis(season, us), y)
    return chart.line(np.arange(season.steps) + 0.5, mean, "t0").html()


def _season_axis(season: Season, us: int) -> Axis:
    if not season.civil:
        named = tuple((v, duration(v * us) if v else "0") for v, _ in linear(0, season.steps).ticks)
        return Axis(0, season.steps, named, "since the season's start, counted from the first step")
    if season.name == "week":
        days = tuple((i * season.steps / 7, day) for i, day in enumerate(WEEKDAYS))
        return Axis(0, season.steps, days, "civil day of week, from midnight")
    clock = tuple((h * season.steps / 24, f"{h:02d}:00") for h in range(0, 25, 4))
    return Axis(0, season.steps, clock, "civil time")


def _moment(season: Season, phase: int, us: int) -> str:
    if not season.civil:
        return f"step {phase}"
    day, rest = divmod(phase * us, DAY_US)
    minutes = rest // 60_000_000
    clock = f"{minutes // 60:02d}:{minutes % 60:02d}"
    return f"{WEEKDAYS[day]} {clock}" if season.name == "week" else clock


def spectrum(d: Loaded, most: int) -> tuple[list[dict[str, Any]], list[Markup]]:
    """Per channel the periods that stand out, in steps with their share of variance; periodograms of the first `most`.

    A channel's periodogram is the mean of those of its series, each scaled to its own variance. Unobserved cells are
    at the mean. Series observed in less than half of train are left out, because their gaps would be what swings.
    """
    values, observed = d.training
    period = len(values) / np.arange(1, len(values) // 2 + 1)
    entries: list[dict[str, Any]] = []
    charts: list[Markup] = []
    for k, channel in enumerate(d.signal.channels):
        dense = observed[..., k].mean(axis=0) >= 0.5
        found = [
            p for i in np.flatnonzero(dense) if (p := _periodogram(values[:, i, k], observed[:, i, k])) is not None
        ]
        power = np.mean(found, axis=0) if found else np.zeros(len(period))
        entries.append(
            {
                "channel": channel,
                "series": len(found),
                "left_out": int((~dense).sum()),
                "peaks": [
                    {
                        "steps": float(period[i]),
                        "share": float(power[i]),
                        "length": duration(period[i] * d.signal.step_us),
                    }
                    for i in outstanding(power)[: d.spec.embed.periods]
                ],
            }
        )
        if found and len(charts) < most:
            charts.append(_spectrum_chart(d, entries[-1], period * d.signal.step_us, power))
    return entries, charts


def _periodogram(values: NDArray[np.float32], observed: NDArray[np.bool_]) -> Floats | None:
    """Shares of the variance (t // 2,) from the longest period to two steps, or None of a series that never varies."""
    known = values[observed].astype(np.float64)
    if np.ptp(known) <= 1e-6 * np.abs(known).max():
        return None
    x = np.zeros(len(values))
    x[observed] = known - known.mean()
    power = np.abs(np.fft.rfft(x)[1:]) ** 2
    return np.asarray(power / power.sum())


def outstanding(power: Floats) -> list[int]:
    """Peaks above what noise of the level around them throws in about one of twenty series, highest first.

    The level is the median between two thirds and one and a half times the frequency; noise is exponential about it.
    Neither a side lobe, within a tenth of a higher peak's frequency, nor a thousandth of the variance is a peak.
    """
    limit = math.log(max(len(power), 1) / FALSE_ALARM) / math.log(2)
    padded = np.concatenate([[np.inf], power, [np.inf]])
    peaks = np.flatnonzero((power > padded[:-2]) & (power >= padded[2:]))
    kept: list[int] = []
    for i in peaks[np.argsort(-power[peaks], kind="stable")][:POINTS].tolist():
        low, high = min((i + 1) * 2 // 3 - 1, i - 5), max((i + 1) * 3 // 2, i + 6)
        level = float(np.median(power[max(low, 0) : high]))
        if power[i] > max(limit * level, LEAST_SHARE) and all(abs((i + 1) / (j + 1) - 1) > 0.1 for j in kept):
            kept.append(i)
    return kept


def _spectrum_chart(d: Loaded, entry: dict[str, Any], period: Floats, power: Floats) -> Markup:
    """Of many frequencies drawn as one, the strongest shows."""
    us = d.signal.step_us
    bins = np.geomspace(period[-1], period[0] * 1.0001, POINTS + 1)
    height = np.zeros(POINTS)
    np.maximum.at(height, np.searchsorted(bins, period, side="right") - 1, power)
    full = np.flatnonzero(height)
    top = float(height.max())
    x = periods(float(period[-1]), float(period[0]))
    floor = max(float(np.quantile(height[full], 0.02)) / 2, top / 1e8)
    y = logarithmic(floor, top * 6, "share of variance, logarithmic")
    alt = f"Mean periodogram of {entry['channel']} over {entry['series']:,} series; {standing_out(entry)}."
    chart = Chart(f"{entry['channel']}: periodogram", alt, x, y)
    for season in d.seasons:
        if x.low <= season.steps * us <= x.high:
            chart.rule(season.steps * us)
    chart.line(np.sqrt(bins[:-1] * bins[1:])[full], np.where(height > floor, height, np.nan)[full], "t0")
    places = [float(x.share(p["steps"] * us)) for p in entry["peaks"]]
    for i, (peak, place) in enumerate(zip(entry["peaks"], places, strict=True)):
        at = peak["steps"] * us
        chart.dots([at], [peak["share"]], "--h:28", 8)
        # The highest has its label whatever lies beside it: the others are lower.
        if i == 0 or all(abs(place - other) > 0.15 for other in places[:i] + places[i + 1 :]):
            chart.note(at, peak["share"], peak["length"], "right" if place < 0.88 else "left")
    return chart.html()


def standing_out(entry: dict[str, Any]) -> str:
    """The periods that stand out, in words."""
    found = ", ".join(f"{p['length']} ({percent(p['share'])})" for p in entry["peaks"])
    return f"standing out: {found}" if found else "no period stands out"
