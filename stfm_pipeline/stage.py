"""What computing a stage yields, before anything is published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import polars as pl

from stfm_pipeline.large import Table, whole
from stfm_pipeline.tables import Check

NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Tail:
    """A table that is as in the version before up to row `first`, and then `frame`."""

    first: int
    frame: pl.DataFrame

    @property
    def rows(self) -> int:
        return self.first + len(self.frame)


@dataclass(frozen=True)
class Result:
    """Tables of a stage with deterministic facts about them and the contract checks they were put through."""

    tables: Mapping[str, Table]
    facts: dict[str, Any]
    checks: list[Check] = field(default_factory=list)

    def frame(self, name: str) -> pl.DataFrame:
        """A table that is held whole."""
        return whole(self.tables[name])

    @property
    def frames(self) -> dict[str, pl.DataFrame]:
        """All tables, held whole."""
        return {name: whole(table) for name, table in self.tables.items()}

    @property
    def passed(self) -> bool:
        return all(c.passed for c in self.checks)


@dataclass(frozen=True)
class Extension:
    """What new rows make of a published stage: tables not named stay as they are; `since` is the first time changed."""

    tables: dict[str, pl.DataFrame | Tail]
    facts: dict[str, Any]
    checks: list[Check]
    since: datetime

    @property
    def passed(self) -> bool:
        return all(c.passed for c in self.checks)
