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
from dataclasses import dataclass
from typing import assert_never

from mgpu.core import planning
from mgpu.core.jobs import Job
from mgpu.core.model import ConsumerState, Order
from mgpu.core.state import Claim, Consumer, State


@dataclass(frozen=True, slots=True)
class Turn:
    """A consumer's turn. ``barrier``: nobody behind it may use a GPU that it may use."""

    consumer: Consumer
    job: Job
    barrier: bool
    claim: Claim


def turns(state: State, at: float) -> list[Turn]:
    """Every consumer with a waiting job, the one to be served first at the front."""
    strict = state.policy.order is Order.ARRIVAL
    rank = ranks(state, at)
    ranked: list[tuple[tuple[float, ...], Turn]] = []
    for consumer in state.consumers.values():
        if consumer.waiting:
            held_key = None if strict else consumer.held_key
            job, overdue = consumer.waiting.head(at, state.policy.max_overtake_s, held_key)
            key = (0, job.seq) if overdue else (1, -job.priority, *rank(consumer, job), job.seq)
            may = _claim(state, consumer, job, at, overdue=overdue)
            ranked.append((key, Turn(consumer, job, strict or overdue, may)))
    ranked.sort(key=lambda entry: entry[0])
    return [turn for _, turn in ranked]


def claim(state: State, consumer: Consumer, at: float) -> Claim:
    """What the job of a consumer that is next may take; it has one."""
    job, overdue = consumer.waiting.head(at, state.policy.max_overtake_s)
    return _claim(state, consumer, job, at, overdue=overdue)


def _claim(state: State, consumer: Consumer, job: Job, at: float, *, overdue: bool) -> Claim:
    if overdue or planning.soon_overdue(state, consumer, job, at):
        return Claim(math.inf, job.seq, batches=state.policy.order is Order.PLANNED)
    strict = state.policy.order is Order.ARRIVAL
    return Claim(job.priority, job.seq if strict else math.inf)


def ranks(state: State, at: float) -> Callable[[Consumer, Job], tuple[float, ...]]:
    """What the order sorts consumers by, given their first job, within a priority; least first."""
    match state.policy.order:
        case Order.ARRIVAL:
            return lambda _consumer, _job: ()
        case Order.RESIDENT_FIRST:
            return lambda consumer, _job: (consumer.state is not ConsumerState.RESIDENT,)
        case Order.PLANNED:
            return planning.ranks(state, at)
        case _:
            assert_never(state.policy.order)
