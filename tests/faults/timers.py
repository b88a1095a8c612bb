"""Promises 6 and 10, of timers: whatever is waited for is over some time; and they are bounded.

Every wait has a timer at its deadline, and is over when that has fired; so has every job that
computes, every cooldown and everybody whose memory is awaited.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpu.core.effects import CancelTimer, Finish, Grant, SetTimer
from mgpu.core.events import JobArrived, Timer, TimerFired, TimerKind
from mgpu.core.model import ConsumerState as S
from mgpu.core.state import Consumer
from tests.faults.broken import hold
from tests.faults.turns import EPSILON_S

if TYPE_CHECKING:
    from tests.faults.world import World


def check_arrival(world: World, event: JobArrived) -> None:
    """Who waits after its arrival is known, and has a deadline."""
    job, waiting = event.job, world.records.waiting
    if job not in waiting:
        return
    came_at, wait_s = waiting[job]
    hold(job in world.state.jobs, f"{job} is lost as it comes")
    at = _due_at(world, Timer(TimerKind.WAIT, job))
    hold(at is not None, f"{job} waits without a deadline")
    assert at is not None
    hold(abs(at - came_at - wait_s) < EPSILON_S, f"{job} waits until {at}")


def check_fired(world: World, event: TimerFired) -> None:
    """A wait is over at its deadline."""
    job = event.timer.subject
    over = event.timer.kind is not TimerKind.WAIT or job not in world.records.waiting
    hold(over, f"{job} waits on after its deadline")


def check_cancel(world: World, cancel: CancelTimer) -> None:
    """A deadline is taken away only with the wait."""
    records, job = world.records, cancel.timer.subject
    if cancel.timer.kind is TimerKind.WAIT and job in records.waiting:
        over = any(isinstance(e, Grant | Finish) and e.job == job for e in records.effects)
        hold(over, f"{job} waits on without a deadline")


def check_grant(world: World, grant: Grant) -> None:
    """A job that computes is told to stop some time."""
    policy = world.machine.services[grant.consumer].spec.policy
    _check_set(world, Timer(TimerKind.RUN, grant.job), policy.job_timeout_s)
    if policy.busy_timeout_s is not None:
        _check_set(world, Timer(TimerKind.BUSY, grant.job), policy.busy_timeout_s)


def check_settled(world: World) -> None:
    """When the effects are under way: nothing is waited for without an end."""
    state = world.state
    moving = bool(state.swaps)
    for consumer in state.consumers.values():
        if consumer.state is S.RESIDENT or consumer.state is S.ABSENT:
            continue
        moving = moving or consumer.state is S.LOADING or consumer.state is S.UNLOADING
        _check_ends(world, consumer)
    hold(world.watch.fast or not moving, "memory moves, and nobody looks")
    bound = 3 * len(state.jobs) + 4 * len(state.consumers)
    hold(len(world.timers) <= bound, f"{len(world.timers)} timers")


def _check_ends(world: World, consumer: Consumer) -> None:
    where = consumer.state
    if where is S.COOLDOWN or where is S.QUARANTINED:
        kind = TimerKind.COOLDOWN if where is S.COOLDOWN else TimerKind.QUARANTINE
        timer = Timer(kind, consumer.name, consumer.attempt)
        hold(timer in world.timers, f"nobody will end {consumer.name}'s {where}")
    if where is S.UNLOADING:
        timer = Timer(TimerKind.SETTLE, consumer.name, consumer.attempt)
        answered = consumer.unload is not None and consumer.unload.answered
        hold(not answered or timer in world.timers, f"{consumer.name} settles for ever")


def _check_set(world: World, timer: Timer, delay_s: float) -> None:
    at = _due_at(world, timer)
    hold(at is not None, f"no {timer}")
    assert at is not None
    hold(abs(at - world.now - delay_s) < EPSILON_S, f"{timer} at {at}")


def _due_at(world: World, timer: Timer) -> float | None:
    """When a timer that the event had set is due."""
    effects = world.records.effects
    return next((e.at for e in effects if isinstance(e, SetTimer) and e.timer == timer), None)
