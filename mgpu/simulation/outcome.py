"""What a simulation came to: when each job ran, what was loaded, and who was where when."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class JobRun:
    """One job that was served; ``number`` is its place in the trace."""

    number: int
    consumer: str
    arrived_s: float
    started_s: float
    ended_s: float

    @property
    def wait_s(self) -> float:
        """From its arrival until it computed."""
        return self.started_s - self.arrived_s


class Activity(StrEnum):
    """What a consumer does with the GPU; absent ones do nothing."""

    LOADING = "loading"
    RESIDENT = "resident"
    COMPUTING = "computing"
    UNLOADING = "unloading"


@dataclass(frozen=True, slots=True)
class Interval:
    """From ``start_s`` to ``end_s`` a consumer did one thing."""

    start_s: float
    end_s: float
    activity: Activity


@dataclass(slots=True)
class Result:
    """One run of one policy over one trace."""

    runs: list[JobRun] = field(default_factory=list)
    refused: int = 0
    """Jobs that were not served: expired, or without a chance to fit."""
    loads: int = 0
    unloads: int = 0
    reload_s: float = 0.0
    """What all loads and unloads took, each for itself and at full speed."""
    ended_s: float = 0.0
    lanes: dict[str, list[Interval]] = field(default_factory=dict)

    @property
    def waits_s(self) -> list[float]:
        """Of every job that was served."""
        return [run.wait_s for run in self.runs]

    @property
    def mean_wait_s(self) -> float:
        """0 when nothing was served."""
        return sum(self.waits_s) / max(1, len(self.runs))

    @property
    def p95_wait_s(self) -> float:
        """19 of 20 jobs waited no longer."""
        return percentile(self.waits_s, 0.95)

    @property
    def longest_wait_s(self) -> float:
        """0 when nothing was served."""
        return max(self.waits_s, default=0.0)


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that this share of all does not exceed (nearest rank); 0 of none."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else 0.0


class Lanes:
    """Writes down who did what when."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[float, Activity]] = {}
        self._closed: dict[str, list[Interval]] = {}

    def enter(self, consumer: str, activity: Activity | None, at_s: float) -> None:
        """A consumer begins to do something else; None: it is absent."""
        lane = self._closed.setdefault(consumer, [])
        before = self._open.pop(consumer, None)
        if before is not None and before[0] < at_s:
            lane.append(Interval(before[0], at_s, before[1]))
        if activity is not None:
            self._open[consumer] = (at_s, activity)

    def close(self, at_s: float) -> dict[str, list[Interval]]:
        """All intervals, those under way cut off at this moment."""
        for consumer in list(self._open):
            self.enter(consumer, None, at_s)
        return self._closed
