"""When a waiting job can expect to begin, from what jobs, loads and unloads took before.

The queue is played through once: jobs in the order that ``mgpu.core.positions`` foresees, each
after those before it on its GPUs, and after its consumer's load if it is not in memory by then.
With ``prefetch``, loads begin at once, ``max_parallel_loads`` at a time, where there is room beside
the others; else a load begins when those before it have computed and somebody has left. What a
consumer has not shown yet is taken from the average of those that have; before anything has been
measured there is no estimate. It is made when somebody asks, never for a decision. Who is loaded by
then ranks as it does now: an estimate is rather late than early.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from mgpu.core import placement, vram
from mgpu.core.averages import Average
from mgpu.core.effects import Effect, Finish, UnloadMeasured
from mgpu.core.jobs import Job
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import LockMode, Outcome
from mgpu.core.state import Consumer, State

RETRY_S = 2.0
"""When to come back before anything has been measured: about one short job later."""
RETRY_LEAST_S = 1.0
RETRY_MOST_S = 60.0

Lane = int | str
"""What is used by one job at a time: a GPU, or a consumer where GPUs are shared."""


def learn(state: State, effects: Iterable[Effect]) -> None:
    """Keep what was measured in one step; loads are ``mgpu.core.bandwidth``'s."""
    for effect in effects:
        match effect:
            case Finish(outcome=Outcome.DONE) if effect.run_s > 0:
                state.consumers[effect.consumer].averages.job.add(effect.run_s)
            case UnloadMeasured(name, True, seconds):
                state.consumers[name].averages.unload.add(seconds)
            case _:
                pass


def etas_s(state: State, jobs: Sequence[Job], at: float) -> list[float | None]:
    """Seconds until each of the jobs begins, were they served in this order."""
    if state.paused:
        return [None] * len(jobs)
    forecast = Forecast(state, at)
    return [forecast.take(state.consumers[job.consumer]) for job in jobs]


def next_start_s(state: State, consumer: Consumer, at: float) -> float:
    """Seconds until a consumer's next job begins, were it served next: then a place is free."""
    eta_s = Forecast(state, at).take(consumer)
    return RETRY_S if eta_s is None else min(max(eta_s, RETRY_LEAST_S), RETRY_MOST_S)


