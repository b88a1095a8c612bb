"""Unloading what nobody has used for a while.

A consumer is idle while it is resident, not pinned, has neither a running nor a waiting job, and
does not say that it computes for somebody else.
When it has been idle for as long as its last finished job asked for, else for the policy's
``idle_unload_s``, it is asked to unload: 0 is at once, infinity never. It is looked at after
the waiting were served, so a consumer with work is never idle, and whoever comes once it was asked
to leave waits for its next load: nothing is called back.
"""

from __future__ import annotations

import math

from mgpu.core import unloading
from mgpu.core.events import TimerKind
from mgpu.core.model import ConsumerState as S
from mgpu.core.state import Consumer, State
from mgpu.core.step import Step


def limit_s(consumer: Consumer) -> float:
    """How long a consumer may be idle; infinity: for ever."""
    if consumer.idle_wish_s is not None:
        return consumer.idle_wish_s
    configured_s = consumer.policy.idle_unload_s
    return math.inf if configured_s is None else configured_s


def watch(step: Step) -> None:
    """Start and stop the clocks of the idle, and unload those whose time is up."""
    # Most are never unloaded for being idle: they are not asked more.
    limited = [
        c
        for c in step.state.consumers.values()
        if c.policy.idle_unload_s is not None
        or c.idle_wish_s is not None
        or c.idle_until is not None
    ]
    for consumer in limited:
        allowed_s = limit_s(consumer)
        if allowed_s == math.inf or not _idle(step.state, consumer):
            stop_clock(step, consumer)
            continue
        if consumer.idle_until is None:
            consumer.idle_until = step.at + allowed_s
            step.set_timer(TimerKind.IDLE, consumer.name, allowed_s)
        if step.is_due(consumer.idle_until):
            stop_clock(step, consumer)
            unloading.begin(step, consumer, f"idle for {allowed_s:g} s")


def _idle(state: State, consumer: Consumer) -> bool:
    return (
        consumer.state is S.RESIDENT
        and not consumer.running
        and not consumer.busy
        and not consumer.waiting
        and not consumer.pinned
        and not state.draining
        and consumer.can_be_unloaded
    )


def stop_clock(step: Step, consumer: Consumer) -> None:
    """Forget when a consumer is to be unloaded; one that is idle still starts anew."""
    if consumer.idle_until is not None:
        consumer.idle_until = None
        step.cancel_timer(TimerKind.IDLE, consumer.name)
