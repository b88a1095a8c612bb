"""Promise 6, as far as it is about turns: who may be granted while others wait."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mgpu.core.effects import Grant
from mgpu.core.jobs import Job
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import Order
from mgpu.core.state import Consumer
from tests.faults import books
from tests.faults.broken import hold

if TYPE_CHECKING:
    from tests.faults.world import World

EPSILON_S = 0.003
"""Timers may fire 2 ms early."""


def check(world: World, grant: Grant) -> None:
    """Raise when a job is granted before one that must come first."""
    state, now = world.state, world.now
    granted, job_s = state.jobs[grant.job], world.records.job_s[grant.consumer]
    limit = now - state.policy.max_overtake_s
    overdue = granted.arrived_at <= limit + EPSILON_S
    strict = state.policy.order is Order.ARRIVAL
    for consumer in state.consumers.values():
        same = consumer.name == grant.consumer
        if not consumer.waiting:
            continue
        if not same and not _places(world, consumer) & set(grant.gpus):
            continue
        for job in consumer.waiting:
            older = job.seq < granted.seq
            late = older and job.arrived_at < limit - EPSILON_S
            batch = not same and _of_a_batch(world, consumer, job, granted)
            excused = batch or (not same and _over_before_its_turn(world, consumer, job_s))
            late = late and not excused
            hold(not late, f"{granted.id} overtakes {job.id}, which waits for too long")
            before = (-job.priority, job.seq) < (-granted.priority, granted.seq)
            others = same and not strict and job.priority == granted.priority
            waits_for_a_load = others and not consumer.suits(job)
            if before and not overdue and (same or strict) and not waits_for_a_load:
                hold(condition=False, message=f"{granted.id} goes before {job.id}")
            if not (same or overdue or batch) and job.priority > granted.priority:
                free = len(consumer.running) < consumer.policy.concurrency
                resident = consumer.state is S.RESIDENT and free
                hold(not resident, f"{granted.id} takes the turn of {job.id}")


def _over_before_its_turn(world: World, overdue: Consumer, job_s: float | None) -> bool:
    """Whether a job that begins now is expected to end before an overdue one could begin.

    Under ``planned`` it may begin then. The overdue one cannot before its consumer is there, nor
    before anybody may leave for it (``min_resident_s``).
    """
    if world.state.policy.order is not Order.PLANNED or job_s is None:
        return False
    swap, load_s = world.state.swaps.get(overdue.name), overdue.averages.load.seconds
    if swap is None:
        return world.now + job_s <= _room_from(world, overdue) + EPSILON_S
    began_at = world.now if swap.load_started_at is None else swap.load_started_at
    return load_s is not None and world.now + job_s <= began_at + load_s


def _room_from(world: World, overdue: Consumer) -> float:
    """When the first of those who have just come may leave for an overdue job."""
    since, least_s = world.records.resident_since, world.state.policy.min_resident_s
    moments = [
        since.get(other.name, -math.inf) + least_s
        for other in world.state.consumers.values()
        if other.state is S.RESIDENT and _places(world, overdue) & set(other.gpus)
    ]
    return min((at for at in moments if at > world.now), default=-math.inf)


def _of_a_batch(world: World, consumer: Consumer, overtaken: Job, granted: Job) -> bool:
    """Whether a job is of a batch that is done before an overdue one gets the room.

    Under ``planned``, as long as the oldest overdue one is not in memory nor on its way there, jobs
    begin that waited already when their consumer came, and only those. One that wants its consumer
    loaded otherwise is of no batch, whoever is in memory (``state.Consumer.came_for``).
    """
    state = world.state
    limit = world.now - state.policy.max_overtake_s + EPSILON_S
    first = {c.name: next(iter(c.waiting)) for c in state.consumers.values() if c.waiting}
    outside = [
        job
        for name, job in first.items()
        if job.arrived_at <= limit
        and job.seq <= overtaken.seq
        and state.consumers[name].state is not S.RESIDENT
        and name not in state.swaps
    ]
    # Behind an overdue job the others of its consumer wait as well, whatever they want.
    head = first[consumer.name] if first[consumer.name].arrived_at <= limit else overtaken
    there_for_it = consumer.state is S.RESIDENT and consumer.suits(head)
    runs_its_own = there_for_it and head.arrived_at <= consumer.resident_since
    since = state.consumers[granted.consumer].resident_since
    planned = state.policy.order is Order.PLANNED
    return planned and bool(outside) and granted.arrived_at <= since and not runs_its_own


def _places(world: World, consumer: Consumer) -> set[int]:
    """The GPUs that a waiting job may come to, but for those where it finds no room whoever leaves.

    Where there is room nowhere, it is all of them.
    """
    if consumer.state is S.RESIDENT or consumer.name in world.state.swaps:
        return set(consumer.gpus)
    if consumer.policy.gpus:
        return set(consumer.policy.gpus)
    state, readable = world.state, world.records.readable
    every = set(world.machine.memory.total_mib)
    return {
        gpu
        for gpu in every
        if not readable.get(gpu, False) or books.room_at_last(state, consumer, gpu)
    } or every
