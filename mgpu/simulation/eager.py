"""The baseline ``eager``: load whoever is asked for as soon as memory can be had.

So works large-model-proxy (https://github.com/perk11/large-model-proxy): every absent consumer with
a waiting job begins to load as soon as memory can be had from idle ones, least recently used first;
all loads go on in parallel, beside computing. Residents compute one at a time, in the order in
which their jobs arrived. Idle is who is resident and has no job. Memory is what footprints and
cushion say, and is to be had when an unload ends.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial

from mgpu.simulation.agenda import Agenda
from mgpu.simulation.bus import Bus
from mgpu.simulation.engine import IDEAL, Conditions
from mgpu.simulation.outcome import Activity, JobRun, Lanes, Result
from mgpu.simulation.workload import Service, Trace


@dataclass(slots=True)
class _Consumer:
    service: Service
    activity: Activity | None = None
    waiting: deque[int] = field(default_factory=deque)
    """Numbers of jobs, which are in order of arrival."""
    last_used_s: float = 0.0

    @property
    def idle(self) -> bool:
        return self.activity is Activity.RESIDENT and not self.waiting


def replay(trace: Trace, conditions: Conditions = IDEAL, *, lanes: bool = False) -> Result:
    """Run a trace of one GPU; jobs that can never fit are refused.

    Raises ``ValueError`` for a trace of several GPUs, for which the baseline is not defined.
    """
    if len(trace.total_mib) != 1:
        raise ValueError("the baseline eager is defined for one GPU")
    return _Machine(trace, conditions, lanes=lanes).run()


class _Machine:
    def __init__(self, trace: Trace, conditions: Conditions, *, lanes: bool) -> None:
        self._trace = trace
        self._lag_s = conditions.memory_lag_s
        self._lanes = Lanes() if lanes else None
        self._agenda = Agenda(trace.arrivals[0].at_s if trace.arrivals else 0.0)
        self._bus = Bus(shared=conditions.shared_bandwidth)
        self._bus_version = 0
        self._room_mib = trace.total_mib[0] - trace.cushion_mib
        self._free_mib = self._room_mib
        self._consumers = {name: _Consumer(s) for name, s in trace.services.items()}
        self._coming: dict[str, int] = {}
        """Targets for which room is made, and how many victims they wait for; 0: it loads."""
        self._computing = False
        self._result = Result()

    def run(self) -> Result:
        for name in self._trace.resident:
            self._free_mib -= self._trace.services[name].footprint_mib
            self._enter(self._consumers[name], Activity.RESIDENT)
        for number, arrival in enumerate(self._trace.arrivals):
            self._agenda.at(arrival.at_s, partial(self._arrive, number))
        while len(self._result.runs) + self._result.refused < len(self._trace.arrivals):
            self._agenda.step()
        self._result.ended_s = self._agenda.now_s
        if self._lanes is not None:
            self._result.lanes = self._lanes.close(self._agenda.now_s)
        return self._result

    def _arrive(self, number: int) -> None:
        consumer = self._consumers[self._trace.arrivals[number].consumer]
        if consumer.service.footprint_mib > self._room_mib:
            self._result.refused += 1
            return
        consumer.waiting.append(number)
        self._serve()

    def _serve(self) -> None:
        """Compute, and load everybody for whom memory can be had; those first who came first."""
        wanting = sorted(
            (c for c in self._consumers.values() if c.waiting), key=lambda c: c.waiting[0]
        )
        for consumer in wanting:
            if consumer.activity is Activity.RESIDENT and not self._computing:
                self._compute(consumer)
        for consumer in wanting:
            if consumer.activity is None and consumer.waiting:
                self._make_room(consumer)

    def _compute(self, consumer: _Consumer) -> None:
        self._computing = True
        number = consumer.waiting.popleft()
        self._enter(consumer, Activity.COMPUTING)
        arrival, started_s = self._trace.arrivals[number], self._agenda.now_s

        def end() -> None:
            now_s = self._agenda.now_s
            run = JobRun(number, arrival.consumer, arrival.at_s, started_s, now_s)
            self._result.runs.append(run)
            self._computing = False
            consumer.last_used_s = now_s
            self._enter(consumer, Activity.RESIDENT)
            self._serve()

        self._agenda.after(arrival.service_s, end)

    def _make_room(self, target: _Consumer) -> None:
        need_mib = target.service.footprint_mib
        if target.service.name in self._coming:
            return
        victims = []
        idle = sorted((c for c in self._consumers.values() if c.idle), key=lambda c: c.last_used_s)
        missing_mib = need_mib - self._free_mib
        for victim in idle:
            if missing_mib <= 0:
                break
            victims.append(victim)
            missing_mib -= victim.service.footprint_mib
        if missing_mib > 0:
            return
        # What is free goes to the target only as far as its victims do not suffice; what they give
        # back beyond that is free when they have gone.
        given_mib = sum(victim.service.footprint_mib for victim in victims)
        self._free_mib -= max(0, need_mib - given_mib)
        self._coming[target.service.name] = len(victims)
        surplus_mib = max(0, given_mib - need_mib)
        for victim in victims:
            self._unload(victim, target, surplus_mib)
        if not victims:
            self._load(target)

    def _unload(self, victim: _Consumer, target: _Consumer, surplus_mib: int) -> None:
        self._result.unloads += 1
        self._result.reload_s += victim.service.unload_s
        self._enter(victim, Activity.UNLOADING)

        def gone() -> None:
            self._enter(victim, None)
            self._coming[target.service.name] -= 1
            if not self._coming[target.service.name]:
                self._free_mib += surplus_mib
                self._load(target)
            self._serve()

        self._agenda.after(victim.service.unload_s + self._lag_s, gone)

    def _load(self, target: _Consumer) -> None:
        self._result.loads += 1
        self._result.reload_s += target.service.load_s
        self._enter(target, Activity.LOADING)
        self._bus.start(target.service.name, target.service.load_s, self._agenda.now_s)
        self._plan_bus()

    def _plan_bus(self) -> None:
        self._bus_version += 1
        end_s = self._bus.next_end_s()
        if end_s is not None:
            self._agenda.at(end_s, partial(self._loaded, self._bus_version))

    def _loaded(self, version: int) -> None:
        if version != self._bus_version:
            return  # another load began meanwhile
        target = self._consumers[self._bus.take(self._agenda.now_s)]
        del self._coming[target.service.name]
        target.last_used_s = self._agenda.now_s
        self._enter(target, Activity.RESIDENT)
        self._plan_bus()
        self._serve()

    def _enter(self, consumer: _Consumer, activity: Activity | None) -> None:
        consumer.activity = activity
        if self._lanes is not None:
            self._lanes.enter(consumer.service.name, activity, self._agenda.now_s)
