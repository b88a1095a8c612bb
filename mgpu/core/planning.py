"""The order ``planned``: what to compute and what to load next, by what they are known to take.

Consumers that are there go first, so that nobody is evicted whom the queue still needs. Of those,
the next is the one with the largest ``(age + 1 s) / job_s ** 2``, where the age is that of its
first waiting job: short jobs first (W. E. Smith, "Various optimizers for single-stage production",
1956), as far as the long ones have not waited longer in proportion. The square lets equal times
come out as order of arrival, and keeps errors in the averages from holding anybody up for long; the
second keeps fresh jobs comparable. While somebody waits for room, this is divided by the number of
jobs that wait for the same consumer: whoever is through first can make room first, while the others
still compute.

Of those to come, the next to load is the one whose waiting jobs are worth it soonest: the smallest
``job_s + load_s / waiting``, Smith's rule for a batch that must be loaded once. With everything
known beforehand this loads each consumer that has jobs and is not there exactly once, and no order
can do with less. Before all others comes who will be overdue by the time its load is over
(``max_overtake_s``), since the GPU would wait for that load. Who leaves for it is the set of those
without waiting jobs whose return is expected to cost least (``mgpu.core.eviction``); only when
those do not suffice, one with waiting jobs gives up its place, if all together wait less then.

A job that is overdue (``max_overtake_s``) goes before all that came later, with two exceptions.
While its own consumer loads, others may compute, as long as they are expected to be through before
it can begin: that takes nothing from it. And before its consumer gets the room of another one, that
one's batch is done: the jobs that waited already when it came into memory. They are a fixed number,
which no newcomer adds to. Without that, as soon as more work waits than can be done in
``max_overtake_s``, all is overdue and is served in order of arrival, one load a job; so little gets
done then that everybody waits for several times as long, those who are protected too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from mgpu.core.jobs import Job
from mgpu.core.model import ConsumerState, Order, Policy
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


def absence_cost(consumer: Consumer, at: float) -> float:
    """What a consumer's absence is expected to cost: how often it is asked for, times a reload.

    In seconds over the time that arrivals are remembered for (``averages.MEMORY_S``).
    """
    return consumer.averages.demand.at(at) * reload_s(consumer)


def better_later(state: State, target: Consumer, at: float) -> frozenset[str]:
    """The resident whose waiting jobs had best be done after those of an absent target, if any.

    It is the one by whose place the jobs of both together gain most: those of the target need not
    wait for it to be through, and its own wait for the detour (it leaves, the target comes, is
    served and leaves, it comes back). It may not compute, nor have a job waiting that is overdue or
    goes before by priority, and a target's job that was there when it began to load has seen that
    it goes first: so no two of them drive each other out over the same jobs.
    """
    if state.policy.order is not Order.PLANNED or not state.policy.prefetch:
        return frozenset()
    common_s = common_job_s(state)
    head, _ = target.waiting.head(at, math.inf)
    there_s = reload_s(target) + _work_s(target, common_s)
    most_s, best = 0.0, frozenset[str]()
    for other in state.awaited.values():
        if other.state is ConsumerState.RESIDENT and not other.running:
            gain_s = len(target.waiting) * _work_s(other, common_s)
            loss_s = len(other.waiting) * (there_s + reload_s(other))
            if gain_s - loss_s > most_s and _may_be_put_off(state, other, head, at):
                most_s, best = gain_s - loss_s, frozenset({other.name})
    return best


def _may_be_put_off(state: State, other: Consumer, job: Job, at: float) -> bool:
    """Whether a resident's waiting jobs may be put off for a job that came later."""
    first, overdue = other.waiting.head(at, state.policy.max_overtake_s)
    times = other.swap_times
    since = first.arrived_at if times is None else times.load_started_at
    return (
        job.arrived_at > since
        and first.priority <= job.priority
        and not overdue
        and not soon_overdue(state, other, first, at)
    )


