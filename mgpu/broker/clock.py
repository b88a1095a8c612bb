"""The clock of the running program."""

from __future__ import annotations

import time


class MonotonicClock:
    """``ports.Clock`` over the operating system's monotonic clock."""

    def now(self) -> float:
        """Seconds since a moment that means nothing."""
        return time.monotonic()
