"""Small PNGs for the orchestrator's asset pages."""

from __future__ import annotations

import base64
import io
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from stfm_pipeline.datasets.spec import DatasetSpec
from stfm_pipeline.tables import Signal, is_dense, times_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2563eb", "#d97706", "#9ca3af"
PART_TONES = ("#e5e7eb", "#fde68a", "#fdba74", "#bfdbfe")
CELL_TONE = (59, 130, 246)
POINTS = 400
SIDE_DAYS = 14


def _figure(
    rows: int = 1, columns: int = 1, size: tuple[float, float] = (6, 2.2), **shared: Any
) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7, length=2)
    return figure, axes


def _dates(axis: Axes) -> None:
    import matplotlib.dates

    dates: Any = matplotlib.dates  # its constructors carry no types
    locator = dates.AutoDateLocator(minticks=3, maxticks=7)
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    axis.xaxis.get_offset_text().set_fontsize(7)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def markdown_image(png: bytes, alt: str) -> str:
    """The picture as markdown with a data URI."""
    return f"![{alt}]({data_uri(png)})"


def cells_png(share: np.ndarray[Any, Any]) -> bytes:
    """Shares (rows, columns) from 0 to 1 as a PNG of one pixel per cell: the fuller, the less transparent the blue."""
    pixels = np.zeros((*share.shape, 4), np.uint8)
    pixels[..., :3] = CELL_TONE
    # A cell with anything in it is told from an empty one.
    pixels[..., 3] = np.where(share > 0, np.round(40 + 215 * share), 0)
    return pixels_png(pixels)


