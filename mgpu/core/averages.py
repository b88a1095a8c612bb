"""How long a consumer's jobs, loads and unloads take, as seen so far.

Exponentially weighted: a service that got slower shows within a few jobs, and one odd job is soon
forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WEIGHT = 0.25
"""Of the newest sample: the last eight make up nine tenths of the average."""


@dataclass(slots=True)
class Average:
    """A moving average in seconds; None before the first sample."""

    seconds: float | None = None

    def add(self, sample_s: float) -> None:
        """Take one more sample in."""
        known_s = sample_s if self.seconds is None else self.seconds
        self.seconds = known_s + WEIGHT * (sample_s - known_s)


@dataclass(slots=True)
class Averages:
    """What has been measured of one consumer."""

    job: Average = field(default_factory=Average)
    load: Average = field(default_factory=Average)
    unload: Average = field(default_factory=Average)
