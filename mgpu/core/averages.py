"""How long a consumer's jobs, loads and unloads take, and how often it is asked for, so far.

The mean of the first ``LATEST`` samples, from then on exponentially weighted: a service that got
slower shows within some jobs, one odd job is soon forgotten, and the times of jobs, which differ by
half as a rule, leave little noise: with the latest four instead of ten, who is first among equals
was decided by it, and one job in twenty waited for up to 5 % longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

LATEST = 10
"""So many samples make up two thirds of an average."""

MEMORY_S = 600.0
"""After so long an arrival counts for 1/e: habits of minutes are followed, not of hours."""


@dataclass(slots=True)
class Average:
    """A moving average in seconds; None before the first sample."""

    seconds: float | None = None
    samples: int = 0
    """How many were taken in, at most ``LATEST``."""

    def add(self, sample_s: float) -> None:
        """Take one more sample in."""
        known_s = self.seconds or 0.0
        self.samples = min(self.samples + 1, LATEST)
        self.seconds = known_s + (sample_s - known_s) / self.samples


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
