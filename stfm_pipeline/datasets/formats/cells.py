"""Long rows put into a dense table while they are read, where that loses nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from stfm_pipeline.tables import ROWS_AT_ONCE, dense_observations, times_of

Ints = NDArray[np.int64]
Clock = tuple[int, int, int]
# Cells per row: a table less than half full is no smaller than its rows. While rows come, more may still be empty.
FULL, HOPEFUL, SLACK = 2, 4, 1_000_000


class Cells:
    """A table of times x entities that grows with the rows put into it; a cell without a row stays apart from NaN.

    Its lines are a clock that all times lie on; its columns are in `order`, or as entities come. Rows without entity or
    time, rows out of order, double rows and rows that fill too few cells do not fit: they are better kept as they are.
    """

    def __init__(self, order: Sequence[str] = ()) -> None:
        self.rows = 0
        self._listed = list(order)
        self._known = set(order)
        self.came: list[str] = []
        self._last = np.zeros(0, np.int64)
        self._clock: Clock = (0, 0, 0)
        self._width = 0
        # Flat, so that memory can grow where it is.
        self._seen = np.zeros(0, np.bool_)
        self._values: dict[str, NDArray[np.float64]] = {}

    @property
    def order(self) -> list[str]:
        """Entities in the order of the columns."""
        return self._listed or self.came

    def add(self, rows: pl.DataFrame) -> bool:
        """Put in rows (entity, time, channels in double precision); False if they do not fit."""
        if not len(rows):
            return True
        if rows["entity"].null_count() or rows["time"].null_count():
            return False
        if not self.rows:
            self._values = {c: np.zeros(0) for c in rows.columns if c not in ("entity", "time")}
        column = self._columns(rows["entity"])
        times = times_of(rows["time"]).view(np.int64)
        if column is None or not self._in_order(column, times):
            return False
        self.rows += len(rows)
        # Rows that follow one another often have one time.
        first = np.append(0, np.flatnonzero(times[1:] != times[:-1]) + 1)
        if not self._make_room(times[first]):
            return False
        start, _, step = self._clock
        line = (times[first] - start) // (step or 1) * self._width
        cell = np.repeat(line, np.diff(np.append(first, len(rows)))) + column
        self._seen[cell] = True
        for name, values in self._values.items():
            # A null becomes NaN.
            values[cell] = rows[name].to_numpy()
        return True

    def table(self) -> pl.DataFrame | None:
        """Dense observations, or None where the rows did not fit after all. Nothing can be put in afterwards."""
        order = self.order
        if not self.rows or self.rows != np.count_nonzero(self._seen):
            return None
        if len(order) > self._width:
            self._grow(self._clock, len(order))
        for flat in (self._seen, *self._values.values()):
            flat.resize(_height(self._clock) * self._width, refcheck=False)
        start, _, step = self._clock
        lines = np.flatnonzero(self._seen.reshape(-1, self._width).any(axis=1))
        if len(lines) * len(order) > FULL * self.rows:
            return None
        at = {e: i for i, e in enumerate(self.came)}
        silent = iter(range(len(at), self._width))
        columns = np.array([at[e] if e in at else next(silent) for e in order])
        times = pl.Series(start + lines * step).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
        taken = {c: _taken(v, self._width, lines, columns) for c, v in self._values.items()}
        return dense_observations(times, taken, _taken(self._seen, self._width, lines, columns))

    def _columns(self, names: pl.Series) -> NDArray[Any] | None:
        """Column of each row, in as few bytes as will do; None where an entity is not among those listed."""
        while True:
            found = names.cast(pl.Enum(self.came), strict=False)
            if not found.null_count():
                return found.to_physical().to_numpy()
            new = names.filter(found.is_null()).unique(maintain_order=True).to_list()
            if self._listed and not self._known.issuperset(new):
                return None
            self.came += new
            self._last = np.append(self._last, np.full(len(new), np.iinfo(np.int64).min))

    def _in_order(self, column: NDArray[Any], times: Ints) -> bool:
        """Whether no entity's times go backwards."""
        order: Any = slice(None)
        before = self._last[column]
        if (times[1:] < times[:-1]).any():
            order = np.argsort(column, kind="stable")
            who = column[order]
            before = np.where(np.append(False, who[1:] == who[:-1]), np.append(0, times[order][:-1]), before[order])
        fits = bool((times[order] >= before).all())
        # Of several times of an entity the last one stays.
        self._last[column[order]] = times[order]
        return fits

    def _make_room(self, times: Ints) -> bool:
        """Widen the clock and the columns to hold these times; False where too few rows would fill them."""
        start, stop, step = self._clock if self._width else (int(times[0]), int(times[0]), 0)
        off = (times - start) % step if step else times - start
        if off.any():
            step = int(np.gcd.reduce(off, initial=step))
        clock = (min(start, int(times.min())), max(stop, int(times.max())), step)
        width = len(self.came)
        if _height(clock) * width > HOPEFUL * self.rows + SLACK:
            return False
        if clock != self._clock or width > self._width:
            self._grow(clock, width)
        return True

    def _grow(self, clock: Clock, width: int) -> None:
        """Lines for another clock and for more columns; what is there keeps its times and columns."""
        (start, _, step), (first, _, finer) = self._clock, clock
        rows, columns = (_height(self._clock), self._width) if self._width else (0, 0)
        height = _height(clock)
        if width <= columns and (start, step) == (first, finer):
            # A quarter more than is needed, so that it is seldom.
            size = max(height, rows + rows // 4) * columns
            for flat in (self._seen, *self._values.values()):
                if len(flat) < height * columns:
                    flat.resize(size, refcheck=False)
            self._clock = clock
            return
        if width > columns > 0:
            width = max(width, min(2 * columns, len(self._listed) or 2 * columns))
        width = max(width, columns)
        stretch = step // finer if step else 1
        top = (start - first) // finer if finer else 0

        def moved(flat: NDArray[Any]) -> NDArray[Any]:
            out = np.zeros(height * width, flat.dtype)
            there = out.reshape(height, width)[top : top + rows * stretch : stretch, :columns]
            there[:] = flat[: rows * columns].reshape(rows, columns)
            return out

        self._clock, self._width = clock, width
        self._seen = moved(self._seen)
        for name in self._values:
            self._values[name] = moved(self._values[name])


def _height(clock: Clock) -> int:
    start, stop, step = clock
    return (stop - start) // step + 1 if step else 1


def _taken(flat: NDArray[Any], width: int, lines: Ints, columns: Ints) -> NDArray[Any]:
    """These lines and columns of a table, moved together in its own memory."""
    whole = flat.reshape(-1, width)
    if len(columns) == width and np.array_equal(lines, np.arange(len(lines))) and (np.diff(columns) == 1).all():
        return whole[: len(lines)]
    for i in range(0, len(lines), ROWS_AT_ONCE):
        part = whole[np.ix_(lines[i : i + ROWS_AT_ONCE], columns)]
        flat[i * len(columns) : i * len(columns) + part.size] = part.ravel()
    return flat[: len(lines) * len(columns)].reshape(len(lines), len(columns))