class Forecast:
    """The near future as far as it is known: when each lane is free, and who is in memory when.

    Every moment is in seconds from now.
    """

    def __init__(self, state: State, at: float) -> None:
        self._state = state
        self._at = at
        consumers = state.consumers.values()
        self._job_s = _mean([c.averages.job for c in consumers])
        self._load_s = _mean([c.averages.load for c in consumers])
        self._unload_s = _mean([c.averages.unload for c in consumers]) or 0.0
        self._there_s = {c.name: 0.0 for c in consumers if c.state is S.RESIDENT}
        self._room_mib = {
            gpu.index: gpu.free_mib - vram.reserved_mib(state, gpu.index) - state.policy.cushion_mib
            for gpu in state.gpus.values()
        }
        idle = [c for c in consumers if c.state is S.RESIDENT and not c.running and not c.waiting]
        self._idle = sorted(idle, key=lambda c: c.last_used_at, reverse=True)
        self._placed: dict[str, tuple[int, ...]] = {}
        self._free_s: dict[Lane, float] = {}
        for consumer in consumers:
            for job in consumer.running.values():
                self._occupy(self._lanes(consumer, consumer.gpus), self._left_s(consumer, job))
        self._slots_s = [0.0] * state.policy.max_parallel_loads
        for name in state.swaps:
            if (there_s := self._rest_s(state.consumers[name])) is not None:
                self._there_s[name] = there_s
                heapq.heapreplace(self._slots_s, there_s)

    def take(self, consumer: Consumer) -> float | None:
        """Put one more job of a consumer at the end; return in how many seconds it begins."""
        job_s = _known(consumer.averages.job, self._job_s)
        gpus = self._gpus(consumer)
        lanes = self._lanes(consumer, gpus)
        free_s = max((self._free_s.get(lane, 0.0) for lane in lanes), default=0.0)
        if consumer.name not in self._there_s:
            self._load(consumer, gpus, free_s)
        there_s = self._there_s.get(consumer.name)
        if job_s is None or there_s is None:
            return None
        begins_s = max(free_s, there_s)
        self._occupy(lanes, begins_s + job_s / consumer.policy.concurrency)
        return begins_s

    def _left_s(self, consumer: Consumer, job: Job) -> float:
        job_s = _known(consumer.averages.job, self._job_s) or 0.0
        return max(0.0, job_s - (self._at - job.granted_at))

    def _occupy(self, lanes: Iterable[Lane], until_s: float) -> None:
        for lane in lanes:
            self._free_s[lane] = max(until_s, self._free_s.get(lane, 0.0))

    def _lanes(self, consumer: Consumer, gpus: tuple[int, ...]) -> tuple[Lane, ...]:
        return (consumer.name,) if self._state.policy.lock is LockMode.SHARED else gpus

    def _gpus(self, consumer: Consumer) -> tuple[int, ...]:
        if consumer.state is not S.ABSENT or consumer.name in self._state.swaps:
            return consumer.gpus
        placed = self._placed.get(consumer.name)
        if placed is None:
            placed = self._placed[consumer.name] = min(
                placement.choices(self._state, consumer),
                key=lambda gpus: max(self._free_s.get(index, 0.0) for index in gpus),
                default=(),
            )
        return placed

    def _duration_s(self, consumer: Consumer) -> float | None:
        # One that cannot be loaded is by its first job, and that takes as long as it takes.
        return _known(consumer.averages.load, self._load_s) if consumer.policy.can_load else 0.0

    def _rest_s(self, consumer: Consumer) -> float | None:
        """When a swap that is under way is over."""
        load_s, swap = self._duration_s(consumer), self._state.swaps[consumer.name]
        if load_s is None:
            return None
        if swap.load_started_at is not None:
            return max(0.0, load_s - (self._at - swap.load_started_at))
        unload_s = self._unload_s if swap.victims else 0.0
        return load_s + max(0.0, unload_s - (self._at - swap.started_at))

    def _load(self, consumer: Consumer, gpus: tuple[int, ...], free_s: float) -> None:
        """Bring a consumer into memory: beside computing where there is room, else after it."""
        load_s = self._duration_s(consumer)
        if load_s is None:
            return
        begins_s = self._room_s(consumer, gpus, free_s)
        if self._state.policy.prefetch:
            begins_s = max(begins_s, self._slots_s[0])
            heapq.heapreplace(self._slots_s, begins_s + load_s)
        else:
            begins_s = max(begins_s, free_s)
        self._there_s[consumer.name] = begins_s + load_s

    def _room_s(self, consumer: Consumer, gpus: tuple[int, ...], free_s: float) -> float:
        """When there is room: at once, when idle ones have left, or when all have who can."""
        need_mib = vram.share_mib(consumer.footprint_mib, gpus) if gpus else 0
        fits = self._fits(need_mib, gpus)
        room_s = 0.0 if fits else self._unload_s
        while not fits and self._idle:
            other = self._idle.pop()
            if self._leaves(other, consumer, gpus):
                for index in other.gpus:
                    self._room_mib[index] = self._room_mib.get(index, 0) + vram.gain_mib(other)
            fits = self._fits(need_mib, gpus)
        if not fits:
            room_s = free_s + self._unload_s
            for name in list(self._there_s):
                self._leaves(self._state.consumers[name], consumer, gpus)
        for index in gpus:
            self._room_mib[index] = self._room_mib.get(index, 0) - need_mib if fits else 0
        return room_s

    def _fits(self, need_mib: int, gpus: tuple[int, ...]) -> bool:
        return all(need_mib <= self._room_mib.get(index, 0) for index in gpus)

    def _leaves(self, other: Consumer, consumer: Consumer, gpus: tuple[int, ...]) -> bool:
        """Let somebody leave for a consumer, if that may be and helps."""
        leaves = (
            other.can_be_unloaded
            and not other.pinned
            and not consumer.policy.coexists_with(other.name)
            and not set(gpus).isdisjoint(self._gpus(other))
        )
        if leaves:
            self._there_s.pop(other.name, None)
        return leaves


def _known(own: Average, others_s: float | None) -> float | None:
    return others_s if own.seconds is None else own.seconds


def _mean(averages: Sequence[Average]) -> float | None:
    known_s = [average.seconds for average in averages if average.seconds is not None]
    return sum(known_s) / len(known_s) if known_s else None
