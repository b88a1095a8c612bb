"""The scheduler's state as others may see it: frozen, taken between two events, safe to keep."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mgpu.core import estimates, measuring, positions, vram
from mgpu.core.jobs import Job
from mgpu.core.model import ConsumerState, GpuProcess
from mgpu.core.state import Consumer, Gpu, State

FootprintSource = Literal["configured", "measured", "unknown"]


@dataclass(frozen=True, slots=True)
class GpuView:
    """One GPU.

    ``foreign_mib`` is what processes of no consumer hold; ``reserved_mib`` is kept for loads.
    """

    index: int
    uuid: str
    name: str
    healthy: bool
    error: str | None
    total_mib: int
    free_mib: int
    reserved_mib: int
    foreign_mib: int
    lock_consumer: str | None
    lock_jobs: tuple[str, ...]
    foreign: tuple[GpuProcess, ...] = ()
    """The processes of no consumer that hold its memory, the largest first."""


@dataclass(frozen=True, slots=True)
class ConsumerView:
    """One consumer; ``last_used_s`` is the age of its last finished job, None before the first.

    ``busy``: it says that it computes for somebody who did not come through the broker.
    """

    name: str
    state: ConsumerState
    healthy: bool
    footprint_mib: int
    measured_mib: int | None
    gpus: tuple[int, ...]
    running: int
    queued: int
    last_used_s: float | None
    pinned: bool
    footprint_source: FootprintSource = "configured"
    """Where ``footprint_mib`` is from; ``unknown``: it is to be measured, and never was."""
    held_mib: int | None = None
    """What its processes hold now; None: not known."""
    busy: bool = False


@dataclass(frozen=True, slots=True)
class WaiterView:
    """One waiting job; positions start at 1.

    ``eta_s``: seconds until it can expect to begin; None before enough has been measured.
    """

    job: str
    consumer: str
    position: int
    waited_s: float
    eta_s: float | None = None


@dataclass(frozen=True, slots=True)
class JobView:
    """One job that has not ended: it runs (``ran_s``), or waits (``position``, from 1).

    ``position`` and ``eta_s`` are None as well where the queue is too long to show.
    """

    job: str
    consumer: str
    priority: int
    waited_s: float
    position: int | None = None
    eta_s: float | None = None
    ran_s: float | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment; consumers by name, in the order of the configuration."""

    gpus: tuple[GpuView, ...]
    consumers: Mapping[str, ConsumerView]
    queue: tuple[WaiterView, ...]
    queued: int
    draining: bool
    evictions: int
    loads: int
    paused: bool = False
    paused_s: float | None = None
    """For how long it has been paused; None: it is not."""
    pause_kept: bool = False
    """It was paused before the program started."""
    warnings: tuple[str, ...] = ()
    """What is wrong with the configuration, as far as it was measured."""


WAITERS_SHOWN = 1000
"""A longer queue is cut here: whoever looks at it wants its front."""


def take(state: State, at: float) -> Snapshot:
    """Take a picture of the state at a moment; the queue in the order in which it will be served.

    Of a queue that is too long to show, those of the highest priority that came first are shown.
    """
    return Snapshot(
        gpus=tuple(_gpu(state, gpu) for gpu in state.gpus.values()),
        consumers={name: _consumer(c, at) for name, c in state.consumers.items()},
        queue=_queue(state, at),
        queued=state.waiting,
        draining=state.draining,
        evictions=state.evictions,
        loads=state.loads,
        paused=state.paused,
        paused_s=None if state.paused_at is None else at - state.paused_at,
        pause_kept=state.pause_kept,
        warnings=tuple(_warning(c) for c in state.consumers.values() if measuring.wrong(c)),
    )


def jobs(state: State, at: float) -> tuple[JobView, ...]:
    """Every job that runs, the oldest first, then the front of the queue."""
    running = [job for job in state.jobs.values() if job.token]
    waiting = [
        JobView(
            waiter.job,
            waiter.consumer,
            state.jobs[waiter.job].priority,
            waiter.waited_s,
            waiter.position,
            waiter.eta_s,
        )
        for waiter in _queue(state, at)
    ]
    return (*(_running(job, at) for job in running), *waiting)


def job(state: State, name: str, at: float) -> JobView | None:
    """One job that has not ended; None when there is no such job."""
    known = state.jobs.get(name)
    if known is None:
        return None
    if known.token:
        return _running(known, at)
    behind = JobView(name, known.consumer, known.priority, at - known.arrived_at)
    return next((view for view in jobs(state, at) if view.job == name), behind)


def _running(job: Job, at: float) -> JobView:
    waited_s = job.granted_at - job.arrived_at
    return JobView(job.id, job.consumer, job.priority, waited_s, ran_s=at - job.granted_at)


def _queue(state: State, at: float) -> tuple[WaiterView, ...]:
    waiting = [job for c in state.consumers.values() for job in c.waiting]
    front = heapq.nsmallest(WAITERS_SHOWN, waiting, key=lambda job: (-job.priority, job.seq))
    queue = positions.in_order(state, front, at)
    etas_s = estimates.etas_s(state, queue, at)
    return tuple(
        WaiterView(job.id, job.consumer, position, at - job.arrived_at, eta_s)
        for position, (job, eta_s) in enumerate(zip(queue, etas_s, strict=True), start=1)
    )


def _gpu(state: State, gpu: Gpu) -> GpuView:
    jobs = [j for name in gpu.holders for j in state.consumers[name].running]
    return GpuView(
        index=gpu.index,
        uuid=gpu.uuid,
        name=gpu.name,
        healthy=gpu.healthy,
        error=gpu.error,
        total_mib=gpu.total_mib,
        free_mib=gpu.free_mib,
        reserved_mib=vram.reserved_mib(state, gpu.index),
        foreign_mib=vram.foreign_mib(state, gpu),
        lock_consumer=next(iter(gpu.holders), None),
        lock_jobs=tuple(jobs),
        foreign=tuple(sorted(gpu.foreign, key=lambda p: (-(p.mib or 0), p.pid))),
    )


def _consumer(consumer: Consumer, at: float) -> ConsumerView:
    age_s = at - consumer.last_used_at
    return ConsumerView(
        name=consumer.name,
        state=consumer.state,
        healthy=consumer.healthy,
        footprint_mib=consumer.footprint_mib,
        measured_mib=consumer.measured_mib,
        gpus=consumer.gpus,
        running=len(consumer.running),
        queued=len(consumer.waiting),
        last_used_s=age_s if math.isfinite(age_s) else None,
        pinned=consumer.pinned,
        footprint_source=_source(consumer),
        held_mib=consumer.own_total_mib,
        busy=consumer.busy,
    )


def _source(consumer: Consumer) -> FootprintSource:
    if consumer.needs_unknown:
        return "unknown"
    return "measured" if consumer.footprint_mib > consumer.policy.footprint_mib else "configured"


def _warning(consumer: Consumer) -> str:
    return (
        f"{consumer.name}: footprint_mib is {consumer.policy.footprint_mib}, measured were "
        f"{consumer.measured_mib} MiB; write footprint_mib: {consumer.measured_mib}"
    )
