"""Keeping the pinned ones in memory: loaded at the start, and again after a loss.

A pinned consumer that is absent gets a job of the broker's own that only loads it; it waits, makes
room and fails like anybody else's. After each try the next one is held off for 1 s, doubling up to
5 minutes, and a consumer that has stayed for a minute starts anew. One that a person has unloaded
is left out until something loads it; one that loads by its own first job cannot be preloaded.
"""

from __future__ import annotations

from mgpu.core import admission, unloading
from mgpu.core.events import JobArrived, JobKind, TimerKind
from mgpu.core.model import ConsumerState as S
from mgpu.core.state import Consumer, State
from mgpu.core.step import Step

STEADY_S = 60.0
"""A consumer that is lost sooner than this after its load may be lost again at once."""

JOB_PREFIX = "preload-"
"""What the names of the broker's own jobs begin with; no client's job has such a name."""


def watch(step: Step) -> None:
    """Ask for every pinned consumer that is absent and not asked for yet."""
    for consumer in [c for c in step.state.consumers.values() if c.pinned]:
        if consumer.state is S.RESIDENT:
            if step.at - consumer.resident_since >= STEADY_S:
                consumer.preload_tries = 0
        elif _wanted(step, consumer):
            _try(step, consumer)


def pin(step: Step, consumer: Consumer, *, pinned: bool) -> None:
    """A person pins a consumer, which also wants it loaded, or lets go of it."""
    consumer.pinned = pinned
    consumer.unloaded_by_hand = False
    consumer.preload_tries = 0
    consumer.preload_after = step.at
    step.cancel_timer(TimerKind.PRELOAD, consumer.name)
    if not pinned and (job := _asked(step.state, consumer)) is not None:
        admission.leave(step, step.state.jobs[job])


def _wanted(step: Step, consumer: Consumer) -> bool:
    state = step.state
    return (
        consumer.state is S.ABSENT
        and consumer.policy.can_load
        and not consumer.unloaded_by_hand
        and not state.draining
        and not state.paused
        and step.is_due(consumer.preload_after)
        and _asked(state, consumer) is None
    )


def _asked(state: State, consumer: Consumer) -> str | None:
    """The broker's own job that waits for a consumer, if there is one."""
    job = consumer.preload_job
    return job if job in state.jobs else None


def _try(step: Step, consumer: Consumer) -> None:
    consumer.preload_tries += 1
    pause_s = unloading.backoff_s(consumer.preload_tries)
    consumer.preload_after = step.at + pause_s
    step.set_timer(TimerKind.PRELOAD, consumer.name, pause_s)
    consumer.preload_job = f"{JOB_PREFIX}{consumer.name}-{step.state.next_seq}"
    admission.arrive(
        step, JobArrived(step.at, consumer.preload_job, consumer.name, kind=JobKind.LOAD)
    )
