"""Serving the waiting: who computes, and for whom room is made, until nobody can be served.

Each round goes through the turns in order (``mgpu.core.ordering``) and serves the first who can be.
A turn that has to wait may hold up those behind it: all of them where its job is overdue or the
order is strict, those of a lower priority where it waits for others to stop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self, assert_never

from mgpu.core import admission, ordering, placement, planning, residency, swapping, vram
from mgpu.core.model import ConsumerPolicy
from mgpu.core.model import ConsumerState as S
from mgpu.core.ordering import Turn
from mgpu.core.state import State
from mgpu.core.step import Step


def serve(step: Step) -> None:
    """Serve the waiting until nobody can be served any more."""
    state = step.state
    while state.waiting and not (state.draining or state.paused):
        if not _serve_next(step):
            break


def _serve_next(step: Step) -> bool:
    """Serve the first who can be; then somebody else may be first. False when nobody can."""
    state = step.state
    claims: dict[int, float] = {}
    until: dict[int, float] = {}
    batches_only: set[int] = set()
    turns = ordering.turns(state, step.at)
    lowest = min(turn.job.priority for turn in turns)
    ahead = state.policy.prefetch
    without_room: list[_Need] = []
    for turn in turns:
        absent = turn.consumer.state is S.ABSENT and turn.consumer.name not in state.swaps
        behind_batches = bool(batches_only) and _in_no_batch(state, turn, batches_only)
        held_up = (
            behind_batches
            or (bool(claims) and _held_up(state, turn, claims))
            or (bool(until) and _too_long(step, turn, until))
        )
        may = not held_up or (ahead and absent)
        # With many consumers to come, trying each would cost more than the loads are worth.
        need = _Need.of(turn) if absent and may else None
        hopeless = need is not None and any(map(need.is_no_easier, without_room))
        if may and not hopeless and _take_turn(step, turn):
            return True
        if need is not None and not hopeless:
            without_room.append(need)
        # Who is held up may load all the same, as long as everybody before it has its room.
        ahead = ahead and not absent
        if (
            turn.barrier
            and (blocked_until := planning.blocked_until(state, turn.consumer, step.at)) > step.at
        ):
            for index in placement.where(state, turn.consumer):
                until[index] = min(blocked_until, until.get(index, math.inf))
            continue
        if turn.barrier and (behind_batches or planning.lets_batches_end(state, turn.consumer)):
            batches_only |= placement.where(state, turn.consumer)
            continue
        if behind_batches:
            continue  # a claim of its own would hold up the batches
        claim = _claim(state, turn)
        if claim > lowest:
            for index in placement.where(state, turn.consumer):
                claims[index] = max(claim, claims.get(index, claim))
    return False


@dataclass(frozen=True, slots=True)
class _Need:
    """What an absent consumer's turn needs, to be compared with another's that found no room."""

    policy: ConsumerPolicy
    footprint_mib: int
    beyond_kept_mib: int
    """Without what it holds already."""
    urgent: bool
    priority: int
    seq: int

    @classmethod
    def of(cls, turn: Turn) -> Self:
        consumer = turn.consumer
        footprint_mib = consumer.footprint_mib
        return cls(
            consumer.policy,
            footprint_mib,
            footprint_mib - vram.kept_mib(consumer),
            turn.urgent,
            turn.job.priority,
            turn.job.seq,
        )

    def is_no_easier(self, other: _Need) -> bool:
        """Whether there is no room for this one either, when there is none for the other.

        That one needs no more, may live on the same GPUs, and may evict whomever this one may: an
        urgent one all that came after it, any other those of a lower priority (``state.Claim``).
        """
        claims_no_more = self.seq >= other.seq if self.urgent else self.priority <= other.priority
        return (
            self.footprint_mib >= other.footprint_mib
            and self.beyond_kept_mib >= other.beyond_kept_mib
            and self.urgent is other.urgent
            and claims_no_more
            and self.policy.gpus == other.policy.gpus
            and not other.policy.can_coexist_with
        )


def _held_up(state: State, turn: Turn, claims: Mapping[int, float]) -> bool:
    """Whether somebody before this turn keeps a GPU from it that it may use."""
    return bool(claims) and any(
        claims.get(index, -math.inf) > turn.job.priority
        for index in placement.where(state, turn.consumer)
    )


def _too_long(step: Step, turn: Turn, until: Mapping[int, float]) -> bool:
    """Whether a job might keep an overdue one waiting that cannot compute before a moment."""
    return any(
        index in until and not planning.is_over_by(turn.consumer, step.at, until[index])
        for index in placement.where(step.state, turn.consumer)
    )


def _in_no_batch(state: State, turn: Turn, batches_only: set[int]) -> bool:
    """Whether a job is none of those that may still go before an overdue one without room."""
    consumer = turn.consumer
    in_batch = consumer.state is S.RESIDENT and consumer.came_for(turn.job)
    return not in_batch and not batches_only.isdisjoint(placement.where(state, consumer))


def _claim(state: State, turn: Turn) -> float:
    """Jobs of a lower priority than this must not use the GPUs that an unserved turn waits for.

    A barrier lets nobody pass. Otherwise only who waits for others to stop has a claim: while it
    loads, or has its hands full, nothing is gained by keeping anybody else waiting.
    """
    consumer = turn.consumer
    if turn.barrier:
        return math.inf
    if consumer.state is S.RESIDENT and len(consumer.running) < consumer.policy.concurrency:
        return turn.job.priority
    if consumer.state is S.ABSENT and consumer.name not in state.swaps:
        return turn.job.priority
    return -math.inf


def _take_turn(step: Step, turn: Turn) -> bool:
    """Take one consumer's turn as far as it goes; False when it has to wait."""
    consumer = turn.consumer
    match consumer.state:
        case S.RESIDENT:
            if not consumer.suits(turn.job):
                return residency.make_way(step, consumer, turn.job)
            if not admission.grantable(step.state, consumer):
                return False
            admission.grant(step, consumer, turn.job)
            return True
        case S.ABSENT:
            return consumer.name not in step.state.swaps and _request(step, turn)
        case S.COOLDOWN | S.QUARANTINED:
            admission.refuse_waiting(step, consumer, admission.cooldown_refusal(step, consumer))
            return True
        case S.UNKNOWN | S.LOADING | S.DRAINING | S.UNLOADING:
            return False
        case _:
            assert_never(consumer.state)


def _request(step: Step, turn: Turn) -> bool:
    """Make room for an absent consumer, if need be where somebody had better wait."""
    claim = ordering.claim(step.state, turn)
    if swapping.request(step, turn.consumer, claim):
        return True
    if not vram.figures_are_fresh(step.state, step.at):
        return False
    over = planning.better_later(step.state, turn.consumer, step.at)
    return bool(over) and swapping.request(step, turn.consumer, replace(claim, over=over))
