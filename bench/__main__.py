"""Speed and memory, each measured in a process of its own or side by side in one run: `make bench`.

`python -m bench [road] [append] [drift] [long] [patches] [training] [loading] [serve] [replay-aa] [faults] [--quick]`;
all of them by default.
"""

from __future__ import annotations

import sys
from importlib import import_module

PARTS = {
    "road": "bench.road",
    "append": "bench.append",
    "drift": "bench.drift",
    "long": "bench.long_rows",
    "patches": "bench.patches",
    "training": "bench.training",
    "loading": "bench.loading",
    "replay-aa": "bench.replay_aa",
    "serve": "bench.serve",
    "faults": "bench.faults",
}


def main(arguments: list[str]) -> None:
    wanted = [a for a in arguments if not a.startswith("-")] or list(PARTS)
    options = [a for a in arguments if a.startswith("-")]
    if unknown := [a for a in wanted if a not in PARTS] + [a for a in options if a != "--quick"]:
        sys.exit(f"unknown: {', '.join(unknown)}\nusage: python -m bench [{' | '.join(PARTS)}] [--quick]")
    for name in wanted:
        import_module(PARTS[name]).main(quick=bool(options))


if __name__ == "__main__":
    main(sys.argv[1:])
