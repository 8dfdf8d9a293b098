"""Charts as HTML and SVG without a script: they follow light and dark, scale with the page and keep their text legible.

The drawing is an SVG stretched over the plot area; all text is HTML placed by percentages, so a narrow screen shrinks
the lines and not the letters. Colours are the page's: a tone is a CSS class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from stfm_pipeline.pages.axis import Axis

SIDE = 1000


class Chart:
    """One plot. Marks are drawn in the order they are added; `alt` says in words what the drawing shows.

    `shape` is the height in pixels, or the width over the height where that is below 10.
    """

    def __init__(self, title: str, alt: str, x: Axis, y: Axis, shape: float = 220, grid: bool = True) -> None:
        self.title, self.alt, self.x, self.y, self.grid = title, alt, x, y, grid
        self.shape = f"height:{shape:g}px" if shape >= 10 else f"aspect-ratio:{shape:.3f}"
        self._under: list[Markup] = []
        self._marks: list[Markup] = []
        self._notes: list[Markup] = []
        self._legend: list[Markup] = []

    def _at(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
        places = np.broadcast_arrays(self.x.share(x), 1 - self.y.share(y))
        return np.round(np.stack(places, axis=-1) * SIDE, 1)

    def _draw(self, path: str, classes: str, name: str = "") -> Chart:
        self._marks.append(Markup('<path class="{}" d="{}"/>').format(classes, path))
        if name:
            self._legend.append(Markup('<span><i class="{}"></i>{}</span>').format(classes, name))
        return self

    def line(self, x: ArrayLike, y: ArrayLike, tone: str, name: str = "") -> Chart:
        """A line that breaks where a value is not finite."""
        known = np.isfinite(y)
        pen = np.where(np.concatenate([[True], ~known[:-1]]), "M", "L")
        points = zip(pen[known], self._at(x, y)[known], strict=True)
        return self._draw("".join(f"{p}{a:g} {b:g}" for p, (a, b) in points), f"line {tone}", name)

    def steps(self, edges: ArrayLike, heights: ArrayLike, kind: str, name: str) -> Chart:
        """A histogram, heights between edges, as an `area` or an outline (`line`) with its tone."""
        e, h = np.asarray(edges, np.float64), np.maximum(heights, self.y.low)
        foot = [self.y.low]
        points = self._at(np.repeat(e, 2), np.concatenate([foot, np.repeat(h, 2), foot]))
        return self._draw("M" + "L".join(f"{a:g} {b:g}" for a, b in points), kind, name)

    def dots(self, x: ArrayLike, y: ArrayLike, style: str, size: float, titles: Sequence[str] = ()) -> Chart:
        """Round dots of `size` pixels; with titles each says its own when pointed at."""
        places = [f"M{a:g} {b:g}h0" for a, b in self._at(x, y)]
        inner = Markup('<path d="{}"/>').format("".join(places))
        if titles:
            named = Markup('<path d="{}"><title>{}</title></path>')
            inner = Markup("").join(named.format(p, t) for p, t in zip(places, titles, strict=True))
        self._marks.append(Markup('<g class="dots" style="stroke-width:{:g};{}">{}</g>').format(size, style, inner))
        return self

    def segments(self, ends: ArrayLike) -> Chart:
        """Thin straight lines (m, 4): x, y of one end, x, y of the other."""
        e = np.asarray(ends, np.float64).reshape(-1, 4)
        pairs = zip(self._at(e[:, 0], e[:, 1]), self._at(e[:, 2], e[:, 3]), strict=True)
        return self._draw("".join(f"M{a:g} {b:g}L{c:g} {d:g}" for (a, b), (c, d) in pairs), "hair")

    def boxes(self, corners: ArrayLike, classes: str) -> Chart:
        """Rectangles (m, 4): low x, low y, high x, high y."""
        b = np.asarray(corners, np.float64).reshape(-1, 4)
        pairs = zip(self._at(b[:, 0], b[:, 1]), self._at(b[:, 2], b[:, 3]), strict=True)
        return self._draw("".join(f"M{x:g} {y:g}H{u:g}V{v:g}H{x:g}Z" for (x, y), (u, v) in pairs), classes)

    def rule(self, x: float, text: str = "") -> Chart:
        """A dashed vertical line with its text at the top."""
        self._draw(f"M{float(self.x.share(x)) * SIDE:.1f} 0V{SIDE}", "rule")
        return self.note(x, self.y.high, text, "below") if text else self

    def note(self, x: float, y: float, text: str, place: str) -> Chart:
        """Text at a point: `right`, `left`, `above`, `below` or `on` it; other words are classes of the page."""
        at = float(self.x.share(x)) * 100, (1 - float(self.y.share(y))) * 100
        markup = '<span class="note {}" style="left:{:.2f}%;top:{:.2f}%">{}</span>'
        self._notes.append(Markup(markup).format(place, *at, text))
        return self

    def image(self, uri: str) -> Chart:
        """A picture stretched over the whole plot area, one pixel per cell."""
        self._under.append(Markup('<img class="cells" src="{}" alt="">').format(uri))
        return self

    def html(self) -> Markup:
        """The figure: caption, drawing with its description, legend."""
        join = Markup("").join
        across, up = (
            [(s, text) for v, text in axis.ticks for s in [float(axis.share(v))] if -0.001 <= s <= 1.001]
            for axis in (self.x, self.y)
        )
        grid = "".join(f"M{s * SIDE:.1f} 0V{SIDE}" for s, _ in across)
        grid += "".join(f"M0 {(1 - s) * SIDE:.1f}H{SIDE}" for s, _ in up)
        labels = [
            Markup('<span class="x{}{}" style="left:{:.2f}%">{}</span>').format(
                " odd" if i % 2 else "", " first" if s < 0.03 and len(text) > 5 else "", s * 100, text
            )
            for i, (s, text) in enumerate(across)
        ]
        labels += [Markup('<span class="y" style="top:{:.2f}%">{}</span>').format((1 - s) * 100, t) for s, t in up]
        return Markup(
            '<figure class="chart"><figcaption>{title}</figcaption>{unit}'
            '<div class="plot-area" role="img" aria-label="{alt}" style="{shape};margin-left:{margin:.1f}ch">'
            '{under}<svg viewBox="0 0 {side} {side}" preserveAspectRatio="none" aria-hidden="true">'
            '<path class="grid-line" d="{grid}"/>{marks}</svg>{labels}{notes}</div>{foot}{legend}</figure>'
        ).format(
            title=self.title,
            unit=Markup('<div class="axis-title">{}</div>').format(self.y.title) if self.y.title else "",
            alt=self.alt,
            shape=self.shape,
            margin=max((len(t) for _, t in up), default=0) * 0.92 + 1,
            under=join(self._under),
            side=SIDE,
            grid=grid if self.grid else "",
            marks=join(self._marks),
            labels=join(labels),
            notes=join(self._notes),
            foot=Markup('<div class="axis-title foot">{}</div>').format(self.x.title) if self.x.title else "",
            legend=Markup('<div class="legend">{}</div>').format(join(self._legend)) if self._legend else "",
        )
