"""What a consumer that waits for room can hope for: on which GPUs, whoever leaves, and from when.

Nobody is chosen here (``mgpu.core.placement``); who may ever be asked to leave for whom is.
"""

from __future__ import annotations

import math
from functools import cache

from mgpu.core import vram
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import Order
from mgpu.core.state import Consumer, State

LEAVING = frozenset({S.DRAINING, S.UNLOADING})
MAY_LEAVE = frozenset({S.UNKNOWN, S.LOADING, S.RESIDENT})


def choices(state: State, consumer: Consumer) -> tuple[tuple[int, ...], ...]:
    """The sets of GPUs a consumer may live on: its own, or any one of all."""
    if consumer.policy.gpus is not None:
        return (consumer.policy.gpus,)
    return _each(tuple(state.gpus))


@cache
def _each(gpus: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return tuple((index,) for index in sorted(gpus))


def where(state: State, consumer: Consumer, at: float) -> frozenset[int]:
    """Every GPU that serving a consumer's next job may touch.

    One that may live on any is not expected on a GPU where there is not room for it whoever leaves,
    so that nobody there waits for nothing; a GPU that cannot be read may have room. Where too many
    are in memory, one has to leave wherever it lives.
    """
    if consumer.state is S.RESIDENT or consumer.name in state.swaps:
        return frozenset(consumer.gpus)
    homes = _homes(state, consumer, at)
    if to_leave(state, consumer):
        victims = [c for c in state.consumers.values() if permitted(consumer, c)]
        return homes.union(*(c.gpus for c in victims if c.state in vram.HOLDING))
    return homes


def room_from(state: State, target: Consumer, gpus: frozenset[int], at: float) -> float:
    """The moment before which nobody may make room for an absent target, where that is known.

    That is so while all who could have come a moment ago (``min_resident_s``). It is the past where
    one of them computes, whose end may come at any time, and under other orders than ``planned``,
    which look at nothing ahead.
    """
    waits = target.state is S.ABSENT and target.name not in state.swaps
    if not waits or not state.policy.min_resident_s or state.policy.order is not Order.PLANNED:
        return -math.inf
    moments = []
    for other in state.consumers.values():
        there = other.state is S.RESIDENT and gpus.intersection(other.gpus)
        if not there or not permitted(target, other):
            continue
        if stays_until(state, other) > at:
            moments.append(stays_until(state, other))
        elif other.running or other.busy:
            return -math.inf
    return min(moments, default=-math.inf)


def permitted(target: Consumer, victim: Consumer) -> bool:
    """Whether a consumer may ever be evicted for a target."""
    policy = victim.policy
    return (
        victim is not target
        and policy.can_unload
        and not policy.vram_managed
        and not victim.pinned
        and not target.policy.coexists_with(victim.name)
    )


def stays_until(state: State, consumer: Consumer) -> float:
    """The moment before which nobody may evict a resident consumer, as it has just come."""
    if consumer.unasked:
        return -math.inf  # it came for nobody
    return consumer.resident_since + state.policy.min_resident_s


def to_leave(state: State, target: Consumer) -> int:
    """How many of those that are there, or are to come, must leave for a target by their number."""
    if not state.policy.max_resident:
        return 0
    there = {c.name for c in state.consumers.values() if c.state in vram.HOLDING}
    return too_many_with(state, target, there | state.swaps.keys())


def too_many_with(state: State, target: Consumer, there: set[str]) -> int:
    """By how many ``max_resident`` is exceeded with a target beside those that are there."""
    if not state.policy.max_resident:
        return 0
    others = sum(not state.consumers[name].policy.vram_managed for name in there - {target.name})
    return max(0, others + 1 - state.policy.max_resident)


def could_fit_later(state: State, target: Consumer, gpus: tuple[int, ...], at: float) -> bool:
    """Whether the target fits once everybody who is busy, loading or leaving has made room.

    By the books, with foreign memory as it is: what a load has taken so far is in the measured
    figure and in its reservation, and must not count twice.
    """
    need_mib = vram.share_mib(target.footprint_mib, gpus) + state.policy.cushion_mib
    others = [c for c in state.consumers.values() if c is not target]
    for index in gpus:
        gpu = state.gpus[index]
        foreign_mib = max(0, vram.foreign_mib(state, gpu) - vram.owed_mib(gpu, at))
        # Its own residual is in the measured figure, which must cover all of its footprint.
        kept_mib = vram.kept_on_mib(target, index)
        kept_mib += sum(
            vram.share_mib(mib, other.gpus)
            for other in others
            if index in other.gpus and (mib := _held_later_mib(state, target, other))
        )
        if need_mib > gpu.total_mib - foreign_mib - kept_mib:
            return False
    too_many = to_leave(state, target)
    return not too_many or sum(_may_make_room(state, target, c) for c in others) >= too_many


def _homes(state: State, consumer: Consumer, at: float) -> frozenset[int]:
    if consumer.policy.gpus is not None:
        return frozenset(consumer.policy.gpus)
    every = frozenset(state.gpus)
    if len(every) == 1:
        return every
    possible = frozenset(
        index
        for index, gpu in state.gpus.items()
        if not gpu.healthy or could_fit_later(state, consumer, (index,), at)
    )
    return possible or every


def _held_later_mib(state: State, target: Consumer, other: Consumer) -> int:
    """What another consumer holds when all who can have made room for a target."""
    if _may_make_room(state, target, other):
        return vram.kept_mib(other)
    return other.footprint_mib if other.name in state.swaps else vram.held_mib(other)


def _may_make_room(state: State, target: Consumer, other: Consumer) -> bool:
    return other.state in LEAVING or (
        (other.state in MAY_LEAVE or other.name in state.swaps) and permitted(target, other)
    )
