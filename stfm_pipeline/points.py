"""The moments at which something becomes visible to others, named so that tests can crash there."""

from __future__ import annotations

from collections.abc import Callable

# A landed file taken, or set aside; a table's commit; the row that makes tables the current stage; a model with its
# lineage in MLflow; its registered version; the alias that serves it.
POINTS = ("landed", "aside", "table", "stage", "artifact", "register", "alias")
hooks: list[Callable[[str], None]] = []


def reached(point: str) -> None:
    """Called right after each of `POINTS`; does nothing unless a test has put a hook in."""
    for hook in hooks:
        hook(point)
