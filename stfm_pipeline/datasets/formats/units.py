"""Whether two units say the same: spellings of one unit, never conversions."""

from __future__ import annotations

import re

SPELLINGS = {
    "K": ("kelvin", "kelvins", "degk", "deg_k", "degreek", "degrees_k", "degree_kelvin", "degrees_kelvin"),
    "degC": ("celsius", "degc", "deg_c", "°c", "degreec", "degree_c", "degrees_c", "degree_celsius", "degrees_celsius"),
    "m": ("meter", "meters", "metre", "metres"),
    "km": ("kilometer", "kilometers", "kilometre", "kilometres"),
    "mm": ("millimeter", "millimeters", "millimetre", "millimetres"),
    "s": ("sec", "second", "seconds"),
    "min": ("minute", "minutes"),
    "h": ("hr", "hour", "hours"),
    "day": ("d", "days"),
    "kg": ("kilogram", "kilograms"),
    "g": ("gram", "grams"),
    "Pa": ("pascal", "pascals"),
    "hPa": ("hectopascal", "hectopascals", "mb", "mbar", "millibar", "millibars"),
    "J": ("joule", "joules"),
    "W": ("watt", "watts"),
    "%": ("percent",),
}
# `m` and `M` differ, `Meter` and `meter` do not: only words are looked up without regard to case.
_KNOWN = {spelling: unit for unit, words in SPELLINGS.items() for spelling in words}
_POWER = re.compile(r"(.*?[^\d+*^-])?(?:\*\*|\^)?([+-]?\d+)?$")


def same_unit(one: str, other: str) -> bool:
    """Whether two units are one: `m s-1`, `m/s`, `m s**-1` and `meter second-1` are, K and degC are not."""
    return one.strip() == other.strip() or _factors(one) == _factors(other)


def _factors(unit: str) -> dict[str, int]:
    """Powers of the units in a product, such as {m: 1, s: -1}; none at all for a mere number."""
    found: dict[str, int] = {}
    sign = 1
    text = unit.strip().replace("**", "^").replace("·", " ").replace("*", " ").replace(" per ", " / ")
    for word in re.findall(r"/|[^\s/.]+", text):
        if word == "/":
            sign = -1
            continue
        match = _POWER.match(word)
        name, power = (match[1], int(match[2] or 1)) if match and match[1] else (word, 1)
        name = _KNOWN.get(name.lower(), name)
        if name not in ("1", "-", "unitless", "dimensionless"):
            found[name] = found.get(name, 0) + sign * power
        sign = 1
    return {name: power for name, power in found.items() if power}