def _work_s(consumer: Consumer, common_s: float) -> float:
    """How long a consumer's waiting jobs are going to compute."""
    return len(consumer.waiting) * job_s(consumer, common_s)


def ranks(state: State, at: float) -> Callable[[Consumer, Job], tuple[bool, tuple[float, ...]]]:
    """What to sort consumers with waiting jobs by, smallest first (``ordering.ranks``)."""
    policy, common_s = state.policy, 0.0
    wanted = any(
        c.state is ConsumerState.ABSENT and name not in state.swaps
        for name, c in state.awaited.items()
    )

    def rank(consumer: Consumer, job: Job) -> tuple[bool, tuple[float, ...]]:
        nonlocal common_s
        averages, waiting = consumer.averages, len(consumer.waiting)
        if averages.job.seconds is None:
            common_s = common_s or common_job_s(state)
        each_s = job_s(consumer, common_s)
        if consumer.state is ConsumerState.RESIDENT:
            together = waiting if wanted else 1
            return False, (0, compute_rank(at - job.arrived_at, each_s, together))
        loading_s = load_s(consumer)
        if overdue_after(policy, job, loading_s + (averages.unload.seconds or 0.0), at):
            return True, (-1, job.arrived_at)
        return False, (1, load_rank(each_s, loading_s, waiting))

    return rank


def compute_rank(age_s: float, each_s: float, together: int) -> float:
    """Which of those in memory is next; ``together`` is 1 while nobody waits for room."""
    return -(age_s + HEAD_START_S) / (each_s**2 * together)


def load_rank(each_s: float, loading_s: float, waiting: int) -> float:
    """Which of those to come is loaded next."""
    return each_s + loading_s / waiting


def job_s(consumer: Consumer, common_s: float) -> float:
    """How long a consumer's job is expected to compute, in seconds, and more than nothing."""
    own_s = consumer.averages.job.seconds
    return max(LEAST_JOB_S, common_s if own_s is None else own_s)


def soon_overdue(state: State, consumer: Consumer, job: Job, at: float) -> bool:
    """Whether a load must begin now to be over by the time nobody may overtake the job any more."""
    # Somebody else's unload comes before its load; its own is as good a guess as any.
    return overdue_after(state.policy, job, reload_s(consumer), at)


def overdue_after(policy: Policy, job: Job, seconds: float, at: float) -> bool:
    """Whether nobody may overtake a job after so many seconds, where that is looked at ahead."""
    ahead = policy.prefetch and policy.order is Order.PLANNED
    return ahead and job.arrived_at + policy.max_overtake_s - seconds <= at


def blocked_until(state: State, consumer: Consumer, at: float) -> float:
    """The moment before which an absent consumer is not expected to compute, whatever others do.

    That is when its load is through; the past where it has no room yet, or of no load is known how
    long it takes.
    """
    swap = state.swaps.get(consumer.name)
    known_s = consumer.averages.load.seconds
    if swap is None or known_s is None or state.policy.order is not Order.PLANNED:
        return -math.inf
    return (at if swap.load_started_at is None else swap.load_started_at) + known_s


def lets_batches_end(state: State, consumer: Consumer) -> bool:
    """Whether an overdue job of a consumer waits for the batches of those in memory.

    That is while its consumer is not in memory and no room is being made for it.
    """
    there = consumer.state is ConsumerState.RESIDENT or consumer.name in state.swaps
    return state.policy.order is Order.PLANNED and not there


def is_over_by(consumer: Consumer, at: float, until: float) -> bool:
    """Whether a job of a consumer that begins now is expected to be over by a moment."""
    known_s = consumer.averages.job.seconds
    return known_s is not None and at + known_s <= until


def common_job_s(state: State) -> float:
    """How long a job of somebody of whom none has been seen yet is taken to last."""
    known_s = [s for c in state.consumers.values() if (s := c.averages.job.seconds) is not None]
    return sum(known_s) / len(known_s) if known_s else UNKNOWN_JOB_S
