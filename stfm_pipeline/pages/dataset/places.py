"""Where entities are: the map with the strongest edges of the training part, and the spatial patches on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.embed.spatial import adjacency_of, stand_in_coordinates
from stfm_pipeline.lake import Lake
from stfm_pipeline.pages.axis import Axis, linear
from stfm_pipeline.pages.chart import Chart
from stfm_pipeline.pages.dataset import field
from stfm_pipeline.pages.dataset.loaded import Loaded

EDGES = 600
TITLED = 400
LABELLED = 150
FRAMES = 64
LETTERS = 12
WIDEST, NARROWEST = 2.2, 1.6
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Layout:
    """Where entities are drawn: (n,) across and up, NaN where they are not; degrees, or none's unit."""

    x: Floats
    y: Floats
    degrees: bool

    @property
    def drawn(self) -> NDArray[np.bool_]:
        return np.isfinite(self.x)


def places(d: Loaded, lake: Lake) -> dict[str, Any]:
    """The map, what has to be said about it, and the patches as rows."""
    names = list(d.signal.entities)
    edges = lake.read(d.stages["harmonized"], "edges")
    spatial = lake.read(d.stages["embedded"], "spatial") if "embedded" in d.stages else None
    patch = np.zeros(len(names), np.int64) if spatial is None else spatial["patch"].cast(pl.Int64).to_numpy()
    if "grid" in d.stages["harmonized"].facts:
        return _of_grid(d, spatial is not None, patch)
    layout, notes = _layout(d, edges, spatial)
    if spatial is None:
        notes.append(f"Patches come with `stfm run {d.spec.name} --until embedded`.")
    linked = _linked(edges, names, layout.drawn)
    if len(linked) > EDGES:
        notes.append(f"Drawn are the {EDGES} strongest of {len(linked):,} linked pairs.")
    return {
        "notes": notes,
        "chart": _chart(layout, names, patch, linked, spatial is not None) if layout.drawn.any() else None,
        "patches": [] if spatial is None else _patches(names, patch),
        "linked": len(linked),
        "framed": _framed(layout, patch),
    }


def _of_grid(d: Loaded, cut: bool, patch: NDArray[np.int64]) -> dict[str, Any]:
    """Cells are pixels; no edges are drawn between them."""
    notes = [] if cut else [f"Patches come with `stfm run {d.spec.name} --until embedded`."]
    chart = field.patches(d, patch) if cut else None
    if cut and chart is None:
        notes = [f"There are {len(np.unique(patch)):,} spatial patches, more than a map can tell apart."]
    return {
        "notes": notes,
        "chart": chart,
        "patches": _patches(list(d.signal.entities), patch) if cut else [],
        "linked": 0,
        "framed": False,
    }


def _layout(d: Loaded, edges: pl.DataFrame, spatial: pl.DataFrame | None) -> tuple[Layout, list[str]]:
    """Coordinates; where nobody has any, what stood in for them when patches were cut."""
    lon, lat = (d.entities[c].cast(pl.Float64).fill_null(np.nan).to_numpy().copy() for c in ("lon", "lat"))
    known = np.isfinite(lon) & np.isfinite(lat)
    lon[~known] = lat[~known] = np.nan
    if known.any():
        lost = int((~known).sum())
        said = f"{lost:,} of {len(known):,} entities have no coordinates and are not drawn; patches follow the graph."
        return Layout(lon, lat, degrees=True), [said] if lost else []
    eigen = [] if spatial is None else [c for c in spatial.columns if c.startswith("eig_")]
    if not len(edges) or spatial is None or len(eigen) < 2:
        lacks = (
            "neither coordinates nor edges"
            if not len(edges)
            else "no coordinates, and no eigenvectors of the graph yet"
        )
        return Layout(lon, lat, degrees=True), [f"There are {lacks}, so there is no map."]
    found = np.stack([spatial[c].to_numpy() for c in eigen], axis=1).astype(np.float64)
    xy = stand_in_coordinates(adjacency_of(edges, list(d.signal.entities)), found)
    said = "There are no coordinates: places stand for the two slowest eigenvectors of the graph of the training edges."
    return Layout(xy[:, 0], xy[:, 1], degrees=False), [said]


