"""Identity of content: equal tables and facts have equal versions, on every machine and however they came about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

CELLS_OF_A_BLOCK = 1 << 18
VALUES_AT_ONCE = 1_000_000
# Keeps the separator and the mark of a null apart from text that holds them.
_ESCAPED = {0: "\x020", 1: "\x021", 2: "\x022"}


@dataclass(frozen=True)
class Blocks:
    """Digests of a table's rows, `size` rows each, so that rows appended at the end need no others to be read."""

    schema: str
    rows: int
    size: int
    digests: tuple[str, ...]

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Blocks:
        size = _rows_of_a_block(frame)
        return cls(str(frame.schema), len(frame), size, tuple(_digests(frame, size)))

    @classmethod
    def beside(cls, frames: Iterator[pl.DataFrame], out: list[Blocks]) -> Iterator[pl.DataFrame]:
        """The frames of one table as they come; once they have passed, `out` holds the digests of all their rows."""
        digests: list[str] = []
        rest, schema, size, rows = pl.DataFrame(), "", 1, 0
        for frame in frames:
            if not schema:
                schema, size, rest = str(frame.schema), _rows_of_a_block(frame), frame.clear()
            yield frame
            rows += len(frame)
            rest = pl.concat([rest, frame])
            whole = len(rest) // size * size
            digests += _digests(rest[:whole], size)
            rest = rest[whole:]
        out.append(cls(schema, rows, size, (*digests, *_digests(rest, size))))

    def start(self, row: int) -> int:
        """The first row of the block that `row` belongs to."""
        return row // self.size * self.size

    def continued(self, first: int, rest: pl.DataFrame) -> Blocks:
        """With `rest` in place of every row from `first` on, which starts a block."""
        kept = self.digests[: first // self.size]
        return Blocks(self.schema, first + len(rest), self.size, (*kept, *_digests(rest, self.size)))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Blocks:
        return cls(**{**found, "digests": tuple(found["digests"])})


def data_version(tables: Mapping[str, pl.DataFrame | Blocks], facts: dict[str, Any]) -> str:
    """Version of what a stage holds, from its tables or their digests, and its facts."""
    known = {n: (t if isinstance(t, Blocks) else Blocks.of(t)).to_json() for n, t in tables.items()}
    text = json.dumps([known, facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _rows_of_a_block(frame: pl.DataFrame) -> int:
    wide = sum(int(n or 0) for row in frame.head(1).select(pl.selectors.list().list.len()).rows() for n in row)
    return max(1, CELLS_OF_A_BLOCK // (frame.width + wide))


def _digests(frame: pl.DataFrame, size: int) -> Iterator[str]:
    for block in frame.iter_slices(size):
        digest = hashlib.sha256()
        for column in block.iter_columns():
            for part in _parts(column):
                digest.update(part)
        yield digest.hexdigest()[:16]


def _parts(column: pl.Series) -> Iterator[Any]:
    """The column as buffers, one after the other; large ones are handed over without a copy."""
    if isinstance(column.dtype, pl.List):
        yield column.list.len().to_numpy().tobytes()
        yield from _parts(column.explode(empty_as_null=False))
    elif isinstance(column.dtype, pl.Array):
        yield from _parts(column.arr.to_list())
    elif isinstance(column.dtype, pl.Struct):
        yield column.is_not_null().to_numpy().tobytes() if column.null_count() else b""
        for field in column.struct.unnest().iter_columns():
            yield from _parts(field)
    elif isinstance(column.dtype, pl.Categorical | pl.Enum | pl.Decimal):
        yield from _parts(column.cast(pl.String))
    elif column.dtype == pl.Binary:
        yield from _parts(column.bin.encode("hex"))
    elif column.dtype == pl.String:
        if column.str.contains(r"[\x00-\x02]").any():
            column = pl.Series(
                [None if v is None else v.translate(_ESCAPED) for v in column.to_list()], dtype=pl.String
            )
        for i in range(0, max(len(column), 1), VALUES_AT_ONCE):
            text = column.slice(i, VALUES_AT_ONCE).fill_null("\x01").str.join("\x00")
            yield ("\x00" if i else "").encode() + (text[0] or "").encode()
    else:
        physical = column.to_physical()
        if physical.null_count():
            for i in range(0, len(physical), VALUES_AT_ONCE):
                part = physical.slice(i, VALUES_AT_ONCE)
                yield part.is_not_null().to_numpy().tobytes()
                yield np.ascontiguousarray(part.fill_null(0).to_numpy()).view(np.uint8).data
        else:
            yield np.ascontiguousarray(physical.to_numpy()).view(np.uint8).data
