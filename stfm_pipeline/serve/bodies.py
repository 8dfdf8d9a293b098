"""Frames as bodies: rows or columns in JSON, and Arrow IPC; an answer has the form of its question."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from itertools import chain
from typing import Any

import polars as pl

from stfm_pipeline.errors import FrameError

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
FORMS = (JSON, ARROW)
# More than any model knows.
COLUMNS = 1000
# Cells that rows may always make, however few of them they give.
SPARSE = 1_000_000


class TooLarge(Exception):
    """What was found and what is expected of a body or a frame that is over its limit."""


def read(body: bytes, form: str, most: int) -> tuple[pl.DataFrame, str]:
    """The frame in a body of content type `form`, and its kind: `rows`, `columns` or `arrow`.

    No frame is a `FrameError`; one of more than `most` rows, or of more columns than any model knows, is `TooLarge`.
    """
    return (_arrow(body, most), "arrow") if form == ARROW else _json(body, most)


def _check_size(rows: int, columns: int, most: int) -> None:
    if rows > most:
        raise TooLarge(f"{rows} rows", f"at most {most} rows")
    if columns > COLUMNS:
        raise TooLarge(f"{columns} columns", f"at most {COLUMNS} columns")


def _refuse_nested(names: Iterable[str]) -> None:
    """Of these columns values hold others; polars takes half a minute for one that holds 900 in each other."""
    if nested := list(dict.fromkeys(names)):
        raise FrameError(
            "values are lists, objects or runs", expected="numbers, text, booleans or nulls", offenders=nested
        )


def write(forecast: pl.DataFrame, kind: str, facts: dict[str, Any]) -> tuple[bytes, str]:
    """An answer and its content type: `facts` as fields beside `forecast`, in Arrow as the metadata `stfm`."""
    if kind == "arrow":
        import pyarrow as pa

        table = forecast.to_arrow().replace_schema_metadata({"stfm": json.dumps(facts)})
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return sink.getvalue(), ARROW
    shown = forecast.with_columns(pl.col(pl.Datetime).dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    body = shown.write_json() if kind == "rows" else json.dumps(shown.to_dict(as_series=False))
    return f'{json.dumps(facts)[:-1]}, "forecast": {body}}}'.encode(), JSON


def _json(body: bytes, most: int) -> tuple[pl.DataFrame, str]:
    expected = "a list of rows [{...}, ...] or an object of columns {name: [...], ...}"
    # "[]" takes 56 bytes once it is read, and seconds for millions. Twice as many, as names may hold brackets too.
    if (held := body.count(b"[") + body.count(b"{")) > 2 * (most + COLUMNS):
        raise TooLarge(f"{held} lists and objects", f"at most {most} rows")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FrameError("the body is not JSON", expected=expected, found=str(error)) from None
    rows = isinstance(found, list) and all(isinstance(row, dict) for row in found)
    columns = isinstance(found, dict) and all(isinstance(column, list) for column in found.values())
    if not found or not (rows or columns):
        raise FrameError("the body holds no frame", expected=expected, found=f"{type(found).__name__}: {body[:60]!r}")
    names = list(dict.fromkeys(chain.from_iterable(found))) if rows else list(found)
    length = len(found) if rows else max(map(len, found.values()))
    _check_size(length, len(names), most)
    # Keys that rows leave out are spelled out; where none is left out each takes six bytes at least, "a":1,
    if rows and length * len(names) > max(len(body) // 4, SPARSE):
        raise TooLarge(f"{length} rows of {len(names)} keys, most of them left out", "rows that have most of the keys")
    cells = chain.from_iterable(map(dict.items, found)) if rows else ((n, v) for n in names for v in found[n])
    _refuse_nested(name for name, value in cells if isinstance(value, list | dict))
    try:
        frame = pl.from_dicts(found, infer_schema_length=None) if rows else pl.DataFrame(found)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        raise FrameError("values of one column do not go together", expected=expected, found=_first(error)) from None
    return frame, "rows" if rows else "columns"


def _arrow(body: bytes, most: int) -> pl.DataFrame:
    import pyarrow as pa

    try:
        if _inflates(body):
            raise FrameError(
                "compressed Arrow buffers are not read", expected="a stream without compression", found="compression"
            )
        with pa.ipc.open_stream(body) as stream:
            table = stream.read_all()
        _check_size(table.num_rows, table.num_columns, most)
        table.validate(full=True)
        _refuse_nested(field.name for field in table.schema if _is_nested(field.type))
        frame = pl.from_arrow(table)
    except (pa.ArrowException, pl.exceptions.PolarsError, MemoryError, OSError, ValueError, TypeError) as error:
        raise FrameError(
            "the body is not an Arrow IPC stream", expected="frame.write_ipc_stream(file)", found=_first(error)
        ) from None
    assert isinstance(frame, pl.DataFrame)
    return frame


def _is_nested(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_nested(kind) or pa.types.is_run_end_encoded(kind):
        return True
    inner = getattr(kind, "value_type", getattr(kind, "storage_type", None))
    return inner is not None and _is_nested(inner)


def _inflates(body: bytes) -> bool:
    """Whether a buffer of an Arrow IPC stream is compressed, which pyarrow says only once it is inflated.

    So the messages' flatbuffers are asked (Arrow's Message.fbs: Message.header, RecordBatch.compression).
    """
    import pyarrow as pa

    for message in pa.ipc.MessageReader.open_stream(body):
        found = message.metadata.to_pybytes()
        batch = _child(found, _number(found, 0, 4), 2)
        if message.type == "dictionary":
            batch = _child(found, batch, 1)
        if message.type in ("dictionary", "record batch") and _field(found, batch, 3):
            return True
    return False


def _number(buffer: bytes, at: int, size: int) -> int:
    return int.from_bytes(buffer[at : at + size], "little")


def _field(buffer: bytes, table: int, k: int) -> int:
    """Where the field `k` of a flatbuffers table lies; 0 where it has none."""
    vtable = table - int.from_bytes(buffer[table : table + 4], "little", signed=True)
    there = 4 + 2 * k < _number(buffer, vtable, 2)
    offset = _number(buffer, vtable + 4 + 2 * k, 2) if there else 0
    return table + offset if offset else 0


def _child(buffer: bytes, table: int, k: int) -> int:
    at = _field(buffer, table, k)
    return at + _number(buffer, at, 4)


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