def _linked(edges: pl.DataFrame, names: list[str], drawn: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Linked pairs (m, 2) of drawn entities, the strongest first; both directions of an edge add up."""
    code = {e: i for i, e in enumerate(names)}
    ends = [pl.col(c).replace_strict(code, return_dtype=pl.Int64) for c in ("source", "target")]
    pairs = (
        edges.select(a=pl.min_horizontal(ends), b=pl.max_horizontal(ends), weight="weight")
        .filter(pl.col("a") != pl.col("b"))
        .group_by("a", "b")
        .agg(pl.col("weight").sum())
        .sort("weight", "a", "b", descending=[True, False, False])
        .select("a", "b")
        .to_numpy()
    )
    return np.asarray(pairs[drawn[pairs].all(axis=1)], np.int64)


def _chart(layout: Layout, names: list[str], patch: NDArray[np.int64], linked: NDArray[np.int64], cut: bool) -> str:
    drawn = layout.drawn
    x, y, aspect = map_axes(layout.x[drawn], layout.y[drawn], layout.degrees)
    kinds = np.unique(patch[drawn])
    said = f"{int(drawn.sum()):,} entities" + (f" in {len(kinds):,} patches" if cut else "")
    said += f", {len(linked):,} linked pairs" if len(linked) else ""
    kind = "Map" if layout.degrees else "Stand-in layout"
    chart = Chart(f"{kind}: {said}", f"{kind} of {said}. The table below gives the patches.", x, y, aspect)
    here = {int(p): np.flatnonzero(drawn & (patch == p)) for p in kinds}
    if cut and _framed(layout, patch):
        extents = [(f(layout.x[i]), f(layout.y[i])) for i in here.values() if len(i) > 1 for f in (np.min, np.max)]
        chart.boxes(extents, "patch-box")
    strongest = linked[:EDGES]
    chart.segments(np.stack([a[strongest[:, k]] for k in (0, 1) for a in (layout.x, layout.y)], axis=1))
    size = 9 if len(names) <= 200 else 6 if len(names) <= 1000 else 4
    for p, i in here.items():
        titles = [f"{names[k]}, patch {p}" if cut else names[k] for k in i] if len(names) <= TITLED else ()
        chart.dots(layout.x[i], layout.y[i], tone(p) if cut else "--h:217", size, titles)
    degree = np.bincount(linked.ravel(), minlength=len(names))
    if len(names) <= TITLED:
        _label(chart, names, layout, [int(i) for i in np.argsort(-degree, kind="stable") if drawn[i]])
    return chart.html()


def _framed(layout: Layout, patch: NDArray[np.int64]) -> bool:
    """Whether patches get frames: not where some entities lie elsewhere, nor so many that frames hide the map."""
    return bool(layout.drawn.all()) and len(np.unique(patch)) <= FRAMES


def map_axes(x: Floats, y: Floats, degrees: bool) -> tuple[Axis, Axis, float]:
    """Axes around the points, and the plot's width over its height: a kilometre is as long across as up."""
    centre = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
    squeeze = max(0.1, float(np.cos(np.deg2rad(centre[1])))) if degrees else 1.0
    across, up = (max(float(np.ptp(a)) * s / 2 * 1.12, 1e-9) for a, s in ((x, squeeze), (y, 1.0)))
    if max(across, up) <= 1e-6:
        across = up = 0.01
    across, up = max(across, up * NARROWEST), max(up, across / WIDEST)
    ends = [(c - h, c + h) for c, h in zip(centre, (across / squeeze, up), strict=True)]
    if degrees:
        return linear(*ends[0], "longitude"), linear(*ends[1], "latitude"), across / up
    return Axis(*ends[0]), Axis(*ends[1]), across / up


# Extent of a label in pixels; plot widths on which labels must not touch: all on a wide one, some on a narrow one.
LETTER, LINE, WIDE, NARROW = 7.0, 15.0, 800.0, 300.0
SIDES = {"right": (0.5, 0.0), "left": (-0.5, 0.0), "above": (0.0, -1.0), "below": (0.0, 1.0)}


def _label(chart: Chart, names: list[str], layout: Layout, order: list[int]) -> None:
    """Names where they cover neither a dot nor one another; those that fit on a wide screen alone say so."""
    share = np.stack([chart.x.share(layout.x[order]), 1 - chart.y.share(layout.y[order])], axis=1)
    ratio = float(chart.shape.split(":")[1])
    taken: dict[float, list[Floats]] = {WIDE: [], NARROW: []}
    for i, at in zip(order[:LABELLED], share, strict=False):
        if len(names[i]) > LETTERS:
            continue
        for side, toward in SIDES.items():
            fits = []
            for width, boxes in taken.items():
                scale = np.array([width, width / ratio])
                box = _box(at * scale, np.array(toward), len(names[i]) * LETTER)
                dots = share * scale
                bare = not ((dots > box[:2] - 4) & (dots < box[2:] + 4)).all(axis=1).any()
                apart = all((box[:2] > b[2:]).any() or (box[2:] < b[:2]).any() for b in boxes)
                inside = (box[:2] >= 0).all() and (box[2:] <= scale).all()
                if bare and apart and inside:
                    fits.append((width, box))
            if fits and fits[0][0] == WIDE:
                for width, box in fits:
                    taken[width].append(box)
                chart.note(layout.x[i], layout.y[i], names[i], f"{side} place" + ("" if len(fits) == 2 else " odd"))
                break


def _box(dot: Floats, toward: Floats, length: float) -> Floats:
    """Left, top, right and bottom of a label on one side of its dot, which it does not touch."""
    half = np.array([length / 2, LINE / 2])
    centre = dot + np.sign(toward) * (half + 5)
    return np.concatenate([centre - half, centre + half])


def tone(patch: int) -> str:
    """Neighbouring patches have neighbouring codes; the golden angle sets their hues far apart, greens by lightness."""
    return f"--h:{round(patch * field.GOLDEN_ANGLE) % 360};--dl:{8 * (patch % 3 - 1)}%"


def _patches(names: list[str], patch: NDArray[np.int64]) -> list[dict[str, Any]]:
    groups = {int(p): [names[i] for i in np.flatnonzero(patch == p)] for p in np.unique(patch)}
    return [{"patch": p, "tone": tone(p), "size": len(g), "names": g[:8]} for p, g in groups.items()]
