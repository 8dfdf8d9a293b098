"""Damage that knows the format: the container stays whole, and what it holds is odd."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.fuzz.seeds import NAMES, STEPS, hdf, npy, pandas_frame, times, two_blocks, values

HUGE = "9" * 400
CELLS = (
    "", " ", "NaN", "inf", "-inf", "1e999", "-1e-999", "-0", "1,5", "1.5.2", "0x10", "1_000", HUGE, "true", "None",
    '"', '"a', 'a"b', "'", "\0", "\ufeff",
    "é", "𝟙", "٣", "\r", ";", "\t", "=1+1", "-99", "2024-01-01", "9999-12-31T23:00:00",
    "0001-01-01T00:00:00", "6000-06-06T00:00:00", "2024-02-30T00:00:00", "2024-01-01T25:00:00",
    "2024-01-01T00:00:00+99:00",
    "2024-01-01T00:30:00", "2024-01-01 00:00:00.123456789", "01/02/2024", "1704067200", "24:00", "[1, 2]", "{}",
    "a" * 5000,
)  # fmt: skip


def csv(data: bytes, rng: random.Random) -> bytes:
    """Odd cells, names, rows, ends of lines and encodings."""
    rows = [line.split(",") for line in data.decode().splitlines()]
    for _ in range(rng.choice((1, 1, 2, 5))):
        how = rng.randrange(12)
        rows = [row or [""] for row in rows]
        i, j = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
        if how < 5:
            row = rows[i]
            row[j % len(row)] = rng.choice(CELLS)
        elif how == 5:
            cell = rng.choice(CELLS)
            for row in rows[1:]:
                row[j % len(row)] = cell
        elif how == 6:
            rows.insert(rng.randrange(1, len(rows) + 1), list(rows[i]))
        elif how == 7:
            rows[i] = rng.choice((rows[i][:-1] or [""], [*rows[i], "7"]))
        elif how == 8:
            rows[0][j % len(rows[0])] = rng.choice((*rows[0], *CELLS, "time", "entity", "_row"))
        elif how == 9:
            rng.shuffle(rows)
        elif how == 10:
            rows = rows[: rng.choice((1, 2, len(rows)))]
        else:
            rows = [[rng.choice(row)] if rng.random() < 0.02 else row for row in rows] + [[]] * rng.randrange(3)
    end = rng.choice(("\n", "\n", "\n", "\r\n", "\r", "\n\n"))
    whole = end.join(rng.choice((",",) * 30 + (";", "\t")).join(row) for row in rows) + end
    coding = rng.choice(("utf-8",) * 20 + ("utf-8-sig", "utf-16", "latin-1"))
    return whole.encode(coding, errors="replace")


KINDS = (
    "f2", ">f8", "<f4", "g", "c16", "?", "i1", "u1", "<i8", ">i4", "u8", "S3", "U5", "M8[ns]", "m8[D]", "V4",
    [("a", "f8"), ("b", "i4")], ("f8", (2,)),
)  # fmt: skip
SHAPES = (
    (),
    (0,),
    (1,),
    (0, 4),
    (72, 0),
    (72, 4, 0),
    (4, 72),
    (72, 4, 2),
    (1, 4, 2),
    (72, 4, 2, 1),
    (288,),
    (1,) * 20,
    (5, 4),
    (72, 1),
)


def array(rng: random.Random) -> Any:
    """An array of an odd shape, type, order or content."""
    found: Any = values(2)
    how = rng.randrange(5)
    if how == 0:
        found = np.asfortranarray(found) if rng.random() < 0.3 else found.astype(_plain(rng))
    elif how == 1:
        found = np.zeros(rng.choice(SHAPES), rng.choice(KINDS))
    elif how == 2:
        found[rng.randrange(STEPS)] = rng.choice((np.nan, np.inf, -np.inf, 1e300, -1e300, 1e39, 5e-324))
    elif how == 3:
        found = found[:: rng.choice((-1, 2, 7)), :: rng.choice((1, -1))]
    else:
        found = np.full_like(found, rng.choice((np.nan, np.inf, 0, 1e308, -1)))
    return found


def _plain(rng: random.Random) -> Any:
    return rng.choice([k for k in KINDS if isinstance(k, str) and k not in ("M8[ns]", "m8[D]", "V4")])


def npy_header(data: bytes, rng: random.Random) -> bytes:
    """An npy whose header is well formed and says something odd."""
    shape = rng.choice((
        "(72, 4, 2)", "(10**12,)", "(1000000000000, 4, 2)", "(72, 4, 2000000)", "(-1, 4, 2)", "(72, -4, -2)",
        "(0, 4, 2)", "()",
        "(9223372036854775807, 2)", "(4294967296, 4294967296)", "(72.0, 4, 2)", "(True, 4, 2)", "[72, 4, 2]",
        "(72, 4, 2,)",
        "'72'", "None", "(" * 90 + ")" * 90, "(72, 4, 2) + (1,)", str((1,) * 33), str((1,) * 65),
    ))  # fmt: skip
    descr = rng.choice((
        "'<f8'", "'<f8'", "'<f8'", "'>f8'", "'<f4'", "'<i8'", "'|O'", "'|V8'", "'<U2'", "'|S8'", "'<M8[ns]'",
        "'<m8[D]'", "'<c16'",
        "[('a', '<f8')]", "[('a', '|O')]", "'<f8, <f8'", "'(1000000,)<f8'", "'<x8'", "''", "None", "8", "'<f999'",
        "'|b1'",
    ))  # fmt: skip
    order = rng.choice(("False", "False", "True", "1", "None"))
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    if rng.random() < 0.1:
        text = rng.choice((text[:-2] + ", 'more': 1}", "{}", "[]", "{'shape': (1,)}", text * 2, text + " " * 20_000))
    body = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
    version = rng.choice((1, 1, 1, 2, 3, 9))
    size = struct.pack("<H" if version == 1 else "<I", len(body) & 0xFFFF)
    return b"\x93NUMPY" + bytes([version, 0]) + size + body + data[128:]


def any_npy(data: bytes, rng: random.Random) -> bytes:
    return npy_header(data, rng) if rng.random() < 0.5 else npy(array(rng))


def npz(data: bytes, rng: random.Random) -> bytes:
    """A zip whose members are odd, or whose directory lies about them."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            body, name = old.read(info), info.filename
            how = rng.randrange(8)
            if how < 3:
                body = any_npy(body, rng)
            elif how == 3:
                name = rng.choice(
                    ("../" + name, "/" + name, "data", name.upper(), "", "a/" + name, "é.npy", name + "\0x", "ids.npy")
                )
            elif how == 4:
                body = rng.choice(
                    (b"", b"PK", body[: len(body) // 2], b"\x80\x04N.", body + bytes(30_000_000), body * 2)
                )
            elif how == 5:
                new.writestr(zipfile.ZipInfo(name), body)
            method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new.writestr(zipfile.ZipInfo(name), body, compress_type=method)
    found = bytearray(out.getvalue())
    if rng.random() < 0.3:
        # Sizes, flags and methods of the directory's entries.
        at = found.find(b"PK\x01\x02")
        place = at + rng.choice((8, 10, 16, 20, 24, 28, 30, 42))
        found[place : place + 4] = rng.choice((0, 1, 99, 2**20, 2**32 - 1)).to_bytes(4, "little")
    return bytes(found)


def h5(data: bytes, rng: random.Random) -> bytes:
    """A frame in which a part is of another kind, size, type or place."""
    base = rng.choice((pandas_frame, two_blocks))
    changes = [rng.choice(HDF) for _ in range(rng.choice((1, 1, 2, 3)))]

    def write(file: Any) -> None:
        base(file)
        for change in changes:
            try:
                change(file, rng)
            except (KeyError, ValueError, TypeError, OSError, RuntimeError, AttributeError, MemoryError):
                continue

    return hdf(write, **rng.choice(({}, {}, {"libver": "latest"}, {"userblock_size": 512})))


def _some(file: Any, rng: random.Random) -> str:
    return "df/" + rng.choice(sorted(file["df"]))


def _retyped(file: Any, rng: random.Random) -> None:
    name = rng.choice(("df/axis0", "df/axis1", "df/block0_items", "df/block0_values"))
    attributes, old = dict(file[name].attrs), file[name][()]
    del file[name]
    kind = rng.choice(KINDS)
    data = np.zeros(old.shape, kind)
    if isinstance(kind, str) and old.dtype.kind in "fi" and data.dtype.kind in "fiub":
        data = np.nan_to_num(old).astype(kind)
    file.create_dataset(name, data=data).attrs.update(attributes)


def _reshaped(file: Any, rng: random.Random) -> None:
    name = _some(file, rng)
    attributes, kind = dict(file[name].attrs), file[name].dtype
    del file[name]
    file.create_dataset(name, data=np.zeros(rng.choice(SHAPES), kind)).attrs.update(attributes)


def _vast(file: Any, rng: random.Random) -> None:
    """Declared large, held by nothing."""
    name = _some(file, rng)
    attributes, kind = dict(file[name].attrs), file[name].dtype
    del file[name]
    shape = rng.choice(((10**9, 4), (10**12,), (10**6, 10**6), (72, 10**9), (2**40, 2**20), (50_000, 20_000)))
    chunks = rng.choice((None, True, (100,) * len(shape)))
    file.create_dataset(name, shape=shape, dtype=kind, chunks=chunks).attrs.update(attributes)


def _attribute(file: Any, rng: random.Random) -> None:
    name = rng.choice(("df/axis1", "df/axis0", "df"))
    key = rng.choice(("kind", "tz", "pseudoatom", "CLASS", "index_class"))
    file[name].attrs[key] = rng.choice((
        b"datetime64[s]", b"datetime64[Y]", b"datetime64[xx]", b"datetime64[", b"datetime64[9ns]", b"integer",
        b"float", b"\xff\xfe", b"", 7,
        b"VLARRAY", b"Europe/Berlin", b"Mars/Olympus", b"../../etc", np.array([1, 2]), np.float64(np.nan), "é",
    ))  # fmt: skip


def _stamps(file: Any, rng: random.Random) -> None:
    index = file["df/axis1"]
    at = rng.randrange(STEPS)
    index[at] = rng.choice((0, -1, 2**63 - 1, -(2**63), int(index[0]), int(index[0]) + 1, 10**18, 4 * 10**18))
    if rng.random() < 0.3:
        index[:] = rng.choice((0, 2**62, int(index[0]))) + np.arange(STEPS) * rng.choice((0, 1, 10**16))


def _labels(file: Any, rng: random.Random) -> None:
    name = rng.choice(("df/axis0", "df/block0_items"))
    n = len(file[name])
    del file[name]
    file[name] = rng.choice((
        np.array([b"a"] * n), np.array([b"\xff\xfe"] * n), np.array([b""] * n), np.arange(n), np.linspace(0, 1, n),
        np.array([b"time"] * n),
        np.array([b"z", b"y", b"x", b"w"][:n]), np.array([f"n{i}".encode() for i in range(n + 1)]),
    ))  # fmt: skip


def _linked(file: Any, rng: random.Random) -> None:
    import h5py

    name = _some(file, rng)
    del file[name]
    file[name] = rng.choice((
        h5py.ExternalLink("/etc/passwd", "/df"), h5py.ExternalLink("gone.h5", "/df"), h5py.SoftLink("/df"),
        h5py.SoftLink("/" + name),
        h5py.SoftLink("/nowhere"), h5py.ExternalLink("x.h5", "/df/axis1"),
    ))  # fmt: skip


def _grouped(file: Any, rng: random.Random) -> None:
    name = _some(file, rng)
    del file[name]
    file.create_group(name)


def _object(file: Any, rng: random.Random) -> None:
    import h5py

    name = _some(file, rng)
    attributes = dict(file[name].attrs)
    del file[name]
    kind = rng.choice(
        (
            h5py.string_dtype(),
            h5py.vlen_dtype(np.float64),
            h5py.ref_dtype,
            h5py.enum_dtype({"a": 1}),
            h5py.opaque_dtype("M8[s]"),
        )
    )
    file.create_dataset(name, (len(NAMES),), dtype=kind).attrs.update(attributes)


def _gone(file: Any, rng: random.Random) -> None:
    del file[rng.choice((_some(file, rng), _some(file, rng), "df"))]


def _again(file: Any, rng: random.Random) -> None:
    file.copy("df", rng.choice(("dg", "df/df", "df/block1_values", "df/block9_values", "a/b/c")))


def _empty(file: Any, rng: random.Random) -> None:
    import h5py

    name = _some(file, rng)
    del file[name]
    file[name] = h5py.Empty("f8")


HDF: tuple[Callable[[Any, random.Random], None], ...] = (
    _retyped, _retyped, _reshaped, _reshaped, _vast, _attribute, _attribute, _stamps, _stamps, _labels, _linked,
    _grouped, _object, _gone,
    _again, _empty,
)  # fmt: skip


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


LEAVES = (
    None, True, False, 0, -1, 1, 2, 10**9, 10**17, -(10**17), 0.5, 1e308, -1e-308, float("inf"), float("nan"), "",
    " ", "x", "1h", "1s", "999999d",
    "0h", "3d", "UTC", "Mars/Olympus", "time", "entity", "_x", "../x.csv", "/etc/passwd", "x.csv", "a" * 3000,
    "\u0000", "é", [], {}, [[]], [1, 2], ["a", "a"],
    {"a": 1}, {"format": "wide"}, "2024-01-01", "2024-01-01T00:00:00Z", "9999-12-31T23:59:59Z",
    "0001-01-01T00:00:00Z", [0.6, 0.1, 0.1, 0.2],
    [10**17, 1, 1, 1], [1, 0, 0, 0], [30, 9, 0, 9],
)  # fmt: skip
KEYS = {
    "seasons": [[24], [10**17], [1], []], "split": [{"ratios": None, "counts": [30, 9, 0, 9]}, {"of": "windows"},
    {"ratios": [1, 0, 0, 0]}],
    "embed": [{"eigenvectors": 1024}, {"eigenvectors": 0, "patch_size": 1}, {"patch_size": 10**17},
    {"periods": 10**6}],
    "country": ["US", "XX", "", "us", "Germany"], "facts": [{"entities": 4}, {"steps": 10**17}],
    "end": ["2024-01-03T00:00:00Z", "1970-01-01T00:00:00Z"],
    "retrain_after": ["1s", "999999d"], "zone": ["America/New_York", "Etc/GMT+12", "localtime", "posixrules"],
    "kind": ["grid", "video", "event", "trajectory"],
    "name": ["x", "../x", "nyc-airports", 7], "sources": [[], [{"kind": "local", "path": "/etc"}],
    [{"kind": "local", "path": "x.csv", "sha256": "0" * 64}]],
    "description": ["a" * 100_000], "benchmark": [{"metrics": ["mae"]}], "licence": [None], "joins": [[]],
    "title": ["\u202e"],
}  # fmt: skip
STEPS_ODD = ("1s", "7m", "90m", "2h", "1d", "7d", "999999d", "1m", "86400s", "999999s")


def yaml(data: bytes, rng: random.Random) -> bytes:
    """A description with odd keys and values, or text that YAML itself has to think about."""
    import yaml as reader

    text = data.decode()
    if rng.random() < 0.25:
        lines = text.splitlines()
        i = rng.randrange(len(lines))
        new = rng.choice((
            "<<: {a: 1}", "a: &a [*a]", "x: !!python/object/apply:os.system [ls]", "? [a]\n: b", "- 1",
            "\tkind: graph", "kind: grid", "%YAML 9.9", "---", "...",
            "a: " + "[" * 60 + "]" * 60, "a: " + "{a: " * 3000, "? " * 500, "1: 2", "null: 1", "~: x", "a: 0x1F",
            "a: 1_0", "a: .inf", "a: 9" + "9" * 5000, "a: |\n  x",
            "a: 'x", "a: \"\\x00\"", "a: @x", "# é", "a: \x07", "channels: []", "tables: {}",
            "task: {look_back: 1" + "0" * 400 + ", horizon: 1}",
        ))  # fmt: skip
        lines[i : i + rng.randrange(2)] = [new]
        return "\n".join(lines).encode()
    found = reader.safe_load(text)
    for _ in range(rng.choice((1, 1, 1, 1, 2))):
        how = rng.choice((0, 0, 0, 1, 1, 2, 2, 3, 4))
        if how == 0:
            key = rng.choice(sorted(KEYS))
            found[key] = rng.choice(KEYS[key])
        elif how == 1 and isinstance(found.get("harmonize"), dict):
            key = rng.choice(("step", "start", "end", "duplicates", "outliers", "scale_per"))
            odd = {
                "step": STEPS_ODD,
                "outliers": ({"threshold": 1e-300}, {"threshold": 1e300}, {"threshold": 5}),
                "scale_per": ("entity",),
            }
            odd |= {"duplicates": ("first", "last", "mean"), "start": LEAVES[-9:-5], "end": LEAVES[-9:-5]}
            found["harmonize"][key] = rng.choice(odd[key])
        elif how == 2 and isinstance(found.get("task"), dict):
            found["task"][rng.choice(("look_back", "horizon"))] = rng.choice(
                (1, 2, 30, 60, 72, 10**6, 10**17, 0, 2**63, 2**64)
            )
        else:
            holder, key = _place(found, rng)
            if how == 3 and isinstance(holder, dict):
                value = holder.pop(key)
                if rng.random() < 0.5:
                    holder[rng.choice((str(key) + "x", str(key).upper(), "", "format", str(key)[:-1]))] = value
            else:
                holder[key] = rng.choice(LEAVES)
    try:
        return reader.safe_dump(found, allow_unicode=True, sort_keys=False).encode()
    except reader.YAMLError:
        return json.dumps(found, default=str).encode()


def _place(root: Any, rng: random.Random) -> tuple[Any, Any]:
    """Where a value stands: its holder and its key."""
    here = root
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return root, rng.choice(list(root))
        key = rng.choice(keys)
        inner = here[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.25:
            return here, key
        here = inner
