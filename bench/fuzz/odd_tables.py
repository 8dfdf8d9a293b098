"""Parquet whose schema is odd."""

from __future__ import annotations

import io
import random
from typing import Any

import numpy as np

from bench.fuzz.seeds import times


def parquet(data: bytes, rng: random.Random) -> bytes:
    """The same table with columns of another type, name, order or content."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    for _ in range(rng.choice((1, 1, 2))):
        i = rng.randrange(table.num_columns)
        name, n = table.column_names[i], table.num_rows
        how = rng.randrange(7)
        if how < 4:
            table = table.set_column(i, name, _column(n, rng))
        elif how == 4:
            new = rng.choice((*table.column_names, "", "_row", "time", "entity", "\0", "a" * 3000))
            table = table.rename_columns([new if k == i else c for k, c in enumerate(table.column_names)])
        elif how == 5:
            table = rng.choice((table.slice(0, 0), table.slice(0, 1), pa.concat_tables([table] * 3), table.select([])))
            if not table.num_columns:
                break
        else:
            table = table.append_column(rng.choice((name, "more")), _column(n, rng))
    out = io.BytesIO()
    options = {
        "compression": rng.choice(("snappy", "zstd", "gzip", "none", "brotli", "lz4")),
        "version": rng.choice(("1.0", "2.6")),
    }
    pq.write_table(table, out, use_dictionary=rng.random() < 0.7, row_group_size=rng.choice((7, 1000)), **options)
    return out.getvalue()


def _column(n: int, rng: random.Random) -> Any:
    import pyarrow as pa

    micros = times().astype(np.int64)
    whole = np.resize(micros, n)
    return rng.choice((
        lambda: pa.nulls(n), lambda: pa.nulls(n, pa.float64()), lambda: pa.array(["x"] * n),
        lambda: pa.array([b"\xff"] * n),
        lambda: pa.array([[1.0, 2.0]] * n), lambda: pa.array([{"a": 1}] * n), lambda: pa.array([True, None] * n)[:n],
        lambda: pa.array(whole, pa.timestamp("s")), lambda: pa.array(whole, pa.timestamp("ns", "UTC")),
        lambda: pa.array(whole, pa.timestamp("us", "Europe/Berlin")), lambda: pa.array(np.arange(n, dtype=np.int32),
        pa.date32()),
        lambda: pa.array(np.arange(n) * 86_400_000, pa.date64()), lambda: pa.array(np.arange(n), pa.time64("us")),
        lambda: pa.array(np.arange(n), pa.duration("us")), lambda: pa.array(np.full(n, np.nan)),
        lambda: pa.array(np.full(n, np.inf)),
        lambda: pa.array(np.arange(n, dtype=np.uint64) + 2**63), lambda: pa.array(np.zeros(n, np.float16)),
        lambda: pa.array([1] * n, pa.decimal128(38, 10)), lambda: pa.array(["a"] * n).dictionary_encode(),
        lambda: pa.array([[("k", 1)]] * n, pa.map_(pa.string(), pa.int64())), lambda: pa.array([None, "b"] * n)[:n],
        lambda: pa.array(np.resize(np.array([0, 2**62, -(2**62)]), n), pa.timestamp("us")),
        lambda: pa.array([[0.0] * 4] * n, pa.list_(pa.float64(), 4)),
        lambda: pa.array([""] * n), lambda: pa.array([str(t) for t in np.resize(times(), n)]),
    ))()  # fmt: skip
