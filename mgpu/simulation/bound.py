"""The bound on waiting, looked at with every job that begins in a simulation.

A job that has waited for ``max_overtake_s`` is overdue, and no job that came after it begins before
it where it may compute. The one exception is ``planned``'s: while the overdue job's own consumer is
on its way into memory, others may begin that are expected to be through before it is there. What is
expected changes with every job, so that this second half is held where the histories with faults
are played (``tests/faults/turns.py``), and here only that the consumer is on its way.
"""

from __future__ import annotations

from mgpu.core import placement
from mgpu.core.effects import Grant
from mgpu.core.state import State


class OvertakenError(AssertionError):
    """A job began before an older one that had waited for too long: a bug of the scheduler."""


def check(state: State, grant: Grant, at: float) -> None:
    """Raise ``OvertakenError`` when a job that begins now overtakes one that is overdue."""
    seq = state.jobs[grant.job].seq
    for consumer in state.consumers.values():
        if not consumer.waiting:
            continue
        oldest = next(iter(consumer.waiting))
        overdue = oldest.arrived_at + state.policy.max_overtake_s <= at
        if not overdue or oldest.seq > seq:
            continue
        own = consumer.name == grant.consumer
        meets = own or not placement.where(state, consumer).isdisjoint(grant.gpus)
        if meets and (own or consumer.name not in state.swaps):
            waited_s = at - oldest.arrived_at
            raise OvertakenError(
                f"job {grant.job} of {grant.consumer} overtakes job {oldest.id} of "
                f"{consumer.name}, which has waited for {waited_s:.1f} s"
            )
