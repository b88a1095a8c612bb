"""Who is served next.

A consumer's turn is decided by its first waiting job. ``arrival`` serves strictly in order of
arrival: A B C A runs as A B C A, and whoever cannot be served yet holds up all behind it that share
a GPU with it. ``resident-first`` spares swaps: jobs of resident consumers first, so that
A B C A B C runs as A A B B C C, and nobody waits for somebody who cannot be served. ``planned``
does so too, and weighs who is there and who is to come by what their jobs and loads take
(``mgpu.core.planning``).

In all, a higher priority goes first: as long as it waits for others to stop computing, no job of a
lower one starts where it wants to go. And a job that has waited for ``max_overtake_s`` goes before
everything else and holds up all behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import itemgetter
from typing import NamedTuple, assert_never

from mgpu.core import planning
from mgpu.core.jobs import Job
from mgpu.core.model import ConsumerState, Order
from mgpu.core.state import Claim, Consumer, State


class Turn(NamedTuple):
    """A consumer's turn. ``barrier``: nobody behind it may use a GPU that it may use.

    ``urgent``: its job is overdue, or will be by the time a load is over that it needs.
    """

    consumer: Consumer
    job: Job
    barrier: bool
    urgent: bool


def turns(state: State, at: float) -> list[Turn]:
    """Every consumer with a waiting job, the one to be served first at the front."""
    policy = state.policy
    strict = policy.order is Order.ARRIVAL
    rank = ranks(state, at)
    ranked: list[tuple[tuple[float, ...], Turn]] = []
    for consumer in state.awaited.values():
        held_key = None if strict else consumer.held_key
        job, overdue = consumer.waiting.head(at, policy.max_overtake_s, held_key)
        if overdue:
            ranked.append(((0, job.seq), Turn(consumer, job, barrier=True, urgent=True)))
            continue
        soon, key = rank(consumer, job)
        ranked.append(((1, -job.priority, *key, job.seq), Turn(consumer, job, strict, soon)))
    ranked.sort(key=itemgetter(0))
    return [turn for _, turn in ranked]


def claim(state: State, turn: Turn) -> Claim:
    """What may be taken from consumers with waiting jobs in somebody's turn."""
    if turn.urgent:
        return Claim(math.inf, turn.job.seq, batches=state.policy.order is Order.PLANNED)
    strict = state.policy.order is Order.ARRIVAL
    return Claim(turn.job.priority, turn.job.seq if strict else math.inf)


def claim_now(state: State, consumer: Consumer, at: float) -> Claim:
    """What may be taken for the waiting job of a consumer that is next now; it has one."""
    job, overdue = consumer.waiting.head(at, state.policy.max_overtake_s)
    urgent = overdue or planning.soon_overdue(state, consumer, job, at)
    return claim(state, Turn(consumer, job, barrier=overdue, urgent=urgent))


def ranks(state: State, at: float) -> Callable[[Consumer, Job], tuple[bool, tuple[float, ...]]]:
    """What the order sorts consumers by within a priority, least first.

    Given a consumer and its first job it tells two things: whether the job will be overdue by the
    time a load is over that its consumer needs, and what to sort by.
    """
    match state.policy.order:
        case Order.ARRIVAL:
            return lambda _consumer, _job: (False, ())
        case Order.RESIDENT_FIRST:
            return lambda consumer, _: (False, (consumer.state is not ConsumerState.RESIDENT,))
        case Order.PLANNED:
            return planning.ranks(state, at)
        case _:
            assert_never(state.policy.order)
