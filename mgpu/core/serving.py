"""Serving the waiting: who computes, and for whom room is made, until nobody can be served.

Each round goes through the turns in order (``mgpu.core.ordering``) and serves the first who can be.
A turn that has to wait may hold up those behind it: all of them where its job is overdue or the
order is strict, those of a lower priority where it waits for others to stop.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple, Self, assert_never

from mgpu.core import admission, ordering, planning, prospects, residency, swapping, vram
from mgpu.core.model import ConsumerState as S
from mgpu.core.ordering import Turn
from mgpu.core.state import State
from mgpu.core.step import Step


def serve(step: Step) -> None:
    """Serve the waiting until nobody can be served any more."""
    state = step.state
    while state.waiting and not (state.draining or state.paused):
        if not _Round(step).serve_one():
            break


class _Need(NamedTuple):
    """What an absent consumer's turn needs, to be compared with another's that found no room."""

    turn: Turn
    footprint_mib: int
    beyond_kept_mib: int
    """Without what it holds already."""

    @classmethod
    def of(cls, turn: Turn) -> Self:
        footprint_mib = turn.consumer.footprint_mib
        return cls(turn, footprint_mib, footprint_mib - vram.kept_mib(turn.consumer))

    def is_no_easier(self, other: _Need) -> bool:
        """Whether there is no room for this one either, when there is none for the other.

        That one needs no more, may live on the same GPUs, and may evict whomever this one may: an
        urgent one all that came after it, any other those of a lower priority (``state.Claim``).
        """
        mine, others = self.turn, other.turn
        later, lower = mine.job.seq >= others.job.seq, mine.job.priority <= others.job.priority
        policy = others.consumer.policy
        return (
            self.footprint_mib >= other.footprint_mib
            and self.beyond_kept_mib >= other.beyond_kept_mib
            and mine.urgent is others.urgent
            and (later if mine.urgent else lower)
            and mine.consumer.policy.gpus == policy.gpus
            and not policy.can_coexist_with
        )


class _Round:
    """The turns one after the other, until one is served; then somebody else may be first.

    Each turn that has to wait may keep GPUs from those behind it.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._state = step.state
        self._turns = ordering.turns(step.state, step.at)
        self._lowest = min([turn.job.priority for turn in self._turns])
        self._ahead = step.state.policy.prefetch
        """Everybody before who needs room has it: who is held up may load all the same."""
        self._claims: dict[int, float] = {}
        """Per GPU: jobs of a lower priority than this may not use it."""
        self._until: dict[int, float] = {}
        """Per GPU: a job must be over by then."""
        self._batches_only: set[int] = set()
        """GPUs that only jobs of batches may use (``planning.lets_batches_end``)."""
        self._room_from: dict[int, float] = {}
        """Per GPU: who keeps it from others finds no room before then (``prospects.room_from``)."""
        self._without_room: list[_Need] = []

    def serve_one(self) -> bool:
        """Serve the first who can be; False when nobody can."""
        for turn in self._turns:
            gpus = prospects.where(self._state, turn.consumer, self._step.at)
            behind_batches = bool(self._batches_only) and self._in_no_batch(turn, gpus)
            held_up = behind_batches or self._held_up(turn, gpus)
            if turn.consumer.state is S.ABSENT and turn.consumer.name not in self._state.swaps:
                if (self._ahead or not held_up) and self._make_room(turn):
                    return True
                self._ahead = False
            elif not held_up and _take_turn(self._step, turn):
                return True
            if turn.barrier or turn.job.priority > self._lowest:
                self._keep_back(turn, gpus, behind_batches=behind_batches)
            if self._claims and not self._ahead and self._all_kept():
                return False
        return False

    def _make_room(self, turn: Turn) -> bool:
        """Begin to make room for an absent consumer; False when it has to wait.

        With many to come, trying each would cost more than the loads are worth.
        """
        need = _Need.of(turn)
        for other in self._without_room:
            if need.is_no_easier(other):
                return False
        if _request(self._step, turn):
            return True
        self._without_room.append(need)
        return False

    def _in_no_batch(self, turn: Turn, gpus: frozenset[int]) -> bool:
        """Whether a job is none of those that may still go before an overdue one without room."""
        if all(self._may_pass(turn, index) for index in self._batches_only & gpus):
            return False
        return turn.consumer.state is not S.RESIDENT or not turn.consumer.came_for(turn.job)

    def _held_up(self, turn: Turn, gpus: frozenset[int]) -> bool:
        """Whether somebody before this turn keeps a GPU from it that it may use.

        One that is expected to be over by the time an overdue one can begin takes nothing from it.
        """
        for index in gpus:
            claimed = index in self._claims and self._claims[index] > turn.job.priority
            if claimed and not self._may_pass(turn, index):
                return True
            if index in self._until and not planning.is_over_by(
                turn.consumer, self._step.at, self._until[index]
            ):
                return True
        return False

    def _may_pass(self, turn: Turn, index: int) -> bool:
        """Whether a job is over before those who keep a GPU from it can find room."""
        room_from = self._room_from.get(index, -math.inf)
        return planning.is_over_by(turn.consumer, self._step.at, room_from)

    def _keep_back(self, turn: Turn, gpus: frozenset[int], *, behind_batches: bool) -> None:
        """Note what a turn that has to wait keeps from those behind it."""
        if turn.barrier:
            until = planning.blocked_until(self._state, turn.consumer, self._step.at)
            if until > self._step.at:
                for index in gpus:
                    self._until[index] = min(until, self._until.get(index, math.inf))
                return
        room_from = prospects.room_from(self._state, turn.consumer, gpus, self._step.at)
        for index in gpus:
            self._room_from[index] = min(room_from, self._room_from.get(index, math.inf))
        batches = behind_batches or planning.lets_batches_end(self._state, turn.consumer)
        if turn.barrier and batches:
            self._batches_only |= gpus
            return
        if behind_batches:
            return  # a claim of its own would hold up the batches
        claim = _claim(self._state, turn)
        if claim > self._lowest:
            for index in gpus:
                self._claims[index] = max(claim, self._claims.get(index, claim))

    def _all_kept(self) -> bool:
        """Whether every GPU is kept from everybody behind, so that none of them can be served."""
        gpus, claims = self._state.gpus, self._claims
        if not gpus or not claims.keys() >= gpus.keys():
            return False
        return min(claims.values()) == math.inf and max(self._room_from.values()) == -math.inf


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
    """Take the turn of a consumer that needs no room as far as it goes; False: it has to wait."""
    consumer = turn.consumer
    match consumer.state:
        case S.RESIDENT:
            if not consumer.suits(turn.job):
                return residency.make_way(step, consumer, turn.job)
            if not admission.grantable(step.state, consumer):
                return False
            admission.grant(step, consumer, turn.job)
            return True
        case S.COOLDOWN | S.QUARANTINED:
            admission.refuse_waiting(step, consumer, admission.cooldown_refusal(step, consumer))
            return True
        case S.UNKNOWN | S.ABSENT | S.LOADING | S.DRAINING | S.UNLOADING:
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
