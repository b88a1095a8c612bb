"""When a waiting job can expect to begin, from what jobs, loads and unloads took before.

The queue is played through once: jobs in the order in which they will be served as things stand,
each after those before it on its GPUs, and after its consumer's load (and somebody's unload, where
there is no room beside) if it is not in memory by then. What a consumer has not shown yet is taken
from the average of those that have; before anything has been measured there is no estimate. It is
made when somebody asks, never for a decision. Loads beside computing are not foreseen, and the
order ``planned`` is taken for ``resident-first``: an estimate is rather late than early.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mgpu.core import placement, vram
from mgpu.core.averages import Average
from mgpu.core.effects import Effect, Finish, LoadMeasured, UnloadMeasured
from mgpu.core.jobs import Job
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import LockMode, Order, Outcome
from mgpu.core.state import Consumer, State

RETRY_S = 2.0
"""When to come back before anything has been measured: about one short job later."""
RETRY_LEAST_S = 1.0
RETRY_MOST_S = 60.0

Lane = int | str
"""What is used by one job at a time: a GPU, or a consumer where GPUs are shared."""


def learn(state: State, effects: Iterable[Effect]) -> None:
    """Keep what was measured in one step."""
    for effect in effects:
        match effect:
            case Finish(outcome=Outcome.DONE) if effect.run_s > 0:
                state.consumers[effect.consumer].averages.job.add(effect.run_s)
            case LoadMeasured(name, True, float(seconds)):
                state.consumers[name].averages.load.add(seconds)
            case UnloadMeasured(name, True, seconds):
                state.consumers[name].averages.unload.add(seconds)
            case _:
                pass


def in_order(state: State, jobs: Iterable[Job], at: float) -> list[Job]:
    """Waiting jobs in the order in which they will be served as things stand."""
    overdue_from = at - state.policy.max_overtake_s
    first: dict[tuple[str, int], int] = {}
    for job in jobs:
        batch = (job.consumer, job.priority)
        first[batch] = min(job.seq, first.get(batch, job.seq))

    def rank(job: Job) -> tuple[int, ...]:
        if job.arrived_at <= overdue_from:
            return (0, job.seq)
        in_memory = state.consumers[job.consumer].state is S.RESIDENT
        if in_memory or state.policy.order is Order.ARRIVAL:
            return (1, -job.priority, 0, job.seq)
        return (1, -job.priority, 1, first[job.consumer, job.priority], job.seq)

    return sorted(jobs, key=rank)


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
    """The near future as far as it is known: when each lane is free, and who is in memory."""

    def __init__(self, state: State, at: float) -> None:
        self._state = state
        self._at = at
        consumers = state.consumers.values()
        self._job_s = _mean([c.averages.job for c in consumers])
        self._load_s = _mean([c.averages.load for c in consumers])
        self._unload_s = _mean([c.averages.unload for c in consumers]) or 0.0
        self._in_memory = {c.name for c in consumers if c.state is S.RESIDENT}
        self._room_mib = {
            gpu.index: gpu.free_mib - state.policy.cushion_mib for gpu in state.gpus.values()
        }
        self._free_in_s: dict[Lane, float] = {}
        for consumer in consumers:
            for job in consumer.running.values():
                self._occupy(self._lanes(consumer, consumer.gpus), self._left_s(consumer, job))

    def take(self, consumer: Consumer) -> float | None:
        """Put one more job of a consumer at the end; return in how many seconds it begins."""
        job_s = _known(consumer.averages.job, self._job_s)
        gpus = self._gpus(consumer)
        ready_s = self._ready_s(consumer, gpus)
        if job_s is None or ready_s is None:
            return None
        lanes = self._lanes(consumer, gpus)
        begins_s = ready_s + max((self._free_in_s.get(lane, 0.0) for lane in lanes), default=0.0)
        self._occupy(lanes, begins_s + job_s / consumer.policy.concurrency)
        return begins_s

    def _left_s(self, consumer: Consumer, job: Job) -> float:
        job_s = _known(consumer.averages.job, self._job_s) or 0.0
        return max(0.0, job_s - (self._at - job.granted_at))

    def _occupy(self, lanes: Iterable[Lane], until_s: float) -> None:
        for lane in lanes:
            self._free_in_s[lane] = max(until_s, self._free_in_s.get(lane, 0.0))

    def _lanes(self, consumer: Consumer, gpus: tuple[int, ...]) -> tuple[Lane, ...]:
        return (consumer.name,) if self._state.policy.lock is LockMode.SHARED else gpus

    def _gpus(self, consumer: Consumer) -> tuple[int, ...]:
        if consumer.state is not S.ABSENT or consumer.name in self._state.swaps:
            return consumer.gpus
        return min(
            placement.choices(self._state, consumer),
            key=lambda gpus: max(self._free_in_s.get(index, 0.0) for index in gpus),
            default=(),
        )

    def _ready_s(self, consumer: Consumer, gpus: tuple[int, ...]) -> float | None:
        """What bringing a consumer into memory costs; it is there from then on."""
        if consumer.name in self._in_memory:
            return 0.0
        # One that cannot be loaded is by its first job, and that takes as long as it takes.
        load_s = _known(consumer.averages.load, self._load_s) if consumer.policy.can_load else 0.0
        if load_s is None:
            return None
        swap_s = load_s + (0.0 if self._fits(consumer, gpus) else self._unload_s)
        self._in_memory.add(consumer.name)
        swap = self._state.swaps.get(consumer.name)
        if swap is None:
            return swap_s
        began_at = swap.started_at if swap.load_started_at is None else swap.load_started_at
        return max(0.0, swap_s - (self._at - began_at))

    def _fits(self, consumer: Consumer, gpus: tuple[int, ...]) -> bool:
        """Whether a consumer fits beside the others; if not, those who can leave do."""
        if consumer.state is S.LOADING or not gpus:
            return True
        need_mib = vram.share_mib(consumer.footprint_mib, gpus)
        fits = all(need_mib <= self._room_mib.get(index, 0) for index in gpus)
        for index in gpus:
            self._room_mib[index] = self._room_mib.get(index, 0) - need_mib if fits else 0
        if not fits:
            self._in_memory -= {
                other.name
                for other in self._state.consumers.values()
                if other.can_be_unloaded and not other.pinned and set(gpus) & set(other.gpus)
            }
        return fits


def _known(own: Average, others_s: float | None) -> float | None:
    return others_s if own.seconds is None else own.seconds


def _mean(averages: Sequence[Average]) -> float | None:
    known_s = [average.seconds for average in averages if average.seconds is not None]
    return sum(known_s) / len(known_s) if known_s else None
