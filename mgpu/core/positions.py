"""In which order the waiting jobs can expect to begin, as things stand.

Where the order does not change on the way, each job is ranked as a consumer's first job would be,
and those that need the same load together. Under ``planned`` it does change, with every job that is
done and every load that is over: there the queue is played through with what jobs and loads have
taken so far, as if there were one GPU with the memory of all. It is made when somebody asks, never
for a decision.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from mgpu.core import ordering, planning, vram
from mgpu.core.jobs import Job
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import Order
from mgpu.core.state import Consumer, State

Rank = tuple[float, ...]


def in_order(state: State, jobs: Iterable[Job], at: float) -> list[Job]:
    """Waiting jobs in the order in which they will be served as things stand."""
    by_arrival = sorted(jobs, key=lambda job: job.seq)
    if state.policy.order is Order.PLANNED:
        return _Play(state, by_arrival, at).run()
    overdue_from = at - state.policy.max_overtake_s
    rank = ordering.ranks(state, at)
    together: dict[tuple[str, int], Rank] = {}

    def key(job: Job) -> Rank:
        if job.arrived_at <= overdue_from:
            return (0, job.seq)
        consumer = state.consumers[job.consumer]
        if consumer.state is S.RESIDENT or state.policy.order is Order.ARRIVAL:
            return (1, -job.priority, *rank(consumer, job)[1], job.seq)
        batch = (job.consumer, job.priority)
        if batch not in together:
            together[batch] = (*rank(consumer, job)[1], job.seq)
        return (1, -job.priority, *together[batch], job.seq)

    # In order of arrival, so that those together rank as the first of them.
    return sorted(by_arrival, key=key)


class _Play:
    """The queue under ``planned``, one job after the other; moments are seconds from now."""

    def __init__(self, state: State, jobs: list[Job], at: float) -> None:
        self._state = state
        self._at = at
        self._now_s = 0.0
        self._common_s = planning.common_job_s(state)
        self._queues: dict[str, deque[Job]] = {}
        overdue_from = at - state.policy.max_overtake_s
        for job in sorted(jobs, key=lambda job: _own_rank(job, overdue_from)):
            self._queues.setdefault(job.consumer, deque()).append(job)
        self._ready_s: dict[str, float] = {}
        self._room_mib = sum(g.free_mib - state.policy.cushion_mib for g in state.gpus.values())
        for consumer in state.consumers.values():
            if consumer.name in state.swaps:
                self._ready_s[consumer.name] = planning.load_s(consumer)
                self._room_mib -= consumer.footprint_mib
            elif consumer.state is S.RESIDENT and consumer.name in self._queues:
                self._ready_s[consumer.name] = 0.0
            elif consumer.state in vram.HOLDING and _may_leave(consumer):
                self._room_mib += vram.returnable_mib(consumer)

    def run(self) -> list[Job]:
        """Play until nobody waits."""
        begun: list[Job] = []
        while self._queues:
            self._load()
            name = min(self._there(), key=self._rank)
            queue = self._queues[name]
            begun.append(queue.popleft())
            consumer = self._state.consumers[name]
            self._now_s += planning.job_s(consumer, self._common_s)
            if not queue:
                del self._queues[name], self._ready_s[name]
                self._room_mib += vram.returnable_mib(consumer)
        return begun

    def _there(self) -> list[str]:
        """Those in memory that have jobs; when there are none, the first to be there."""
        ready = [name for name in self._queues if name in self._ready_s]
        self._now_s = max(self._now_s, min(self._ready_s[name] for name in ready))
        return [name for name in ready if self._ready_s[name] <= self._now_s]

    def _load(self) -> None:
        """Begin the loads for which there is room; when nobody is there or comes, the first."""
        absent = [name for name in self._queues if name not in self._ready_s]
        present = self._queues.keys() - absent
        there = sorted((self._priority(n), n) for n in present if self._ready_s[n] <= self._now_s)
        loads = len(present) - len(there)
        for name in sorted(absent, key=self._load_rank):
            consumer = self._state.consumers[name]
            nobody = len(absent) == len(self._queues)
            may_load = loads < self._state.policy.max_parallel_loads
            if nobody or (may_load and self._make_room(consumer, there)):
                loads += 1
                absent.remove(name)
                self._room_mib -= consumer.footprint_mib
                self._ready_s[name] = self._now_s + planning.reload_s(consumer)

    def _make_room(self, target: Consumer, there: list[tuple[float, str]]) -> bool:
        """Whether there is room for a consumer, if need be that of those of a lower priority."""
        leave, room_mib = list[str](), self._room_mib
        for priority, name in there:
            if room_mib >= target.footprint_mib or priority >= self._priority(target.name):
                break
            if name in self._ready_s and _may_leave(self._consumer(name)):
                leave.append(name)
                room_mib += vram.returnable_mib(self._consumer(name))
        if room_mib < target.footprint_mib:
            return False
        self._room_mib = room_mib
        for name in leave:
            del self._ready_s[name]
        return True

    def _priority(self, name: str) -> float:
        """Of a consumer's first job: who is overdue goes before all others."""
        job = self._queues[name][0]
        age_s = self._at + self._now_s - job.arrived_at
        return math.inf if age_s >= self._state.policy.max_overtake_s else job.priority

    def _rank(self, name: str) -> Rank:
        job, waiting = self._queues[name][0], len(self._queues[name])
        age_s = self._at + self._now_s - job.arrived_at
        if age_s >= self._state.policy.max_overtake_s:
            return (0, job.seq)
        wanted = self._queues.keys() - self._ready_s.keys()
        each_s = planning.job_s(self._consumer(name), self._common_s)
        rank = planning.compute_rank(age_s, each_s, waiting if wanted else 1)
        return (1, -job.priority, rank, job.seq)

    def _load_rank(self, name: str) -> Rank:
        job, waiting = self._queues[name][0], len(self._queues[name])
        consumer = self._consumer(name)
        if planning.soon_overdue(self._state, consumer, job, self._at + self._now_s):
            return (0, job.seq)
        each_s = planning.job_s(consumer, self._common_s)
        rank = planning.load_rank(each_s, planning.load_s(consumer), waiting)
        return (1, -job.priority, rank, job.seq)

    def _consumer(self, name: str) -> Consumer:
        return self._state.consumers[name]


def _own_rank(job: Job, overdue_from: float) -> Rank:
    """Where a job stands among those of its consumer."""
    overdue = job.arrived_at <= overdue_from
    return (0, job.seq) if overdue else (1, -job.priority, job.seq)


def _may_leave(consumer: Consumer) -> bool:
    return consumer.can_be_unloaded and not consumer.pinned
