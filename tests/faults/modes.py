"""Faults that last for a while, each with its subject: a consumer, a GPU or nothing."""

from __future__ import annotations

import math

from mgpu.simulation.agenda import Agenda
from tests.faults.kinds import Fault


class Modes:
    """What is wrong now. False when nothing is: such a world is cheap to look at."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._until: dict[tuple[Fault, str | int], float] = {}

    def __bool__(self) -> bool:
        return bool(self._until)

    def begin(self, fault: Fault, subject: str | int, seconds: float) -> None:
        """Let a fault last for so long from now on, or for as long as it would anyway."""
        until = max(self.until(fault, subject), self._agenda.now_s + seconds)
        self._until[fault, subject] = until
        self._agenda.at(until, lambda: self._over(fault, subject))

    def last(self, fault: Fault, subject: str | int = "") -> bool:
        """Whether a fault goes on."""
        return self.until(fault, subject) > self._agenda.now_s

    def until(self, fault: Fault, subject: str | int = "") -> float:
        """When a fault is over, or was."""
        return self._until.get((fault, subject), -math.inf)

    def clear(self) -> None:
        """Let nothing be wrong any more."""
        self._until.clear()

    def _over(self, fault: Fault, subject: str | int) -> None:
        if not self.last(fault, subject):
            self._until.pop((fault, subject), None)
