"""How each fault happens that waits for no load, unload or job (``machine`` knows of those)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from mgpu.core import views
from mgpu.core.events import (
    DrainRequested,
    JobKind,
    JobLeft,
    PauseRequested,
    PinRequested,
    RestartRequested,
    ResumeRequested,
    UnloadRequested,
)
from tests.faults.kinds import Fault
from tests.faults.phases import PHASES, clients_in
from tests.faults.scenario import Strike, Visit
from tests.faults.service import ARMED, Service
from tests.faults.watching import PROBE_S

if TYPE_CHECKING:
    from tests.faults.world import World


class Strikes:
    """The faults of a world: they happen at once, or as soon as there is an opportunity."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._phases: list[Fault] = []
        """A client leaves as soon as one is in this phase."""
        self._extras = itertools.count()
        """Numbers for jobs that no line asks for: several may come in one moment."""

    def strike(self, strike: Strike) -> None:
        """Let a fault happen."""
        fault, machine = strike.fault, self._world.machine
        if fault is Fault.ANSWER_OF_OLD_ATTEMPT:
            for each in machine.services.values():
                machine.arm(each, fault, strike.amount)
        elif fault in ARMED:
            machine.arm(machine.services[strike.subject], fault, strike.amount)
        elif fault in PHASES:
            self._phases.append(fault)
            self.leave_in_phase()
        elif _HAPPENS[fault](self, strike, machine.services[strike.subject]) is not False:
            machine.met[fault] += 1

    def leave_in_phase(self) -> None:
        """Let those leave who are in a phase for which a fault waits."""
        for fault in list(self._phases):
            if job := next(clients_in(self._world, PHASES[fault]), None):
                self._phases.remove(fault)
                self._world.machine.met[fault] += 1
                self._world.agenda.after(0.001, partial(self._leave, job))

    def calm(self) -> None:
        """Let no fault wait any more."""
        self._phases.clear()

    # One method a subject; False: there was no opportunity.

    def _memory(self, strike: Strike, service: Service) -> bool | None:
        machine, gpu, amount = self._world.machine, strike.gpu, strike.amount
        before_mib = machine.memory.foreign_mib[gpu]
        more_mib = before_mib + 500 + round(9000 * amount)
        match strike.fault:
            case Fault.FOOTPRINT_GREW:
                service.true_mib = round(service.spec.policy.footprint_mib * (1.0 + amount))
            case Fault.FOOTPRINT_SHRANK:
                service.true_mib = round(service.spec.policy.footprint_mib * (0.9 - 0.8 * amount))
            case Fault.FOREIGN_COMES:
                machine.memory.set_foreign(gpu, more_mib)
            case Fault.FOREIGN_GOES:
                machine.memory.set_foreign(gpu, 0)
            case Fault.FOREIGN_SPIKE:
                machine.memory.set_foreign(gpu, more_mib)
                self._world.agenda.after(0.5, lambda: machine.memory.set_foreign(gpu, before_mib))
        return None

    def _process(self, strike: Strike, service: Service) -> bool | None:
        machine = self._world.machine
        match strike.fault:
            case Fault.DIES_RESIDENT:
                if not service.loaded or service.computing:
                    return False
                machine.die(service, _lasts_s(strike))
            case Fault.RESTARTS_ITSELF:
                machine.die(service, 0.0)
            case Fault.RESTARTS_LOADED:
                machine.die(service, 0.0)
                machine.after(0.3, service, lambda: self._load_itself(service, strike.gpu))
            case Fault.LOADS_ITSELF:
                return self._load_itself(service, strike.gpu)
            case Fault.UNLOADS_ITSELF:
                if not service.loaded or service.computing or service.asked:
                    return False
                service.doubtful = True
                machine.memory.drop(service)
        return None

    def _probes(self, strike: Strike, service: Service) -> bool | None:
        says_so = {Fault.PROBE_SAYS_RESIDENT, Fault.PROBE_SAYS_ABSENT}
        if strike.fault in says_so and not service.spec.tells:
            return False
        world, lasts_s = self._world, _lasts_s(strike)
        world.modes.begin(strike.fault, service.name, lasts_s + PROBE_S)
        world.agenda.after(0.01, lambda: world.watch.probe(service.name))
        world.agenda.after(lasts_s / 2, lambda: world.watch.probe(service.name))
        return None

    def _gpus(self, strike: Strike, _service: Service) -> bool | None:
        modes, watch, lasts_s = self._world.modes, self._world.watch, _lasts_s(strike)
        match strike.fault:
            case Fault.NVML_LOST:
                modes.begin(strike.fault, "", lasts_s)
                watch.read_in(0.005)
            case Fault.NVML_HANGS:
                modes.begin(strike.fault, "", lasts_s)
                modes.begin(Fault.NVML_LOST, "", lasts_s + 0.1)
            case Fault.NVML_STALE:
                watch.freeze(strike.gpu)
                modes.begin(strike.fault, strike.gpu, lasts_s)
            case Fault.NVML_ONE_GPU_LOST | Fault.GPU_GONE:
                modes.begin(strike.fault, strike.gpu, lasts_s)
                watch.read_in(0.005)
        return None

    def _clients(self, strike: Strike, service: Service) -> bool | None:
        world, name, amount = self._world, service.name, strike.amount
        match strike.fault:
            case Fault.ALL_LEAVE:
                jobs = [v.job for v in world.visits.values() if v.consumer == name]
                for job in jobs:
                    self._leave(job)
                return bool(jobs)
            case Fault.BURST:
                for _ in range(2 + round(10 * amount)):
                    world.visit(self._extra(name, amount))
            case Fault.DEADLINE_STORM:
                for other in world.machine.services:
                    for _ in range(2):
                        world.visit(self._extra(other, amount, wait_s=2.0))
        return None

    def _people(self, strike: Strike, service: Service) -> bool | None:
        world, name, amount = self._world, service.name, strike.amount
        match strike.fault:
            case Fault.UNLOAD_BY_HAND:
                name = self._at_work(name) if amount > 0.4 else name
                request = self._request(strike.fault)
                world.post(lambda at: UnloadRequested(at, request, name))
                if amount > 0.6:  # and somebody wants it at once
                    world.agenda.after(0.05, lambda: world.visit(self._extra(name, amount)))
            case Fault.RESTART_BY_HAND:
                name = self._at_work(name) if amount > 0.4 else name
                request = self._request(strike.fault)
                world.post(lambda at: RestartRequested(at, request, name))
            case Fault.LOAD_BY_HAND:
                job = self._name(strike.fault)
                world.visit(Visit(world.now, job, name, kind=JobKind.LOAD))
            case Fault.PIN_BY_HAND:
                self._pin(name, pinned=True)
                world.agenda.after(20.0 * amount, lambda: self._pin(name, pinned=False))
                self._crash_within(20.0, amount)
            case Fault.UNPIN_BY_HAND:
                self._pin(name, pinned=False)
            case Fault.PAUSE:
                request = self._request(strike.fault)
                world.post(lambda at: PauseRequested(at, request))
                world.agenda.after(10.0 * amount, lambda: world.post(ResumeRequested, insists=True))
                self._crash_within(10.0, amount)
            case Fault.STATUS_POLL:
                views.take(world.state, world.now)
        return None

    def _broker(self, strike: Strike, _service: Service) -> bool | None:
        world, machine, amount = self._world, self._world.machine, strike.amount
        match strike.fault:
            case Fault.BROKER_KILLED:
                world.start_again()
            case Fault.BROKER_DRAINS:
                world.post(DrainRequested)
                epoch = machine.epoch
                world.agenda.after(
                    0.1 + 4.0 * amount,
                    lambda: world.start_again() if epoch == machine.epoch else None,
                )
            case Fault.STALL:
                world.stall(0.2 + 4.0 * amount)
            case Fault.TIMERS_EARLY | Fault.TIMERS_LATE:
                world.modes.begin(strike.fault, "", _lasts_s(strike))
            case Fault.SUSPEND:
                world.modes.begin(Fault.NVML_LOST, "", 0.4)
                for job in list(world.visits):
                    self._leave(job)
                for each in machine.services.values():
                    machine.die(each, 0.2)
        return None

    # What they have in common

    def _name(self, fault: Fault) -> str:
        return f"{fault.name.lower()}-{next(self._extras)}-{self._world.now:.3f}"

    def _request(self, fault: Fault) -> str:
        request = self._name(fault)
        self._world.requests.add(request)
        return request

    def _pin(self, name: str, *, pinned: bool) -> None:
        self._world.post(lambda at: PinRequested(at, name, pinned=pinned), insists=True)

    def _crash_within(self, most_s: float, amount: float) -> None:
        """Of what a person asked for the longest third outlives the broker, killed half-way."""
        if amount > 2 / 3:
            self._world.agenda.after(most_s * amount / 2, self._world.start_again)

    def _at_work(self, otherwise: str) -> str:
        """One that computes, if there is one."""
        services = self._world.machine.services.values()
        return next((s.name for s in services if s.computing), otherwise)

    def _extra(self, consumer: str, amount: float, wait_s: float | None = None) -> Visit:
        now = self._world.now
        job = f"x{now - self._world.scenario.starts_at:.3f}-{consumer}-{next(self._extras)}"
        return Visit(now, job, consumer, run_s=0.1 + round(amount, 1), wait_s=wait_s)

    def _load_itself(self, service: Service, gpu: int) -> bool:
        if service.loaded or service.asked or not service.alive:
            return False
        service.doubtful = True
        return self._world.machine.memory.take(service, service.spec.policy.gpus or (gpu,))

    def _leave(self, job: str) -> None:
        self._world.post(lambda at: JobLeft(at, job))


