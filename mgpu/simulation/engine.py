"""The production scheduler, driven over a trace in virtual time.

The scheduler is told what a broker would tell it, and everything it wants is done by a simulated
machine: loads and unloads take the time the trace says, memory fills half-way through a load and
comes back when an unload ends, and the GPUs are read, with what each consumer's processes hold,
whenever the scheduler asks for it or their memory has changed. While somebody waits and nothing
moves they are read once a second, as the broker does. What is loaded by its first job fills its
memory as that begins; the job's own time holds the load. Nothing fails here; for what happens then
see the tests of ``mgpu.core``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from mgpu.core import invariants
from mgpu.core.effects import (
    Abort,
    Answer,
    CancelTimer,
    Effect,
    Evicted,
    Finish,
    FootprintLearned,
    FootprintWrong,
    Forget,
    GpuHealthChanged,
    Grant,
    Keep,
    LoadMeasured,
    LockReleased,
    Measured,
    Sample,
    SetTimer,
    SettleTimedOut,
    StartLoad,
    StartUnload,
    StateChanged,
    SwapMeasured,
    UnloadMeasured,
)
from mgpu.core.events import (
    Event,
    GpusRead,
    JobArrived,
    JobEnded,
    LoadEnded,
    Timer,
    TimerFired,
    UnloadEnded,
)
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import GpuReading, Outcome, Policy
from mgpu.core.scheduler import Scheduler
from mgpu.core.state import State
from mgpu.core.vram import share_mib
from mgpu.simulation import bound
from mgpu.simulation.agenda import Agenda
from mgpu.simulation.bus import Bus
from mgpu.simulation.outcome import Activity, JobRun, Lanes, Result
from mgpu.simulation.workload import Arrival, Rules, Trace

IDLE_SAMPLE_S = 1.0
READING_S = 0.001
"""What reading a GPU takes, where it matters: whether a job has loaded its consumer is shown by
figures from after its end alone."""

_ACTIVITY: Mapping[S, Activity] = {
    S.LOADING: Activity.LOADING,
    S.RESIDENT: Activity.RESIDENT,
    S.DRAINING: Activity.RESIDENT,
    S.UNLOADING: Activity.UNLOADING,
    S.QUARANTINED: Activity.UNLOADING,
}


class StuckError(AssertionError):
    """Jobs wait, nothing is under way, and the scheduler wants nothing: a bug of the scheduler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What the simulated machine is like.

    ``shared_bandwidth``: two loads at once take twice as long. ``memory_lag_s``: so long after an
    unload was answered its memory shows as free.
    """

    shared_bandwidth: bool = False
    memory_lag_s: float = 0.0


IDEAL = Conditions()


def replay(  # noqa: PLR0913 - what is replayed, and what is to be seen of it
    trace: Trace,
    policy: Policy,
    conditions: Conditions = IDEAL,
    *,
    check: bool = False,
    lanes: bool = False,
    look: Callable[[State, float, str], None] | None = None,
) -> Result:
    """Run a trace under a policy that names the trace's services as its consumers.

    ``check``: check the core's invariants after every event. ``lanes``: write down who did what
    when. ``look`` is shown the state as each job has arrived, with the time and the job's number.
    Raises ``StuckError`` when the scheduler leaves jobs waiting for ever, and ``OvertakenError``
    when it lets an overdue one be overtaken (``mgpu.simulation.bound``).
    """
    return _Machine(trace, policy, conditions, check=check, lanes=lanes, look=look).run()


class _Machine:
    def __init__(  # noqa: PLR0913 - as replay
        self,
        trace: Trace,
        policy: Policy,
        conditions: Conditions,
        *,
        check: bool,
        lanes: bool,
        look: Callable[[State, float, str], None] | None,
    ) -> None:
        self._look_at = look
        self._trace = trace
        self._lag_s = conditions.memory_lag_s
        self._check = check
        self._lanes = Lanes() if lanes else None
        self._scheduler = Scheduler(policy)
        self._agenda = Agenda(trace.arrivals[0].at_s if trace.arrivals else 0.0)
        self._bus = Bus(shared=conditions.shared_bandwidth)
        self._bus_version = 0
        self._free_mib = list(trace.total_mib)
        self._placed: dict[str, tuple[int, ...]] = {}
        self._kept: dict[str, tuple[int, ...]] = {}
        """Where the residuals of those lie that have left."""
        self._loads: dict[str, StartLoad] = {}
        """Loads under way; the memory of those in ``_placed`` is filled."""
        self._moving = 0
        """Loads, unloads and jobs under way."""
        self._timers: dict[Timer, float] = {}
        self._running: dict[str, float] = {}
        """Since when each job computes."""
        self._computing: Counter[str] = Counter()
        """How many jobs of each consumer do."""
        self._open = len(trace.arrivals)
        self._unread = True
        self._blind_until_s = -math.inf
        """Before that moment nothing is read."""
        self._watching = False
        self._result = Result()

    def run(self) -> Result:
        for name in self._trace.resident:
            self._fill(name, self._trace.services[name].gpus or (0,))
            self._enter(name, Activity.RESIDENT)
        self._read_if_needed()
        for number, arrival in enumerate(self._trace.arrivals):
            self._agenda.at(arrival.at_s, partial(self._arrive, str(number), arrival))
        while self._open:
            if not self._agenda.step():
                raise StuckError(f"{self._open} jobs wait for ever")
            self._read_if_needed()
            self._watch()
        self._result.ended_s = self._agenda.now_s
        if self._lanes is not None:
            self._result.lanes = self._lanes.close(self._agenda.now_s)
        return self._result

    # What the scheduler is told

    def _post(self, event: Event) -> None:
        effects = self._scheduler.handle(event)
        if self._check:
            invariants.check(self._scheduler.state)
            invariants.check_effects(self._scheduler.state, effects)
        for effect in effects:
            self._do(effect)

    def _arrive(self, job: str, arrival: Arrival) -> None:
        event = JobArrived(self._agenda.now_s, job, arrival.consumer, priority=arrival.priority)
        self._post(event)
        if self._look_at is not None:
            self._look_at(self._scheduler.state, self._agenda.now_s, job)

    def _read_if_needed(self) -> None:
        while self._unread and self._agenda.now_s >= self._blind_until_s:
            self._unread = False
            readings = tuple(
                GpuReading(
                    index=index,
                    total_mib=total_mib,
                    free_mib=max(0, free_mib),
                    held_mib=self._held_mib(index),
                )
                for index, (total_mib, free_mib) in enumerate(
                    zip(self._trace.total_mib, self._free_mib, strict=True)
                )
            )
            self._post(GpusRead(self._agenda.now_s, readings))

    def _held_mib(self, index: int) -> dict[str, int]:
        """What the processes of each service hold on a GPU, as the driver tells a broker."""
        held_mib = dict.fromkeys(self._trace.services, 0)
        for name, gpus in self._kept.items():
            if index in gpus:
                held_mib[name] = share_mib(self._trace.services[name].residual_mib, gpus)
        for name, gpus in self._placed.items():
            if index in gpus:
                held_mib[name] = share_mib(self._trace.services[name].footprint_mib, gpus)
        return held_mib

    def _watch(self) -> None:
        """Read once in a while for as long as somebody waits for nothing that is under way."""
        if self._scheduler.state.waiting and not self._moving and not self._watching:
            self._watching = True
            self._agenda.after(IDLE_SAMPLE_S, self._look)

    def _look(self) -> None:
        self._watching = False
        self._read_anew()

    def _read_anew(self) -> None:
        self._unread = True

    # What the scheduler wants done

    def _do(self, effect: Effect) -> None:  # noqa: C901 - one arm an effect
        match effect:
            case SetTimer(timer, at):
                self._timers[timer] = at
                self._agenda.at(at, partial(self._fire, timer, at))
            case CancelTimer(timer):
                self._timers.pop(timer, None)
            case Grant():
                self._grant(effect)
            case Finish():
                self._finish(effect)
            case Sample():
                self._unread = True
            case StateChanged(consumer, _, new):
                self._enter(consumer, _ACTIVITY.get(new))
            case StartLoad():
                self._load(effect)
            case StartUnload():
                self._unload(effect)
            case Abort() | Answer() | Forget() | Keep():
                raise AssertionError(f"no client left and nobody asked for anything: {effect}")
            case (
                LockReleased()
                | LoadMeasured()
                | UnloadMeasured()
                | SwapMeasured()
                | Evicted()
                | FootprintLearned()
                | FootprintWrong()
                | Measured()
                | GpuHealthChanged()
                | SettleTimedOut()
            ):
                pass
            case _:
                assert_never(effect)

    def _fire(self, timer: Timer, at: float) -> None:
        if self._timers.get(timer) == at:
            del self._timers[timer]
            self._post(TimerFired(self._agenda.now_s, timer))

    def _grant(self, grant: Grant) -> None:
        bound.check(self._scheduler.state, grant, self._agenda.now_s)
        self._moving += 1
        self._running[grant.job] = self._agenda.now_s
        self._computing[grant.consumer] += 1
        self._enter(grant.consumer, Activity.COMPUTING)
        if grant.consumer not in self._placed and not self._rules(grant.consumer).can_load:
            self._result.loads += 1
            self._fill(grant.consumer, grant.gpus)
        service_s = self._trace.arrivals[int(grant.job)].service_s
        self._agenda.after(service_s, partial(self._end, grant.job, grant.token))

    def _end(self, job: str, token: int) -> None:
        self._moving -= 1
        consumer = self._trace.arrivals[int(job)].consumer
        self._computing[consumer] -= 1
        if not self._computing[consumer]:
            self._enter(consumer, Activity.RESIDENT)
        if not self._rules(consumer).can_load:
            self._blind_until_s = self._agenda.now_s + READING_S
            self._agenda.at(self._blind_until_s, self._read_anew)
        self._post(JobEnded(self._agenda.now_s, job, token, Outcome.DONE))

    def _finish(self, end: Finish) -> None:
        if not end.job.isdecimal():
            return  # the scheduler's own, by which it loads what nobody has asked for
        self._open -= 1
        started_s = self._running.pop(end.job, None)
        if started_s is not None:
            number, now_s = int(end.job), self._agenda.now_s
            arrived_s = self._trace.arrivals[number].at_s
            self._result.runs.append(JobRun(number, end.consumer, arrived_s, started_s, now_s))
        else:
            self._result.refused += 1

    def _enter(self, consumer: str, activity: Activity | None) -> None:
        if self._lanes is not None:
            self._lanes.enter(consumer, activity, self._agenda.now_s)

    # The machine

    def _rules(self, consumer: str) -> Rules:
        return self._trace.services[consumer].rules

    def _load(self, effect: StartLoad) -> None:
        load_s = self._trace.services[effect.consumer].load_s
        self._moving += 1
        self._result.loads += 1
        self._result.reload_s += load_s
        self._loads[effect.consumer] = effect
        self._bus.start(effect.consumer, load_s / 2, self._agenda.now_s)
        self._plan_bus()

    def _plan_bus(self) -> None:
        self._bus_version += 1
        end_s = self._bus.next_end_s()
        if end_s is not None:
            self._agenda.at(end_s, partial(self._half_done, self._bus_version))

    def _half_done(self, version: int) -> None:
        if version != self._bus_version:
            return  # another load began meanwhile
        name = self._bus.take(self._agenda.now_s)
        load = self._loads[name]
        error = None
        if name not in self._placed:
            self._fill(name, load.gpus)
            if min(self._free_mib) >= 0:
                load_s = self._trace.services[name].load_s
                self._bus.start(name, load_s / 2, self._agenda.now_s)
                self._plan_bus()
                return
            for give_back in self._empty(name):
                give_back()
            error = "out of memory"
        self._plan_bus()
        self._moving -= 1
        del self._loads[name]
        self._post(LoadEnded(self._agenda.now_s, name, load.attempt, error))

    def _unload(self, effect: StartUnload) -> None:
        unload_s = self._trace.services[effect.consumer].unload_s
        self._moving += 1
        self._result.unloads += 1
        self._result.reload_s += unload_s
        self._agenda.after(unload_s, partial(self._unloaded, effect))

    def _unloaded(self, effect: StartUnload) -> None:
        self._moving -= 1
        name = effect.consumer
        # One that its first job loads may leave before that.
        for give_back in self._empty(name) if name in self._placed else ():
            if self._lag_s:
                self._agenda.after(self._lag_s, give_back)
            else:
                give_back()
        self._post(UnloadEnded(self._agenda.now_s, name, effect.attempt))

    def _fill(self, name: str, gpus: tuple[int, ...]) -> None:
        service = self._trace.services[name]
        if name in self._kept:
            self._change(self._kept.pop(name), service.residual_mib)
        self._placed[name] = gpus
        self._change(gpus, -service.footprint_mib)

    def _empty(self, name: str) -> Iterator[Callable[[], None]]:
        """A consumer gives up its memory; what shows it as free, to be called when it does."""
        service, gpus = self._trace.services[name], self._placed.pop(name)
        yield partial(self._change, gpus, service.footprint_mib)
        if service.residual_mib:
            self._kept[name] = gpus
            yield partial(self._change, gpus, -service.residual_mib)

    def _change(self, gpus: tuple[int, ...], free_mib: int) -> None:
        """Let so much more of these GPUs be free, or less, over all of them together."""
        each_mib = share_mib(abs(free_mib), gpus)
        for index in gpus:
            self._free_mib[index] += each_mib if free_mib > 0 else -each_mib
        self._unread = True
