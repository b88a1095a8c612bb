"""Promise 6, as far as it is about turns: who may be granted while others wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpu.core.effects import Grant
from mgpu.core.jobs import Job
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import Order
from mgpu.core.state import Consumer
from tests.faults.broken import hold

if TYPE_CHECKING:
    from tests.faults.world import World

EPSILON_S = 0.003
"""Timers may fire 2 ms early."""


def check(world: World, grant: Grant, granted: Job) -> None:
    """Raise when a job is granted before one that must come first."""
    state, now = world.state, world.now
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
            late = late and (same or not _loads_meanwhile(world, consumer))
            hold(not late, f"{granted.id} overtakes {job.id}, which waits for too long")
            before = (-job.priority, job.seq) < (-granted.priority, granted.seq)
            if before and not overdue and (same or strict):
                hold(condition=False, message=f"{granted.id} goes before {job.id}")
            if not same and not overdue and job.priority > granted.priority:
                free = len(consumer.running) < consumer.policy.concurrency
                resident = consumer.state is S.RESIDENT and free
                hold(not resident, f"{granted.id} takes the turn of {job.id}")


def _loads_meanwhile(world: World, overdue: Consumer) -> bool:
    """Whether ``planned`` may let others compute that are through before this one's load is."""
    known = overdue.averages.load.seconds is not None
    return known and world.state.policy.order is Order.PLANNED and overdue.name in world.state.swaps


def _places(world: World, consumer: Consumer) -> set[int]:
    if consumer.state is S.RESIDENT or consumer.name in world.state.swaps:
        return set(consumer.gpus)
    return set(consumer.policy.gpus or world.machine.total_mib)
