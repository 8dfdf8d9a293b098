"""How much memory this process has taken."""

from __future__ import annotations

import resource
import sys


def peak_mb() -> float:
    """The most memory that was resident at once so far, in MB."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1024 if sys.platform != "darwin" else 1024 * 1024)
