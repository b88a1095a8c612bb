"""What people have asked for by hand, and what of it outlives the program: a pause, and pins.

A pin by hand is one that differs from the configuration. Once that says the same it is the
configuration's, so whatever is written there and changed later counts; and what a consumer was told
is forgotten with the consumer.
"""

from __future__ import annotations

from mgpu.core.effects import Keep
from mgpu.core.events import (
    Event,
    PauseRequested,
    PinRequested,
    PolicyChanged,
    ResumeRequested,
)
from mgpu.core.model import ByHand
from mgpu.core.state import State
from mgpu.core.step import Step

CHANGES = (PauseRequested, ResumeRequested, PinRequested, PolicyChanged)
"""The events by which it may become another."""


def restore(state: State, kept: ByHand) -> None:
    """Begin with what was asked for when the program last ran."""
    state.paused_at = kept.paused_at
    state.pause_kept = kept.paused_at is not None
    for name, pinned in kept.pins.items():
        state.consumers[name].pinned = pinned
    state.kept = kept


def keep(step: Step, event: Event) -> None:
    """Have it written down when an event has changed it."""
    if isinstance(event, CHANGES) and (now := _now(step.state)) != step.state.kept:
        step.state.kept = now
        step.emit(Keep(now))


def _now(state: State) -> ByHand:
    others = [c for c in state.consumers.values() if c.pinned is not c.policy.pinned]
    return ByHand(state.paused_at, {c.name: c.pinned for c in others if not c.retired})