def pixels_png(pixels: np.ndarray[Any, Any]) -> bytes:
    """Colours (rows, columns, 4) in bytes as a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def stage_picture(
    stage: str, tables: dict[str, pl.DataFrame], spec: DatasetSpec, facts: dict[str, Any]
) -> bytes | None:
    """The picture of a data stage, or None for a stage or tables that have none."""
    if stage == "raw" and "observations" in tables:
        return _raw(tables["observations"])
    if stage == "harmonized":
        return _harmonized(tables, spec)
    if stage == "embedded":
        return _embedded(tables["spatial"])
    if stage == "enriched":
        return _enriched(tables, facts["dense"])
    return None


def _raw(rows: pl.DataFrame) -> bytes:
    held = pl.nth(1).list.drop_nulls().list.len().sum().alias("len") if is_dense(rows) else pl.len()
    daily = rows.drop_nulls("time").group_by(pl.col("time").dt.truncate("1d")).agg(held.cast(pl.Int64)).sort("time")
    # A day without rows is a zero, not a line drawn across the gap.
    daily = daily.upsample("time", every="1d").with_columns(pl.col("len").fill_null(0))
    figure, (axis,) = _figure()
    axis.fill_between(times_of(daily["time"]), daily["len"].to_numpy(), step="mid", color=BLUE, alpha=0.75, linewidth=0)
    axis.set_ylim(bottom=0)
    axis.set_title(f"rows per day ({daily['len'].sum():,} in all)", fontsize=8)
    _dates(axis)
    return _png(figure)


def _harmonized(tables: dict[str, pl.DataFrame], spec: DatasetSpec) -> bytes:
    signal = Signal.from_frame(tables["signal"], tables["entities"]["entity"].to_list(), spec.channel_names)
    figure, (left, right) = _figure(1, 2)
    _parts(left, tables["split"])
    chunks = np.array_split(np.arange(len(signal.times)), min(POINTS, len(signal.times)))
    mean = [_mean(signal.values[i, :, 0], signal.observed[i, :, 0]) for i in chunks]
    left.plot(signal.times[[i[0] for i in chunks]], mean, color=BLUE, linewidth=0.9)
    left.set_title(f"mean {spec.channels[0].name}", fontsize=8, pad=12)
    _dates(left)
    _shares(right, signal)
    return _png(figure)


def _mean(values: np.ndarray[Any, Any], observed: np.ndarray[Any, Any], axis: int | None = None) -> Any:
    count = observed.sum(axis=axis)
    total = np.where(observed, values, 0).sum(axis=axis, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _parts(axis: Axes, split: pl.DataFrame) -> None:
    spans: dict[tuple[Any, Any], list[str]] = {}
    starts, ends = times_of(split["start"]), times_of(split["end"])
    for part, start, end in zip(split["part"], starts, ends, strict=True):
        if start < end:
            spans.setdefault((start, end), []).append(part)
    for ((start, end), parts), tone in zip(spans.items(), PART_TONES, strict=False):
        axis.axvspan(start, end, color=tone, alpha=0.7, linewidth=0)
        middle = start + (end - start) / 2
        axis.text(middle, 1.01, ", ".join(parts), fontsize=6, ha="center", transform=axis.get_xaxis_transform())


def _shares(axis: Axes, signal: Signal) -> None:
    """The share observed per week, one line per entity, channels one below the other."""
    week = (signal.times - signal.times[0]) // np.timedelta64(7, "D")
    first = np.flatnonzero(np.diff(week, prepend=-1))
    sizes = np.diff(first, append=len(week))
    share = np.add.reduceat(signal.observed, first, axis=0, dtype=np.float32) / sizes[:, None, None]
    n, c = len(signal.entities), len(signal.channels)
    borders = np.append(signal.times[first], signal.times[-1] + max(signal.step_us, 1))
    lines = share.transpose(2, 1, 0).reshape(c * n, -1)
    image = axis.pcolormesh(borders, np.arange(c * n + 1), lines, cmap="Blues", vmin=0, vmax=1)
    axis.invert_yaxis()
    axis.set_yticks([(k + 0.5) * n for k in range(c)], signal.channels)
    for k in range(1, c):
        axis.axhline(k * n, color="white", linewidth=1.5)
    axis.set_title("share observed by week", fontsize=8, pad=12)
    axis.figure.colorbar(image, ax=axis, ticks=[0, 0.5, 1]).ax.tick_params(labelsize=6)
    _dates(axis)


def _embedded(places: pl.DataFrame) -> bytes:
    eigen = [c for c in places.columns if c.startswith("eig_")]
    located = "x" in places.columns and places["x"].is_finite().fill_null(False).all()
    x, y = ("x", "y") if located or len(eigen) < 2 else (eigen[0], eigen[1])
    none = pl.repeat(None, len(places), dtype=pl.Float32, eager=True)
    across, up = (places.get_column(c, default=none).fill_null(0).fill_nan(0).to_numpy() for c in (x, y))
    size = 18 if len(places) < 500 else 5
    figure, (left, right) = _figure(1, 2, sharey=True)
    left.scatter(across, up, c=places["patch"].to_numpy() % 20, cmap="tab20", vmin=0, vmax=19, s=size)
    left.set_title(f"entities: {len(places)}, patches: {places['patch'].n_unique()}", fontsize=8)
    colour = places[eigen[0]].to_numpy() if eigen else np.zeros(len(places))
    # One extreme entity must not wash out the others.
    limit = float(np.quantile(np.abs(colour), 0.95)) or 1.0
    right.scatter(
        across, up, c=colour, cmap="coolwarm", vmin=-limit, vmax=limit, s=size, edgecolors=GREY, linewidths=0.4
    )
    right.set_title("first Laplacian eigenvector", fontsize=8)
    for axis in (left, right):
        axis.set_xlabel(x, fontsize=7)
    left.set_ylabel(y, fontsize=7)
    return _png(figure)


def _enriched(tables: dict[str, pl.DataFrame], dense: dict[str, list[str]]) -> bytes | None:
    shown = [(side, k) for side in ("past", "ahead") if side in tables for k in range(len(dense[side]))][:3]
    if not shown:
        return None
    figure, axes = _figure(1, len(shown))
    for axis, (side, k) in zip(axes, shown, strict=True):
        rows = tables[side].filter(pl.col("time") < pl.col("time").min() + timedelta(days=SIDE_DAYS))
        width = len(rows["values"][0]) // len(dense[side])
        block = Signal.from_frame(rows, [str(i) for i in range(width)], dense[side])
        axis.plot(block.times, _mean(block.values[..., k], block.observed[..., k], axis=1), color=BLUE, linewidth=0.9)
        axis.set_title(f"{side}: {dense[side][k]}", fontsize=8)
        _dates(axis)
    return _png(figure)


def learning_curve(rows: list[dict[str, float]]) -> bytes:
    """Train and val loss by epoch, the best epoch marked."""
    figure, (axis,) = _figure()
    epochs, val = [r["epoch"] + 1 for r in rows], [r["val_loss"] for r in rows]
    axis.plot(epochs, [r["train_loss"] for r in rows], color=GREY, marker=".", label="train")
    axis.plot(epochs, val, color=BLUE, marker=".", label="val")
    if np.isfinite(val).any():
        best = int(np.nanargmin(val))
        axis.plot(epochs[best], val[best], "o", markersize=8, markerfacecolor="none", color=ORANGE, label="best")
    axis.locator_params(axis="x", integer=True)
    axis.set_xlabel("epoch", fontsize=7)
    axis.set_ylabel("loss", fontsize=7)
    axis.legend(fontsize=7, frameon=False)
    return _png(figure)


def leaderboard_picture(board: pl.DataFrame, leader: str) -> bytes:
    """MAE on test by system, one panel per channel; the leader is highlighted."""
    rows = board.filter(split="test", scale="data", horizon="avg")
    channels = rows["channel"].unique(maintain_order=True).to_list()
    relative = rows.with_columns(mae=pl.col("mae") / pl.col("mae").min().over("channel"))
    means = relative.group_by("system").agg(pl.col("mae").mean()).sort("mae", "system", descending=True)
    systems = means["system"].to_list()
    columns = min(4, len(channels))
    lines = -(-len(channels) // columns)
    height = max(3.2, lines * (0.5 + 0.14 * len(systems)))
    figure, axes = _figure(lines, columns, (7, height), sharey=True)
    for channel, axis in zip(channels, axes, strict=False):
        mae = dict(rows.filter(channel=channel).select("system", "mae").iter_rows())
        bars = axis.barh(systems, [mae[s] for s in systems], color=[BLUE if s == leader else GREY for s in systems])
        axis.bar_label(bars, fmt="%.3g", fontsize=6, padding=2)
        axis.margins(x=0.18)
        axis.set_title(f"MAE on test: {channel}" if columns < 4 else channel, fontsize=8)
    for axis in axes[len(channels) :]:
        axis.set_visible(False)
    return _png(figure)
