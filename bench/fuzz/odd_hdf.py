"""HDF5 in which a part is of another kind, size, type or place: frames of pandas, and NetCDF-4."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.fuzz.odd_arrays import KINDS, SHAPES
from bench.fuzz.seeds import NAMES, STEPS, hdf, pandas_frame, two_blocks


def h5(data: bytes, rng: random.Random) -> bytes:
    """A file in which a part is of another kind, size, type or place."""
    import h5py

    with h5py.File(io.BytesIO(data), "r") as known:
        if "df" not in known:
            return changed(data, rng)
    base = rng.choice((pandas_frame, two_blocks))
    changes = [rng.choice(HDF) for _ in range(rng.choice((1, 1, 2, 3)))]

    def write(file: Any) -> None:
        base(file)
        for change in changes:
            try:
                change(file, rng)
            except (LookupError, ValueError, TypeError, OSError, RuntimeError, AttributeError, MemoryError):
                continue

    return hdf(write, **rng.choice(({}, {}, {"libver": "latest"}, {"userblock_size": 512})))


def changed(data: bytes, rng: random.Random) -> bytes:
    """A file of other making with the same kinds of change."""
    import h5py

    out = io.BytesIO(data)
    with h5py.File(out, "r+") as file:
        for change in (rng.choice(ANY) for _ in range(rng.choice((1, 1, 2)))):
            try:
                change(file, rng)
            except (LookupError, ValueError, TypeError, OSError, RuntimeError, AttributeError, MemoryError):
                continue
    return out.getvalue()


def _some(file: Any, rng: random.Random) -> str:
    return "df/" + rng.choice(sorted(file["df"])) if "df" in file else rng.choice(sorted(file))


def _retyped(file: Any, rng: random.Random) -> None:
    name = _some(file, rng)
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
    del file[rng.choice((_some(file, rng), _some(file, rng), "df" if "df" in file else _some(file, rng)))]


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
ANY = (_retyped, _reshaped, _vast, _linked, _grouped, _object, _gone, _empty)
