"""The states of a consumer and the ways between them.

An illegal transition is a bug of the scheduler, not of the world: it raises, and the message tells
the consumer's story.
"""

from __future__ import annotations

from mgpu.core.model import ConsumerState as S
from mgpu.core.state import Consumer

LEGAL: dict[S, frozenset[S]] = {
    # Nobody knows yet: its own word, its first job's room, or a person's unload decides.
    S.UNKNOWN: frozenset({S.ABSENT, S.RESIDENT, S.UNLOADING}),
    # A lazy consumer is resident as soon as there is room for it.
    S.ABSENT: frozenset({S.LOADING, S.RESIDENT}),
    S.LOADING: frozenset({S.RESIDENT, S.ABSENT, S.COOLDOWN}),
    # Absent without an unload: it died, or unloaded by itself.
    S.RESIDENT: frozenset({S.DRAINING, S.UNLOADING, S.ABSENT}),
    S.DRAINING: frozenset({S.UNLOADING}),
    # Resident: it was not asked, since it computes for somebody else.
    S.UNLOADING: frozenset({S.ABSENT, S.QUARANTINED, S.RESIDENT}),
    # Resident: it loaded after all, later than it was given time for.
    S.COOLDOWN: frozenset({S.ABSENT, S.RESIDENT}),
    S.QUARANTINED: frozenset({S.ABSENT, S.UNLOADING}),
}


class IllegalTransitionError(AssertionError):
    """A consumer was to go where no way leads."""


def move(consumer: Consumer, new: S, at: float, reason: str) -> S:
    """Change a consumer's state and return the old one; raise when that is not a legal way."""
    old = consumer.state
    if new not in LEGAL[old]:
        story = "\n  ".join(consumer.history)
        raise IllegalTransitionError(
            f"{consumer.name}: {old} -> {new} ({reason}) at {at:.3f}; before that:\n  {story}"
        )
    consumer.state = new
    consumer.history.append(f"{at:.3f} {old} -> {new}: {reason}")
    return old
