"""How long a consumer's jobs, loads and unloads take, and how often it is asked for, so far.

Exponentially weighted: a service that got slower shows within a few jobs, and one odd job is soon
forgotten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

WEIGHT = 0.25
"""Of the newest sample: the last eight make up nine tenths of the average."""


MEMORY_S = 600.0
"""After so long an arrival counts for 1/e: habits of minutes are followed, not of hours."""


@dataclass(slots=True)
class Average:
    """A moving average in seconds; None before the first sample."""

    seconds: float | None = None

    def add(self, sample_s: float) -> None:
        """Take one more sample in."""
        known_s = sample_s if self.seconds is None else self.seconds
        self.seconds = known_s + WEIGHT * (sample_s - known_s)


@dataclass(slots=True)
class Demand:
    """How often a consumer is asked for, each time counting less the longer ago it was.

    Only jobs count that find it with nothing to do: those that come while others run or wait would
    not have cost a load. Divided by ``MEMORY_S`` the count is a rate per second.
    """

    count: float = 0.0
    counted_at: float = 0.0

    def add(self, at: float) -> None:
        """One more job has come."""
        self.count = self.at(at) + 1.0
        self.counted_at = at

    def at(self, moment: float) -> float:
        """What is left of the count at a moment that is not before the last job came."""
        return self.count * math.exp((self.counted_at - moment) / MEMORY_S)


@dataclass(slots=True)
class Averages:
    """What has been measured of one consumer."""

    job: Average = field(default_factory=Average)
    load: Average = field(default_factory=Average)
    loaded_alone: bool = False
    """Whether a load of its has been seen that ran beside no other."""
    unload: Average = field(default_factory=Average)
    demand: Demand = field(default_factory=Demand)
