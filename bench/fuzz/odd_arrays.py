"""Arrays that are odd: npy whose header lies, npz whose members do."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zipfile
from typing import Any

import numpy as np

from bench.fuzz.seeds import STEPS, npy, values

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
