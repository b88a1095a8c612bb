"""Promise 9: when nothing goes on any more, nothing is held, asked for or timed for nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mgpu.core.events import Timer, TimerKind
from mgpu.core.model import ConsumerState as S
from mgpu.core.state import Consumer
from tests.faults.broken import hold

if TYPE_CHECKING:
    from tests.faults.world import World


def unrest(world: World) -> str:
    """What is still going on; empty when all is at rest."""
    state = world.state
    if world.visits:
        return f"jobs without an end: {sorted(world.visits)}"
    if state.swaps or state.jobs:
        return f"swaps {sorted(state.swaps)}, jobs {sorted(state.jobs)}"
    if world.requests:
        return f"requests without an answer: {sorted(world.requests)}"
    for consumer in state.consumers.values():
        tries_on = consumer.state is S.COOLDOWN and consumer.pinned
        if consumer.state not in {S.RESIDENT, S.ABSENT} and not tries_on:
            return f"{consumer.name} is {consumer.state}"
    if any(service.computing for service in world.machine.services.values()):
        return "somebody computes"
    return ""


def check(world: World) -> None:
    """Check what must hold when nothing goes on any more."""
    state = world.state
    hold(not state.waiting, f"{state.waiting} wait")
    hold(not state.sampling_fast and not world.watch.fast, "GPUs are read in a hurry, for nothing")
    for gpu in state.gpus.values():
        hold(not gpu.holders, f"GPU {gpu.index} is held by {sorted(gpu.holders)}")
    allowed = {TimerKind.IDLE, TimerKind.PRELOAD, TimerKind.MIN_RESIDENT}
    pinned = {c.name for c in state.consumers.values() if c.pinned}
    left = [
        timer for timer in world.timers if timer.kind not in allowed and timer.subject not in pinned
    ]
    hold(not left, f"timers for nothing: {left}")
    for consumer in state.consumers.values():
        service = world.machine.services[consumer.name]
        knows = service.spec.tells and service.alive and not consumer.policy.vram_managed
        if knows and service.spec.policy.can_load:
            believed = consumer.state is S.RESIDENT
            hold(believed is service.loaded, f"{consumer.name} is believed {consumer.state}")
        _check_kept(world, consumer)


def _check_kept(world: World, consumer: Consumer) -> None:
    """An idle one leaves in time, unless it is pinned; then it is wanted for ever."""
    if consumer.pinned and consumer.state is S.ABSENT and consumer.policy.can_load:
        timer = Timer(TimerKind.PRELOAD, consumer.name)
        wanted = timer in world.timers or consumer.unloaded_by_hand
        hold(wanted, f"{consumer.name} is pinned, and nobody loads it")
    limit_s = consumer.idle_wish_s
    if limit_s is None:
        limit_s = consumer.policy.idle_unload_s
    if limit_s is None or consumer.state is not S.RESIDENT or consumer.pinned:
        return
    if consumer.policy.can_unload and not consumer.policy.vram_managed:
        timer = Timer(TimerKind.IDLE, consumer.name)
        counted = timer in world.timers or math.isinf(limit_s)
        hold(counted, f"{consumer.name} is idle for ever")
