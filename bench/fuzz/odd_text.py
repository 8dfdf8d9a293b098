"""Text that is odd: csv whose cells are, YAML whose keys and values are."""

from __future__ import annotations

import json
import random
from typing import Any

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
