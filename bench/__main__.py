"""Speed and memory, each measured in a process of its own or side by side in one run: `make bench`.

`python -m bench [PART ...] [--quick]` runs the parts named, or all that take a few minutes at most; those in WHEN_NAMED
take up to half an hour each.
"""

from __future__ import annotations

import sys
from importlib import import_module

PARTS = {
    "road": "bench.road",
    "append": "bench.append",
    "field": "bench.field",
    "long": "bench.long_rows",
    "patches": "bench.patches",
    "training": "bench.training",
    "loading": "bench.loading",
    "embeddings": "bench.embeddings",
    "drift": "bench.drift",
    "replay-aa": "bench.replay_aa",
    "serve": "bench.serve",
    "faults": "bench.faults",
    "fuzz": "bench.fuzz",
    "oracle": "bench.oracle",
    "leaks": "bench.leaks",
    "contracts": "bench.contracts",
}

WHEN_NAMED = ("drift", "replay-aa", "serve", "faults", "fuzz", "oracle", "leaks", "contracts")


def main(arguments: list[str]) -> None:
    wanted = [a for a in arguments if not a.startswith("-")] or [p for p in PARTS if p not in WHEN_NAMED]
    options = [a for a in arguments if a.startswith("-")]
    if unknown := [a for a in wanted if a not in PARTS] + [a for a in options if a != "--quick"]:
        sys.exit(f"unknown: {', '.join(unknown)}\nusage: python -m bench [{' | '.join(PARTS)}] [--quick]")
    for name in wanted:
        import_module(PARTS[name]).main(quick=bool(options))


if __name__ == "__main__":
    main(sys.argv[1:])
