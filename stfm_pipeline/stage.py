"""What computing a stage yields, before anything is published."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from stfm_pipeline.tables import Check


@dataclass(frozen=True)
class Result:
    """Tables of a stage with deterministic facts about them and the contract checks they were put through."""

    tables: dict[str, pl.DataFrame]
    facts: dict[str, Any]
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(c.passed for c in self.checks)
