"""Errors a user can act on: what was expected, what was found, the first offenders, the fix."""

from __future__ import annotations

from collections.abc import Iterable

MAX_OFFENDERS = 5


class StfmError(Exception):
    """A failure with its cure. `offenders` are cut to five; the message says how many there were."""

    def __init__(
        self,
        problem: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        offenders: Iterable[object] = (),
        fix: str | None = None,
    ) -> None:
        self.problem, self.expected, self.found, self.fix = problem, expected, found, fix
        listed = [str(o) for o in offenders]
        self.offenders = listed[:MAX_OFFENDERS]
        lines = [problem]
        if expected:
            lines.append(f"  expected: {expected}")
        if found:
            lines.append(f"  found: {found}")
        if listed:
            more = f" (first {MAX_OFFENDERS} of {len(listed)})" if len(listed) > MAX_OFFENDERS else ""
            lines.append(f"  offenders: {', '.join(self.offenders)}{more}")
        if fix:
            lines.append(f"  fix: {fix}")
        super().__init__("\n".join(lines))


class UsageError(StfmError):
    """The request itself is wrong (unknown name, unfit combination, bad option): exit code 2."""


class SourceError(StfmError):
    """A source could not be fetched, or is not what its spec says it is."""


class ContractError(StfmError):
    """A table breaks its contract; nothing of it was published."""


class FrameError(StfmError):
    """A frame handed to `predict` cannot be used."""


class MetricError(StfmError):
    """A score cannot be computed honestly (NaN forecast, empty mask)."""
