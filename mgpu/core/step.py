"""One event being handled: the moment, the state, and the effects so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from mgpu.core import transitions
from mgpu.core.effects import CancelTimer, Effect, SetTimer, StateChanged
from mgpu.core.events import Timer, TimerKind
from mgpu.core.model import ConsumerState
from mgpu.core.state import Consumer, State

EARLY_S = 0.002
"""A timer may fire this much early: event loops count whole milliseconds."""


@dataclass(slots=True)
class Step:
    """What the parts of the scheduler share while they handle one event."""

    at: float
    state: State
    effects: list[Effect] = field(default_factory=list)

    def emit(self, effect: Effect) -> None:
        """Add an effect; effects are run in the order in which they were added."""
        self.effects.append(effect)

    def is_due(self, moment: float) -> bool:
        """Whether a moment that a timer was set for has come."""
        return moment <= self.at + EARLY_S

    def move(self, consumer: Consumer, new: ConsumerState, reason: str) -> None:
        """Change a consumer's state, by legal ways only."""
        old = transitions.move(consumer, new, self.at, reason)
        if new is ConsumerState.RESIDENT:
            consumer.unloaded_by_hand = False
        elif new is ConsumerState.ABSENT:
            consumer.assumed_mib = 0
        self.emit(StateChanged(consumer.name, old, new, reason))

    def set_timer(self, kind: TimerKind, subject: str, delay_s: float, attempt: int = 0) -> None:
        """Ask to be reminded after ``delay_s``."""
        self.emit(SetTimer(Timer(kind, subject, attempt), self.at + delay_s))

    def cancel_timer(self, kind: TimerKind, subject: str, attempt: int = 0) -> None:
        """A reminder is not needed any more."""
        self.emit(CancelTimer(Timer(kind, subject, attempt)))
