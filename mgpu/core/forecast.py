"""What is going to happen, as far as it is known: who computes when, and who is in memory when.

Jobs are put in one after the other. Each begins when its consumer is in memory, has a place for it,
and those who compute on its GPUs before it are through. Who has to come makes room where that can
begin first: those leave who can soonest, of the idle the longest idle, those with waiting jobs
last. With ``prefetch`` room is made beside whoever computes, for ``max_parallel_loads`` at a time;
else where nobody computes or loads. In order of arrival nobody takes the turn of who came before.
Who computes for others than the broker is not known to; who has to be reloaded, or is driven out by
one that is overdue, is not foreseen.

Jobs and loads take as long as they did in the mean. What has lasted longer already is taken to last
as long again as it is over its time: the longer it has lasted, the less is known about its end.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from mgpu.core import bandwidth, placement, prospects, vram
from mgpu.core.averages import Average
from mgpu.core.jobs import Job
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import LockMode, Order
from mgpu.core.state import Consumer, Gpu, State, Swap


class _Hold(NamedTuple):
    """Whose jobs compute on a GPU, the last that are known to, under the exclusive lock."""

    consumer: str
    since_s: float
    until_s: float


class _Swap(NamedTuple):
    """When room can be made for a consumer on some GPUs, and who leaves for it."""

    begins_s: float
    victims: tuple[str, ...]
    least_left: float
    """What stays free on the fullest GPU, in MiB; negative: by the books it never fits."""
    gpus: tuple[int, ...]


class Forecast:
    """The near future as far as it is known: who computes until when, and who is in memory when.

    Every moment is in seconds from now.
    """

    def __init__(self, state: State, at: float) -> None:
        self._state = state
        self._at = at
        consumers = state.consumers.values()
        self._job_s = _mean([c.averages.job for c in consumers])
        self._load_s = _mean([c.averages.load for c in consumers])
        self._unload_s = _mean([c.averages.unload for c in consumers]) or 0.0
        self._ahead = {name: len(c.waiting) for name, c in state.awaited.items()}
        self._there_s = {c.name: c.resident_since - at for c in consumers if c.state is S.RESIDENT}
        self._where = {c.name: c.gpus for c in consumers}
        self._on: defaultdict[int, set[str]] = defaultdict(set)
        for name in self._there_s:
            self._move_in(name)
        self._room_mib = {gpu.index: self._to_be_had_mib(gpu) for gpu in state.gpus.values()}
        self._places: dict[str, list[float]] = {}
        self._ends_s: dict[str, float] = {}
        self._holds: dict[int, _Hold] = {}
        for consumer in consumers:
            for job in consumer.running.values():
                self._compute(consumer, 0.0, self._left_s(consumer, job))
        self._loads_s = [0.0] * bandwidth.most_loads(state)
        self._loading_s: dict[int, float] = {}
        self._turns_s: dict[int, float] = {}
        self._swaps_s: dict[int, float] = {}
        for name, swap in state.swaps.items():
            if (there_s := self._rest_s(state.consumers[name], swap)) is not None:
                self._comes(name, swap.gpus, there_s)

    def _to_be_had_mib(self, gpu: Gpu) -> int:
        """What is free on a GPU when those have left and come who are on their way."""
        leaving = [self._state.consumers[name] for name in placement.promised(self._state)]
        gains_mib = sum(vram.gain_mib(c) for c in leaving if gpu.index in c.gpus)
        to_come_mib = vram.outstanding_mib(self._state, gpu.index)
        return gpu.free_mib + gains_mib - to_come_mib - self._state.policy.cushion_mib

    def take(self, consumer: Consumer) -> float | None:
        """Put one more job of a consumer at the end; return in how many seconds it begins."""
        name = consumer.name
        job_s = _known(consumer.averages.job, self._job_s)
        self._ahead[name] = self._ahead.get(name, 0) - 1
        if name not in self._there_s:
            self._load(consumer)
        there_s = self._there_s.get(name)
        if job_s is None or there_s is None:
            return None
        places = self._places.get(name, (0.0,))
        gpus = self._where[name]
        begins_s = max(there_s, places[0], self._free_s(gpus, name), _latest(self._turns_s, gpus))
        self._compute(consumer, begins_s, begins_s + job_s)
        self._take_turn(self._turns_s, gpus, begins_s)
        return begins_s

    def _compute(self, consumer: Consumer, begins_s: float, ends_s: float) -> None:
        """Let a job take that place of its consumer's that is free first, and hold its GPUs."""
        name = consumer.name
        places = self._places.setdefault(name, [0.0] * consumer.policy.concurrency)
        heapq.heapreplace(places, max(ends_s, places[0]))
        self._ends_s[name] = max(ends_s, self._ends_s.get(name, 0.0))
        if self._state.policy.lock is LockMode.SHARED:
            return
        for index in self._where[name]:
            hold = self._holds.get(index)
            if hold is None or hold.consumer != name:
                self._holds[index] = _Hold(name, begins_s, ends_s)
            elif hold.until_s < ends_s:
                self._holds[index] = _Hold(name, hold.since_s, ends_s)

    def _free_s(self, gpus: tuple[int, ...], consumer: str = "") -> float:
        """When nobody computes on some GPUs who would be in the way of a consumer's next job."""
        free_s = 0.0
        for index in gpus:
            if (hold := self._holds.get(index)) is not None:
                mine = hold.consumer == consumer
                free_s = max(free_s, hold.since_s if mine else hold.until_s)
        return free_s

    def _left_s(self, consumer: Consumer, job: Job) -> float:
        job_s = _known(consumer.averages.job, self._job_s) or 0.0
        return _rest_s(job_s, self._at - job.granted_at)

    def _duration_s(self, consumer: Consumer) -> float | None:
        # One that cannot be loaded is by its first job, and that takes as long as it takes.
        return _known(consumer.averages.load, self._load_s) if consumer.policy.can_load else 0.0

    def _rest_s(self, consumer: Consumer, swap: Swap) -> float | None:
        """When a swap that is under way is over."""
        load_s = self._duration_s(consumer)
        if load_s is None:
            return None
        if swap.load_started_at is not None:
            return _rest_s(load_s, self._at - swap.load_started_at)
        unload_s = self._unload_s if swap.victims else 0.0
        return load_s + _rest_s(unload_s, self._at - swap.started_at)

    def _load(self, consumer: Consumer) -> None:
        """Bring a consumer into memory, where there is room first."""
        load_s = self._duration_s(consumer)
        if load_s is None:
            return
        may_use = prospects.choices(self._state, consumer) or ((),)
        everywhere = tuple(chain.from_iterable(may_use))
        before = self._swaps_s if self._state.policy.prefetch else self._turns_s
        turn_s = _latest(before, everywhere)
        swaps = [self._swap(consumer, gpus, turn_s) for gpus in may_use]
        swap = min(
            swaps, key=lambda s: (s.least_left < 0, s.begins_s, len(s.victims), -s.least_left)
        )
        for name in swap.victims:
            self._leave(name)
        need_mib = _share_mib(consumer.footprint_mib, swap.gpus)
        for index in swap.gpus:
            self._room_mib[index] = max(0, self._room_mib.get(index, 0) - need_mib)
        self._take_turn(self._swaps_s, everywhere, swap.begins_s)
        self._take_turn(self._turns_s, everywhere, swap.begins_s)
        room_s = swap.begins_s + (self._unload_s if swap.victims else 0.0)
        self._comes(consumer.name, swap.gpus, room_s + load_s)

    def _take_turn(self, turns_s: dict[int, float], gpus: tuple[int, ...], at_s: float) -> None:
        """In strict order nobody who comes after may use these GPUs before."""
        if self._state.policy.order is Order.ARRIVAL:
            turns_s |= dict.fromkeys(gpus, at_s)

    def _comes(self, name: str, gpus: tuple[int, ...], there_s: float) -> None:
        self._there_s[name] = there_s
        self._where[name] = gpus
        self._move_in(name)
        heapq.heapreplace(self._loads_s, max(there_s, self._loads_s[0]))
        self._loading_s |= dict.fromkeys(gpus, there_s)

    def _move_in(self, name: str) -> None:
        for index in self._where[name]:
            self._on[index].add(name)

    def _leave(self, name: str) -> None:
        gain_mib = self._gain_mib(name)
        for index in self._where[name]:
            self._room_mib[index] = self._room_mib.get(index, 0) + gain_mib
            self._on[index].remove(name)
        del self._there_s[name]

    def _may_swap_s(self, gpus: tuple[int, ...]) -> float:
        """When room may be made on some GPUs, could anybody leave."""
        if self._state.policy.prefetch:
            return self._loads_s[0]
        return max(_latest(self._loading_s, gpus), self._free_s(gpus))

    def _swap(self, consumer: Consumer, gpus: tuple[int, ...], turn_s: float) -> _Swap:
        """Make room for a consumer: those leave who can soonest, until there is."""
        need_mib = _share_mib(consumer.footprint_mib, gpus)
        left: list[float] = [self._room_mib.get(index, 0) - need_mib for index in gpus]
        left.append(self._places_left())
        begins_s = max(turn_s, self._may_swap_s(gpus))
        victims: list[str] = []
        others = self._victims(consumer, gpus, anywhere=left[-1] < 0) if min(left) < 0 else []
        for _, may_leave_s, _, name in others:
            if min(left) >= 0:
                break
            victims.append(name)
            begins_s = max(begins_s, may_leave_s)
            where, gain = self._where[name], self._gain_mib(name)
            gains = [*(gain if index in where else 0 for index in gpus), 1]
            left = [have + more for have, more in zip(left, gains, strict=True)]
        return _Swap(begins_s, tuple(victims), min(left), gpus)

    def _places_left(self) -> float:
        """How many more may be in memory beside one that is to come; negative: somebody must go."""
        most = self._state.policy.max_resident
        if not most:
            return math.inf
        there = [n for n in self._there_s if not self._state.consumers[n].policy.vram_managed]
        return most - len(there) - 1

    def _gain_mib(self, name: str) -> int:
        return _share_mib(vram.returnable_mib(self._state.consumers[name]), self._where[name])

    def _victims(
        self, consumer: Consumer, gpus: tuple[int, ...], *, anywhere: bool
    ) -> list[tuple[bool, float, float, str]]:
        """Who may leave for a consumer, the first to leave first; the second figure is when."""
        names = (
            set(self._there_s)
            if anywhere
            else set[str]().union(*(self._on[index] for index in gpus))
        )
        return sorted(
            (self._ahead.get(name, 0) > 0, self._may_leave_s(other), other.last_used_at, name)
            for name in names
            if (other := self._state.consumers[name]).can_be_unloaded
            and not other.pinned
            and not consumer.policy.coexists_with(name)
        )

    def _may_leave_s(self, consumer: Consumer) -> float:
        keep_s = self._there_s[consumer.name] + self._state.policy.min_resident_s
        return max(0.0, keep_s, self._ends_s.get(consumer.name, 0.0))


def _rest_s(usual_s: float, so_far_s: float) -> float:
    """How long something lasts yet; past its usual time, as long again as it is over."""
    return abs(usual_s - so_far_s)


def _latest(moments_s: Mapping[int, float], gpus: tuple[int, ...]) -> float:
    return max([moments_s.get(index, 0.0) for index in gpus], default=0.0) if moments_s else 0.0


def _share_mib(mib: int, gpus: tuple[int, ...]) -> int:
    return vram.share_mib(mib, gpus) if gpus else 0


def _known(own: Average, others_s: float | None) -> float | None:
    return others_s if own.seconds is None else own.seconds


def _mean(averages: Sequence[Average]) -> float | None:
    known_s = [average.seconds for average in averages if average.seconds is not None]
    return sum(known_s) / len(known_s) if known_s else None
