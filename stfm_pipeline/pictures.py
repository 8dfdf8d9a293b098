"""Small PNGs for the orchestrator's asset pages."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from stfm_pipeline.datasets.spec import DatasetSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2563eb", "#d97706", "#9ca3af"


def _figure(columns: int = 1, height: float = 2.2) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def markdown_image(png: bytes, alt: str) -> str:
    """The picture as markdown with a data URI."""
    return f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})"


def stage_picture(
    stage: str, tables: dict[str, pl.DataFrame], spec: DatasetSpec, facts: dict[str, Any]
) -> bytes | None:
    """The picture of a data stage, or None for a stage that has none."""
    if stage == "raw":
        return _raw(tables["observations"])
    if stage == "harmonized":
        return _harmonized(tables, spec)
    if stage == "embedded":
        return _embedded(tables["spatial"])
    side = next((s for s in ("ahead", "past") if s in tables), None)
    return _enriched(tables[side], facts["dense"][side]) if stage == "enriched" and side else None


def _raw(rows: pl.DataFrame) -> bytes:
    figure, (axis,) = _figure()
    daily = rows.group_by(pl.col("time").dt.truncate("1d")).len().sort("time")
    axis.fill_between(daily["time"].to_numpy(), daily["len"].to_numpy(), color=BLUE, alpha=0.7, linewidth=0)
    axis.set_title("rows per day", fontsize=8)
    return _png(figure)


def _harmonized(tables: dict[str, pl.DataFrame], spec: DatasetSpec) -> bytes:
    signal = tables["signal"]
    n, c = len(tables["entities"]), len(spec.channels)
    values = signal["values"].list.to_array(n * c).to_numpy().reshape(-1, n, c)
    observed = signal["observed"].list.to_array(n * c).to_numpy().reshape(-1, n, c)
    times = signal["time"].dt.replace_time_zone(None).to_numpy()
    step = max(1, len(times) // 400)
    figure, (left, right) = _figure(2)
    seen = observed[..., 0].sum(axis=1)
    mean = np.where(seen > 0, values[..., 0].sum(axis=1) / np.maximum(seen, 1), np.nan)
    smooth = np.array(
        [np.nanmean(b) if np.isfinite(b).any() else np.nan for b in np.array_split(mean, len(mean) // step)]
    )
    left.plot(np.array([b[0] for b in np.array_split(times, len(mean) // step)]), smooth, color=BLUE, linewidth=0.8)
    for i, row in enumerate(tables["split"].to_dicts()):
        if row["start"] < row["end"]:
            left.axvspan(row["start"], row["end"], color=ORANGE, alpha=0.06 + 0.06 * i, linewidth=0)
    left.set_title(f"mean {spec.channels[0].name}, parts shaded", fontsize=8)
    left.tick_params(axis="x", rotation=30)
    share = np.array([b.mean(axis=0) for b in np.array_split(observed[..., -1], min(52, len(times)))])
    right.imshow(share.T, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    right.set_title(f"share observed: {spec.channels[-1].name}", fontsize=8)
    right.set_xlabel("time", fontsize=7)
    right.set_ylabel("entity", fontsize=7)
    return _png(figure)


def _embedded(places: pl.DataFrame) -> bytes:
    located = places["x"].null_count() == 0
    eigen = [c for c in places.columns if c.startswith("eig_")]
    x, y = ("x", "y") if located or len(eigen) < 2 else (eigen[0], eigen[1])
    figure, (left, right) = _figure(2)
    where = (places[x].fill_null(0).to_numpy(), places[y].fill_null(0).to_numpy())
    left.scatter(*where, c=places["patch"].to_numpy(), cmap="tab20", s=14)
    left.set_title("spatial patches", fontsize=8)
    colour = places[eigen[0]].to_numpy() if eigen else np.zeros(len(places))
    right.scatter(*where, c=colour, cmap="coolwarm", s=14)
    right.set_title("first Laplacian eigenvector", fontsize=8)
    return _png(figure)


def _enriched(block: pl.DataFrame, columns: list[str]) -> bytes:
    f = len(columns)
    rows = block.head(14 * 24)
    values = rows["values"].list.to_array(len(rows["values"][0])).to_numpy().reshape(len(rows), -1, f)
    figure, axes = _figure(min(3, f))
    for k, axis in enumerate(axes):
        axis.plot(values[..., k].mean(axis=1), color=BLUE, linewidth=0.9)
        axis.set_title(f"{columns[k]}, first {len(rows)} steps", fontsize=8)
    return _png(figure)


def learning_curve(rows: list[dict[str, float]]) -> bytes:
    """Train and val loss by epoch."""
    figure, (axis,) = _figure()
    epochs = [r["epoch"] + 1 for r in rows]
    axis.plot(epochs, [r["train_loss"] for r in rows], color=GREY, marker=".", label="train")
    axis.plot(epochs, [r["val_loss"] for r in rows], color=BLUE, marker=".", label="val")
    axis.set_xlabel("epoch", fontsize=7)
    axis.legend(fontsize=7, frameon=False)
    return _png(figure)


def leaderboard_picture(board: pl.DataFrame, leader: str) -> bytes:
    """MAE on test by system, one panel per channel (at most three); the leader is highlighted."""
    rows = board.filter(split="test", scale="data", horizon="avg")
    channels = rows["channel"].unique(maintain_order=True).to_list()[:3]
    figure, axes = _figure(len(channels), height=2.6)
    for channel, axis in zip(channels, axes, strict=True):
        part = rows.filter(channel=channel).sort("mae", descending=True)
        names = part["system"].to_list()
        axis.barh(names, part["mae"].to_numpy(), color=[BLUE if n == leader else GREY for n in names])
        axis.set_title(f"MAE on test: {channel}", fontsize=8)
    return _png(figure)
