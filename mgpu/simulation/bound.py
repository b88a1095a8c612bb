"""The bound on waiting, looked at with every job that begins in a simulation.

A job that has waited for ``max_overtake_s`` is overdue, and no job that came after it begins before
it where it may compute. The exceptions are ``planned``'s. While the overdue job's own consumer is
on its way into memory, others may begin that are expected to be through before it is there; what is
expected changes with every job, so that this half is held where the histories with faults are
played (``tests/faults/turns.py``), and here only that the consumer is on its way. Until it is, jobs
of those in memory may begin that waited already when their consumer came, also before overdue ones
that came later than the one without room; and so may any, expected to be through by then, while
``min_resident_s`` keeps all in memory who could make room.
"""

from __future__ import annotations

from mgpu.core import prospects
from mgpu.core.effects import Grant
from mgpu.core.jobs import Job
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import Order
from mgpu.core.state import Consumer, State


class OvertakenError(AssertionError):
    """A job began before an older one that had waited for too long: a bug of the scheduler."""


def check(state: State, grant: Grant, at: float) -> None:
    """Raise ``OvertakenError`` when a job that begins now overtakes one that is overdue."""
    granted = state.jobs[grant.job]
    of_a_batch = state.consumers[grant.consumer].came_for(granted)
    behind_batches = False
    for consumer, oldest in _overdue(state, at):
        own = consumer.name == grant.consumer
        gpus = prospects.where(state, consumer, at)
        meets = own or not gpus.isdisjoint(grant.gpus)
        if not meets or oldest.seq > granted.seq:
            continue
        coming = consumer.name in state.swaps
        planned = state.policy.order is Order.PLANNED
        behind_batches |= planned and not coming and consumer.state is not S.RESIDENT
        excused = (
            (planned and coming)
            or prospects.room_from(state, consumer, gpus, at) > at
            or (behind_batches and of_a_batch and not _runs_its_batch(consumer, oldest))
        )
        if own or not excused:
            waited_s = at - oldest.arrived_at
            raise OvertakenError(
                f"job {grant.job} of {grant.consumer} overtakes job {oldest.id} of "
                f"{consumer.name}, which has waited for {waited_s:.1f} s"
            )


def _overdue(state: State, at: float) -> list[tuple[Consumer, Job]]:
    """Consumers whose oldest job is overdue, with it; the oldest first."""
    oldest = [(c, next(iter(c.waiting))) for c in state.consumers.values() if c.waiting]
    limit = at - state.policy.max_overtake_s
    found = [(consumer, job) for consumer, job in oldest if job.arrived_at <= limit]
    return sorted(found, key=lambda entry: entry[1].seq)


def _runs_its_batch(consumer: Consumer, oldest: Job) -> bool:
    return consumer.state is S.RESIDENT and consumer.came_for(oldest)
