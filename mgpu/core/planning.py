"""The order ``planned``: what to compute and what to load next, by what they are known to take.

Consumers that are there go first, so that nobody is evicted whom the queue still needs. Of those,
the next is the one with the largest ``(age + 1 s) / job_s ** 2``, where the age is that of its
first waiting job: short jobs first (W. E. Smith, "Various optimizers for single-stage production",
1956), as far as the long ones have not waited longer in proportion. The square lets equal times
come out as order of arrival, and keeps errors in the averages from holding anybody up for long; the
second keeps fresh jobs comparable.

Of those to come, the next to load is the one whose waiting jobs are worth it soonest: the smallest
``job_s + load_s / waiting``, Smith's rule for a batch that must be loaded once. With everything
known beforehand this loads each consumer that has jobs and is not there exactly once, and no order
can do with less. Before all others comes who will be overdue by the time its load is over
(``max_overtake_s``), since the GPU would wait for that load.
"""

from __future__ import annotations

from collections.abc import Callable

from mgpu.core.jobs import Job
from mgpu.core.model import ConsumerState, Order
from mgpu.core.state import Consumer, State

UNKNOWN_JOB_S = 1.0
"""Before any job of anybody has been measured, all are taken to be alike."""

MIB_PER_GIB = 1024

UNKNOWN_LOAD_S_PER_GIB = 0.5
"""Before any load has been: reading weights at 2 GiB/s."""

HEAD_START_S = 1.0
"""Added to every age, so that the kind of job decides between jobs that have just come."""

LEAST_JOB_S = 0.001
"""A shorter average is taken for this, as ages are divided by it."""


def load_s(consumer: Consumer) -> float:
    """How long a consumer takes to load: its average, else by its size, in seconds."""
    known_s = consumer.averages.load.seconds
    return (
        consumer.footprint_mib / MIB_PER_GIB * UNKNOWN_LOAD_S_PER_GIB
        if known_s is None
        else known_s
    )


def reload_s(consumer: Consumer) -> float:
    """What an eviction costs: the unload, and the load when it is wanted again, in seconds."""
    return load_s(consumer) + (consumer.averages.unload.seconds or 0.0)


def ranks(state: State, at: float) -> Callable[[Consumer, Job], tuple[float, ...]]:
    """What to sort consumers with waiting jobs by, smallest first."""
    common_s = _common_job_s(state)

    def rank(consumer: Consumer, job: Job) -> tuple[float, ...]:
        own_s = consumer.averages.job.seconds
        each_s = max(LEAST_JOB_S, common_s if own_s is None else own_s)
        if consumer.state is ConsumerState.RESIDENT:
            return (0, -(at - job.arrived_at + HEAD_START_S) / each_s**2)
        if soon_overdue(state, consumer, job, at):
            return (-1, job.arrived_at)
        return (1, each_s + load_s(consumer) / len(consumer.waiting))

    return rank


def soon_overdue(state: State, consumer: Consumer, job: Job, at: float) -> bool:
    """Whether a load must begin now to be over by the time nobody may overtake the job any more."""
    if state.policy.order is not Order.PLANNED or not state.policy.prefetch:
        return False
    # Somebody else's unload comes before its load; its own is as good a guess as any.
    return job.arrived_at + state.policy.max_overtake_s - reload_s(consumer) <= at


def _common_job_s(state: State) -> float:
    """How long a job of somebody of whom none has been seen yet is taken to last."""
    known_s = [s for c in state.consumers.values() if (s := c.averages.job.seconds) is not None]
    return sum(known_s) / len(known_s) if known_s else UNKNOWN_JOB_S
