"""The scheduler in virtual time, with everybody it deals with, played from a scenario.

The world stands where the broker's shell stands: it carries events to the scheduler and effects to
the machine, keeps the timers, reads the GPUs and asks the consumers. After every event the promises
are checked (``tests.faults.promises``). When the last line has been played and the last fault is
over, everything must come to rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from mgpu.core import views
from mgpu.core.effects import (
    Abort,
    Answer,
    CancelTimer,
    Effect,
    Finish,
    Grant,
    Sample,
    SetTimer,
    StartLoad,
    StartUnload,
)
from mgpu.core.events import (
    ConsumerProbed,
    DrainRequested,
    Event,
    GpusLost,
    GpusRead,
    JobArrived,
    JobKind,
    JobLeft,
    PauseRequested,
    PinRequested,
    RestartRequested,
    ResumeRequested,
    Timer,
    TimerFired,
    UnloadRequested,
)
from mgpu.core.model import GpuReading, Outcome
from mgpu.core.scheduler import Scheduler
from mgpu.simulation.agenda import Agenda
from tests.faults import promises, rest, timers
from tests.faults.kinds import Fault
from tests.faults.machine import ARMED, Machine, Service
from tests.faults.phases import PHASES, clients_in
from tests.faults.records import Records
from tests.faults.scenario import Scenario, Strike, Visit

FAST_READ_S = 0.25
"""While memory moves; besides, every change is read at once then."""
IDLE_READ_S = 1.0
CALM_READ_S = 3.0
"""While nobody waits."""
PROBE_S = 5.0
FAULTS_LAST_S = 12.0
"""After the last line; whatever a fault began is over by then."""
REST_S = 6.0
"""So long must the rest last to count as one: a probe of everybody comes in between."""
PATIENCE_S = 900.0
"""Everything that can come to rest has done so by then."""
TOKEN_BLOCK = 100


class BrokenError(AssertionError):
    """The world did not come to rest, or came to a wrong one."""


class World:
    """One scenario, to be played once. ``tell``: keep a story for people to read."""

    def __init__(self, scenario: Scenario, *, tell: bool = False) -> None:
        self.scenario = scenario
        self.story: list[str] | None = [] if tell else None
        self.agenda = Agenda(scenario.starts_at)
        self.fast = False
        self.scheduler = Scheduler(scenario.policy)
        self.state = self.scheduler.state
        self.machine = Machine(scenario, self.agenda, self.post, self._memory_moves)
        self.records = Records(self)
        self.visits: dict[str, Visit] = {}
        """Jobs whose clients are still there, or that are still under way."""
        self.outcomes: Counter[Outcome] = Counter()
        self.timers: dict[Timer, float] = {}
        self.draining = False
        self.requests: set[str] = set()
        self._modes: dict[tuple[Fault, str | int], float] = {}
        """Until when a fault that lasts does so, per subject."""
        self._deaf_until = -math.inf
        self._next_read_at = math.inf
        self._phases: list[Fault] = []
        self._frozen: dict[int, GpuReading] = {}
        self._probes = 0
        self._ends_at = scenario.starts_at + FAULTS_LAST_S
        if scenario.lines:
            self._ends_at += scenario.lines[-1].at

    @property
    def now(self) -> float:
        """The moment, on the monotonic clock."""
        return self.agenda.now_s

    def run(self) -> None:
        """Play it to the end; raises what does not hold."""
        for index, name in enumerate(self.machine.services):
            self.agenda.after(0.05 + 0.7 * index, partial(self._probe_on, name))
        for line in self.scenario.lines:
            self.agenda.after(line.at, partial(self._play, line))
        self._read_in(0.0)
        while self.agenda.now_s < self._ends_at:
            self.agenda.step()
        self._calm()
        self._come_to_rest()

    def note(self, line: str) -> None:
        """Add a line to the story."""
        if self.story is not None:
            self.story.append(f"{self.now - self.scenario.starts_at:8.3f}  {line}")

    # Telling the scheduler

    def post(self, make: Callable[[float], Event]) -> None:
        """Let the scheduler handle an event now, or as soon as its process goes on."""
        if self.now < self._deaf_until:
            epoch = self.machine.epoch
            self.agenda.at(
                self._deaf_until,
                lambda: self.post(make) if epoch == self.machine.epoch else None,
            )
            return
        event = make(self.now)
        self.records.before(event)
        effects = self.scheduler.handle(event)
        if self.story is not None:
            self._tell(event, effects)
        promises.check(self, event, effects)
        for effect in effects:
            self._do(effect)
        timers.check_settled(self)
        if self._phases:
            self._leave_in_phase()

    def _tell(self, event: Event, effects: list[Effect]) -> None:
        boring = isinstance(event, GpusRead | ConsumerProbed | TimerFired)
        shown = [e for e in effects if not isinstance(e, SetTimer | CancelTimer | Sample)]
        if shown or not boring:
            self.note(str(event))
        for effect in shown:
            self.note(f"    -> {effect}")

    def _do(self, effect: Effect) -> None:  # noqa: C901 - one arm an effect
        match effect:
            case SetTimer(timer, at):
                self._set_timer(timer, at)
            case CancelTimer(timer):
                self.timers.pop(timer, None)
            case StartLoad():
                self.machine.load(effect)
            case StartUnload():
                self.machine.unload(effect)
            case Grant():
                run_s = self.visits[effect.job].run_s
                roomed = effect.consumer in self.records.rooms
                self.machine.compute(effect, run_s, roomed=roomed)
            case Abort(job):
                self.machine.abort(self.visits[job].consumer, job)
            case Finish(job, consumer, outcome):
                if self.visits.pop(job, None) is not None:
                    self.outcomes[outcome] += 1
                if outcome is Outcome.FAILED:
                    self.agenda.after(0.02, lambda: self._probe(consumer))
            case Answer(request):
                self.requests.discard(request)
            case Sample(fast):
                self.fast = fast
                self._read_in(0.005)
            case _:
                pass

    def _set_timer(self, timer: Timer, at: float) -> None:
        self.timers[timer] = at
        early = 0.0015 if self._lasts(Fault.TIMERS_EARLY) else 0.0
        late = 0.4 if self._lasts(Fault.TIMERS_LATE) else 0.0
        self.agenda.at(at - early + late, lambda: self._fire(timer, at))

    def _fire(self, timer: Timer, at: float) -> None:
        if self.timers.get(timer) != at:
            return
        if self.now < self._deaf_until:
            self.agenda.at(self._deaf_until, lambda: self._fire(timer, at))
            return
        del self.timers[timer]
        self.post(lambda now: TimerFired(now, timer))

    # Reading the GPUs

    def _memory_moves(self) -> None:
        if self.fast:
            self._read_in(0.01)

    def _read_in(self, delay_s: float) -> None:
        at = self.now + delay_s
        if at < self._next_read_at:
            self._next_read_at = at
            self.agenda.at(at, lambda: self._read(at))

    def _read(self, at: float) -> None:
        if at != self._next_read_at:
            return  # another reading took its place
        self._next_read_at = math.inf
        if self._lasts(Fault.NVML_HANGS):
            self._read_in(self._modes[Fault.NVML_HANGS, ""] - self.now)
            return
        self.post(self._readings)
        pause_s = FAST_READ_S if self.fast else IDLE_READ_S
        self._read_in(pause_s if self.fast or self.state.waiting else CALM_READ_S)

    def _readings(self, at: float) -> Event:
        if self._modes and self._lasts(Fault.NVML_LOST):
            return GpusLost(at, "timed out")
        return GpusRead(at, tuple(self._seen()))

    def _seen(self) -> Iterator[GpuReading]:
        for gpu in self.machine.total_mib:
            if not self._modes:
                yield self.machine.reading(gpu)
            elif self._lasts(Fault.NVML_ONE_GPU_LOST, gpu):
                yield GpuReading(index=gpu, error="unknown error")
            elif self._lasts(Fault.NVML_STALE, gpu):
                yield self._frozen[gpu]
            elif not self._lasts(Fault.GPU_GONE, gpu):
                yield self.machine.reading(gpu)

    # Asking the consumers

    def _probe_on(self, name: str) -> None:
        self._probe(name)
        self.agenda.after(PROBE_S, lambda: self._probe_on(name))

    def _probe(self, name: str) -> None:
        service = self.machine.services[name]
        if self._modes and self._lasts(Fault.PROBES_STOP, name):
            return
        attempt, epoch = self.state.consumers[name].attempt, self.machine.epoch
        report = self._report(service)
        late = 2.5 if self._modes and self._lasts(Fault.PROBE_LATE, name) else 0.03

        def answer() -> None:
            if epoch == self.machine.epoch:
                self.post(lambda at: ConsumerProbed(at, name, attempt, *report))

        self.agenda.after(late, answer)

    def _report(self, service: Service) -> tuple[bool, bool, bool | None]:
        """Whether it is reachable, healthy and resident, by its own word."""
        name, resident = service.name, service.loaded if service.spec.tells else None
        self._probes += 1
        if not service.alive:
            return False, False, None
        if not self._modes:
            return True, True, resident
        if self._lasts(Fault.PROBE_FLAPS, name) and self._probes % 2:
            service.doubtful = True
            return False, False, None
        if self._lasts(Fault.PROBE_SAYS_RESIDENT, name):
            resident = True
        elif self._lasts(Fault.PROBE_SAYS_ABSENT, name):
            resident = False
        if resident is not None and resident is not service.loaded:
            service.doubtful = True
        return True, not self._lasts(Fault.PROBE_UNHEALTHY, name), resident

    # Playing lines

    def _play(self, line: Visit | Strike) -> None:
        if isinstance(line, Visit):
            self._visit(line)
        else:
            self._strike(line)

    def _visit(self, visit: Visit) -> None:
        self.visits[visit.job] = visit
        self.records.comes(visit)
        v = visit
        self.post(
            lambda at: JobArrived(
                at, v.job, v.consumer, v.kind, v.priority, v.wait_s, v.idle_s, v.load_key
            )
        )

    def _lasts(self, fault: Fault, subject: str | int = "") -> bool:
        return self._modes.get((fault, subject), -math.inf) > self.now

    def _last(self, fault: Fault, subject: str | int, seconds: float) -> None:
        until = max(self._modes.get((fault, subject), -math.inf), self.now + seconds)
        self._modes[fault, subject] = until
        # A world without modes is cheap to look at.
        self.agenda.at(until, lambda: self._over(fault, subject))

    def _over(self, fault: Fault, subject: str | int) -> None:
        if not self._lasts(fault, subject):
            self._modes.pop((fault, subject), None)

    def _strike(self, strike: Strike) -> None:
        fault, service, gpu = strike.fault, self.machine.services[strike.subject], strike.gpu
        amount = strike.amount
        if self.story is not None:
            self.story.append(str(strike))
        self.records.strikes(strike)
        if fault is Fault.ANSWER_OF_OLD_ATTEMPT:
            for each in self.machine.services.values():
                self.machine.arm(each, fault, amount)
        elif fault in ARMED:
            self.machine.arm(service, fault, amount)
        elif fault in PHASES:
            self._phases.append(fault)
            self._leave_in_phase()
        elif self._strike_now(fault, service, gpu, amount) is not False:
            self.machine.met[fault] += 1

    def _strike_now(  # noqa: C901, PLR0912, PLR0915 - one arm a fault
        self, fault: Fault, service: Service, gpu: int, amount: float
    ) -> bool | None:
        """Let a fault happen; False when there was no opportunity."""
        machine, name = self.machine, service.name
        lasts_s = 0.5 + 8.0 * amount
        match fault:
            case Fault.FOOTPRINT_GREW | Fault.FOOTPRINT_SHRANK:
                factor = 1.0 + amount if fault is Fault.FOOTPRINT_GREW else 0.9 - 0.8 * amount
                service.true_mib = round(service.spec.policy.footprint_mib * factor)
            case Fault.FOREIGN_COMES:
                machine.set_foreign(gpu, machine.foreign_mib[gpu] + 500 + round(9000 * amount))
            case Fault.FOREIGN_GOES:
                machine.set_foreign(gpu, 0)
            case Fault.FOREIGN_SPIKE:
                before_mib = machine.foreign_mib[gpu]
                machine.set_foreign(gpu, before_mib + 500 + round(9000 * amount))
                self.agenda.after(0.5, lambda: machine.set_foreign(gpu, before_mib))
            case Fault.DIES_RESIDENT:
                if not service.loaded or service.computing:
                    return False
                machine.die(service, lasts_s)
            case Fault.RESTARTS_ITSELF:
                machine.die(service, 0.0)
            case Fault.RESTARTS_LOADED:
                machine.die(service, 0.0)
                machine.after(0.3, service, lambda: self._load_itself(service, gpu))
            case Fault.LOADS_ITSELF:
                return self._load_itself(service, gpu)
            case Fault.UNLOADS_ITSELF:
                if not service.loaded or service.computing or service.asked:
                    return False
                service.doubtful = True
                machine.drop(service)
            case Fault.PROBE_SAYS_RESIDENT | Fault.PROBE_SAYS_ABSENT if not service.spec.tells:
                return False
            case (
                Fault.PROBE_SAYS_RESIDENT
                | Fault.PROBE_SAYS_ABSENT
                | Fault.PROBE_FLAPS
                | Fault.PROBE_UNHEALTHY
                | Fault.PROBES_STOP
                | Fault.PROBE_LATE
            ):
                self._last(fault, name, lasts_s + PROBE_S)
                self.agenda.after(0.01, lambda: self._probe(name))
                self.agenda.after(lasts_s / 2, lambda: self._probe(name))
            case Fault.NVML_LOST:
                self._last(fault, "", lasts_s)
                self._read_in(0.005)
            case Fault.NVML_HANGS:
                self._last(fault, "", lasts_s)
                self._last(Fault.NVML_LOST, "", lasts_s + 0.1)
            case Fault.NVML_STALE:
                self._frozen[gpu] = machine.reading(gpu)
                self._last(fault, gpu, lasts_s)
            case Fault.NVML_ONE_GPU_LOST | Fault.GPU_GONE:
                self._last(fault, gpu, lasts_s)
                self._read_in(0.005)
            case Fault.ALL_LEAVE:
                jobs = [v.job for v in self.visits.values() if v.consumer == name]
                for job in jobs:
                    self._leave(job)
                return bool(jobs)
            case Fault.BURST:
                for number in range(2 + round(10 * amount)):
                    self._visit(self._extra(name, number, amount))
            case Fault.DEADLINE_STORM:
                for number, other in enumerate(machine.services):
                    for again in range(2):
                        self._visit(self._extra(other, 10 * number + again, amount, wait_s=2.0))
            case Fault.STATUS_POLL:
                views.take(self.state, self.now)
            case Fault.STALL:
                self._deaf_until = max(self._deaf_until, self.now + 0.2 + 4.0 * amount)
            case Fault.TIMERS_EARLY | Fault.TIMERS_LATE:
                self._last(fault, "", lasts_s)
            case Fault.SUSPEND:
                self._last(Fault.NVML_LOST, "", 0.4)
                for job in list(self.visits):
                    self._leave(job)
                for each in machine.services.values():
                    machine.die(each, 0.2)
            case _:
                self._ask(fault, name, amount)
        return None

    def _ask(self, fault: Fault, name: str, amount: float) -> None:
        """What people want of the broker."""
        request = f"{fault.name.lower()}-{len(self.requests)}-{self.now:.3f}"
        match fault:
            case Fault.UNLOAD_BY_HAND:
                name = self._at_work(name) if amount > 0.4 else name
                self.requests.add(request)
                self.post(lambda at: UnloadRequested(at, request, name))
                if amount > 0.6:  # and somebody wants it at once
                    self.agenda.after(0.05, lambda: self._visit(self._extra(name, 0, amount)))
            case Fault.RESTART_BY_HAND:
                name = self._at_work(name) if amount > 0.4 else name
                self.requests.add(request)
                self.post(lambda at: RestartRequested(at, request, name))
            case Fault.LOAD_BY_HAND:
                self._visit(Visit(self.now, request, name, kind=JobKind.LOAD))
            case Fault.PIN_BY_HAND:
                self.post(lambda at: PinRequested(at, name, pinned=True))
                unpin = PinRequested(0.0, name, pinned=False)
                self.agenda.after(
                    20.0 * amount,
                    lambda: self.post(lambda at: PinRequested(at, unpin.consumer, pinned=False)),
                )
            case Fault.UNPIN_BY_HAND:
                self.post(lambda at: PinRequested(at, name, pinned=False))
            case Fault.PAUSE:
                self.requests.add(request)
                self.post(lambda at: PauseRequested(at, request))
                self.agenda.after(10.0 * amount, lambda: self.post(ResumeRequested))
            case Fault.BROKER_KILLED:
                self._start_again()
            case Fault.BROKER_DRAINS:
                self.draining = True
                self.post(DrainRequested)
                epoch = self.machine.epoch
                self.agenda.after(
                    0.1 + 4.0 * amount,
                    lambda: self._start_again() if epoch == self.machine.epoch else None,
                )
            case _:
                raise AssertionError(f"nobody knows how {fault} happens")

    def _at_work(self, otherwise: str) -> str:
        """One that computes, if there is one."""
        services = self.machine.services.values()
        return next((s.name for s in services if s.computing), otherwise)

    def _extra(
        self, consumer: str, number: int, amount: float, wait_s: float | None = None
    ) -> Visit:
        job = f"x{self.now - self.scenario.starts_at:.3f}-{consumer}-{number}"
        return Visit(self.now, job, consumer, run_s=0.1 + round(amount, 1), wait_s=wait_s)

    def _load_itself(self, service: Service, gpu: int) -> bool:
        if service.loaded or service.asked or not service.alive:
            return False
        service.doubtful = True
        return self.machine.take(service, service.spec.policy.gpus or (gpu,))

    def _leave(self, job: str) -> None:
        self.post(lambda at: JobLeft(at, job))

    def _leave_in_phase(self) -> None:
        for fault in list(self._phases):
            if job := next(clients_in(self, PHASES[fault]), None):
                self._phases.remove(fault)
                self.machine.met[fault] += 1
                self.agenda.after(0.001, partial(self._leave, job))

    def _start_again(self) -> None:
        """A new broker knows nothing but how far the tokens have been given out."""
        self.note("the broker starts again")
        self.machine.broker_died()
        self.scheduler = Scheduler(self.scenario.policy, self.records.last_token + TOKEN_BLOCK)
        self.state = self.scheduler.state
        self.records = self.records.of_next_broker()
        for record in (self.timers, self.visits, self.requests):
            record.clear()
        self._deaf_until = -math.inf
        self.fast = self.draining = False
        self._read_in(0.002)
        for name in self.machine.services:
            self.agenda.after(0.05, partial(self._probe, name))

    # The end

    def _calm(self) -> None:
        """Nothing goes wrong any more."""
        self.note("all faults are over")
        self._modes.clear()
        self._phases.clear()
        self.machine.calm()
        for gpu in self.machine.foreign_mib:
            self.machine.set_foreign(gpu, 0)

    def _come_to_rest(self) -> None:
        patience_s = self.now + PATIENCE_S
        rested_since = self.now
        while self.now < rested_since + REST_S:
            self.agenda.step()
            unrest = rest.unrest(self)
            if unrest:
                rested_since = self.now
                if self.now > patience_s:
                    raise BrokenError(f"no rest: {unrest}")
        rest.check(self)