def _lasts_s(strike: Strike) -> float:
    return 0.5 + 8.0 * strike.amount


_Happens = Callable[[Strikes, Strike, Service], bool | None]

_SUBJECTS: Mapping[_Happens, tuple[Fault, ...]] = {
    Strikes._memory: (
        Fault.FOOTPRINT_GREW,
        Fault.FOOTPRINT_SHRANK,
        Fault.FOREIGN_COMES,
        Fault.FOREIGN_GOES,
        Fault.FOREIGN_SPIKE,
    ),
    Strikes._process: (
        Fault.DIES_RESIDENT,
        Fault.RESTARTS_ITSELF,
        Fault.RESTARTS_LOADED,
        Fault.LOADS_ITSELF,
        Fault.UNLOADS_ITSELF,
    ),
    Strikes._probes: (
        Fault.PROBE_SAYS_RESIDENT,
        Fault.PROBE_SAYS_ABSENT,
        Fault.PROBE_FLAPS,
        Fault.PROBE_UNHEALTHY,
        Fault.PROBES_STOP,
        Fault.PROBE_LATE,
    ),
    Strikes._gpus: (
        Fault.NVML_LOST,
        Fault.NVML_HANGS,
        Fault.NVML_STALE,
        Fault.NVML_ONE_GPU_LOST,
        Fault.GPU_GONE,
    ),
    Strikes._clients: (Fault.ALL_LEAVE, Fault.BURST, Fault.DEADLINE_STORM),
    Strikes._people: (
        Fault.UNLOAD_BY_HAND,
        Fault.LOAD_BY_HAND,
        Fault.RESTART_BY_HAND,
        Fault.PIN_BY_HAND,
        Fault.UNPIN_BY_HAND,
        Fault.PAUSE,
        Fault.STATUS_POLL,
    ),
    Strikes._broker: (
        Fault.BROKER_KILLED,
        Fault.BROKER_DRAINS,
        Fault.STALL,
        Fault.SUSPEND,
        Fault.TIMERS_EARLY,
        Fault.TIMERS_LATE,
    ),
}
_HAPPENS = {fault: happens for happens, faults in _SUBJECTS.items() for fault in faults}
