"""Damage of bytes that knows nothing of formats: bits, ends, chunks, lengths, headers."""

from __future__ import annotations

import random

ODD_NUMBERS = (
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    256,
    32767,
    65535,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**48,
    2**63 - 1,
    2**64 - 1,
)


def flip_bits(data: bytearray, rng: random.Random, other: bytes) -> None:
    for _ in range(rng.choice((1, 1, 2, 4, 16, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncate(data: bytearray, rng: random.Random, other: bytes) -> None:
    del data[rng.randrange(len(data)) :]


def splice(data: bytearray, rng: random.Random, other: bytes) -> None:
    """A stretch of another file of the kind over some of this one."""
    start, length = _stretch(len(other), rng)
    at = rng.randrange(len(data))
    data[at : at + length] = other[start : start + length]


def repeat(data: bytearray, rng: random.Random, other: bytes) -> None:
    start, length = _stretch(len(data), rng)
    at = rng.choice((start, start + length, rng.randrange(len(data))))
    data[at:at] = data[start : start + length] * rng.choice((1, 1, 3, 50))


def remove(data: bytearray, rng: random.Random, other: bytes) -> None:
    start, length = _stretch(len(data), rng)
    del data[start : start + length]


def swap(data: bytearray, rng: random.Random, other: bytes) -> None:
    """Two stretches change places."""
    (a, length), (b, _) = _stretch(len(data), rng), _stretch(len(data), rng)
    one, two = data[a : a + length], data[b : b + length]
    data[a : a + length], data[b : b + length] = two, one


def odd_number(data: bytearray, rng: random.Random, other: bytes) -> None:
    """A length, an offset or a type somewhere becomes another one."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        size = rng.choice((1, 2, 4, 8))
        at = rng.randrange(max(1, len(data) - size))
        new = rng.choice(
            (*ODD_NUMBERS, len(data), int.from_bytes(data[at : at + size], "little") + rng.choice((-1, 1)))
        )
        data[at : at + size] = (new % 256**size).to_bytes(size, rng.choice(("little", "big")))


def header(data: bytearray, rng: random.Random, other: bytes) -> None:
    """The same near the start or the end, where containers say what they hold."""
    length = min(len(data), rng.choice((16, 64, 256, 1024)))
    start = rng.choice((0, 0, len(data) - length))
    part = data[start : start + length]
    rng.choice((flip_bits, odd_number, odd_number))(part, rng, other)
    data[start : start + length] = part


def zeros(data: bytearray, rng: random.Random, other: bytes) -> None:
    start, length = _stretch(len(data), rng)
    data[start : start + length] = bytes([rng.choice((0, 0, 255, 32))]) * length


KINDS = (flip_bits, flip_bits, truncate, splice, repeat, remove, swap, odd_number, odd_number, header, header, zeros)


def _stretch(size: int, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(size)
    return start, min(size - start, rng.choice((1, 4, 16, 64, 512, size)))


def damaged(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """`data` after one to three kinds of damage; `other` is another file of the kind."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if out:
            rng.choice(KINDS)(out, rng, other or data)
    return bytes(out)
