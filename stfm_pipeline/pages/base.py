"""What every page shares: numbers as text, templates, and an atomic write."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2

DASH = "\N{EN DASH}"


def finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def numbers(values: Sequence[float | None], digits: int = 4) -> list[str]:
    """A column of numbers with the same decimals each: `digits` significant ones in the smallest."""
    sizes = [abs(v) for v in map(finite, values) if v]
    decimals = min(6, max(0, digits - 1 - math.floor(math.log10(min(sizes))))) if sizes else 0
    return [DASH if finite(v) is None else f"{v:,.{decimals}f}" for v in values]


def number(value: float | None, digits: int = 4) -> str:
    return numbers([value], digits)[0]


def percent(value: float | None, sign: bool = False) -> str:
    """To a tenth; without a sign, what is nearly nothing or nearly all is told from 0 % and 100 %."""
    if value is None or not math.isfinite(value):
        return DASH
    if not sign and 0 < value < 0.0005:
        return "<0.1%"
    if not sign and 0.9995 <= value < 1:
        return ">99.9%"
    return f"{value:+.1%}" if sign else f"{value:.1%}"


def count(value: float) -> str:
    return f"{value:,.0f}"


def moment(time: str) -> str:
    """An ISO time to the minute."""
    return time[:16].replace("T", " ")


def source_line(source: dict[str, Any]) -> str:
    """Kind, name and hash of a source in one line."""
    name = source.get("url") or f"{source.get('package', '')} {source.get('version', '')} {source.get('archive', '')}"
    name = Path(source["path"]).name if "path" in source else name
    return f"{source['kind']}: {name.strip()}, sha256 {(source.get('sha256') or DASH)[:16]}"


def linkable(address: str) -> bool:
    """Whether an address may become a link: whatever else it is, it is not a script."""
    return address.startswith(("https://", "http://"))


def templates(folder: Path) -> jinja2.Environment:
    """Templates of `folder` and of the house, escaping all they are given."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "num": number,
        "pct": percent,
        "count": count,
        "moment": moment,
        "words": lambda key: key.replace("_", " "),
    }
    return environment


def write(html: str, path: Path) -> Path:
    """Write atomically; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(html, encoding="utf-8")
    os.replace(scratch, path)
    return path
