"""What is really the case: simulated services, and the memory of simulated GPUs.

The scheduler never sees this; it hears of it through completions, probes and readings. A service
does what it is asked, unless a fault that waits for such an opportunity is armed: one fault is used
up per load, unload or job. Every load and unload ends by a deadline of its own with an error, as
the controllers of a real broker see to; so a completion that is lost is one that reports a failure
of what succeeded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

from mgpu.core.effects import Grant, StartLoad, StartUnload
from mgpu.core.events import Event, JobEnded, JobLeft, LoadEnded, UnloadEnded
from mgpu.core.model import ConsumerState, Outcome
from mgpu.simulation.agenda import Agenda
from tests.faults.kinds import Fault
from tests.faults.memory import Memory
from tests.faults.scenario import OWN_KEY, Scenario
from tests.faults.service import OF_JOBS, OF_LOADS, OF_UNLOADS, Computing, Service

LOAD_DEADLINE_S = 25.0
UNLOAD_DEADLINE_S = 3.0
REFUSED = "connection refused"
"""The error of a load that has not begun."""
STOP_S = 0.3
"""How long a unit takes to stop."""
FOR_EVER_S = 1e9

Post = Callable[[Callable[[float], Event]], None]
"""Tells the broker; the moment is the one at which it hears of it."""


class Machine:
    """All services. ``post`` tells the broker; ``changed`` is called as memory moves."""

    def __init__(
        self, scenario: Scenario, agenda: Agenda, post: Post, changed: Callable[[], None]
    ) -> None:
        self._agenda = agenda
        self._post = post
        self.epoch = 0
        """Number of the broker: an older one's completions reach nobody."""
        self.met: Counter[Fault] = Counter()
        self.services = {
            spec.name: Service(spec, spec.true_mib or spec.policy.footprint_mib)
            for spec in scenario.specs
        }
        self.memory = Memory(scenario, self.services, agenda, changed)
        self.out_of_memory: list[str] = []
        """Whose loads there was no room for."""
        self.unbilled = False
        """A job made its consumer take memory that nobody kept free: one that manages its own, or
        one that was only guessed to hold it, beside foreign memory that hid the difference."""
        for service in self.services.values():
            if service.spec.policy.initially is ConsumerState.RESIDENT:
                service.doubtful = not self.memory.take(service, service.spec.policy.gpus or (0,))

    # Faults

    def arm(self, service: Service, fault: Fault, amount: float) -> None:
        """Let a fault wait for its opportunity."""
        service.armed.setdefault(fault, []).append(amount)
        if fault is Fault.ESCALATION_HANGS:  # which comes after another failure only
            service.armed.setdefault(Fault.UNLOAD_HANGS, []).append(amount)
        if fault is Fault.ANSWER_OF_OLD_ATTEMPT:  # a failure makes a next attempt likely
            failure = Fault.LOAD_FAILS if amount < 0.5 else Fault.UNLOAD_HANGS
            service.armed.setdefault(failure, []).append(amount)

    def _opportunity(
        self, service: Service, faults: tuple[Fault, ...]
    ) -> tuple[Fault | None, float]:
        for fault in faults:
            if waiting := service.armed.get(fault):
                amount = waiting.pop(0)
                self.met[fault] += 1
                return fault, amount
        return None, 0.0

    def die(self, service: Service, back_s: float) -> None:
        """A process ends: everything of it is free, and its jobs fail."""
        service.generation += 1
        service.alive = False
        service.doubtful = True
        self.memory.drop(service)
        for job in list(service.computing):
            self._agenda.after(0.01, partial(self._end, service, job, Outcome.FAILED))
        self._agenda.after(back_s, lambda: setattr(service, "alive", True))

    def after(self, delay_s: float, service: Service, action: Callable[[], object]) -> None:
        """Do something later, unless the service's process has ended by then."""
        generation = service.generation

        def act() -> None:
            if service.generation == generation:
                action()

        self._agenda.after(delay_s, act)

    # Loads

    def load(self, effect: StartLoad) -> None:  # noqa: C901 - one way a fault
        """Begin to load a service as the broker wants it."""
        service = self._begin(effect.consumer, "load")
        fault, amount = self._opportunity(service, OF_LOADS)
        starts = service.alive or service.spec.policy.can_escalate
        if fault is Fault.LOAD_REFUSED or not starts:
            self._loaded_in(0.01, service, effect, REFUSED)
            return
        if fault is Fault.LOAD_HANGS:
            self._loaded_in(LOAD_DEADLINE_S, service, effect, "it did not end in time")
            return
        service.alive = True
        key = OWN_KEY if effect.load_key is None else effect.load_key
        if service.loaded:
            service.loaded_key = key
            self._loaded_in(0.05, service, effect, None)
            return
        load_s = service.spec.load_s * (5.0 if fault is Fault.LOAD_SLOW else 1.0)
        generation = service.generation
        trouble: list[str] = []

        def half_way() -> None:
            if fault is Fault.FOREIGN_DURING_LOAD:
                gpu = effect.gpus[0]
                self.memory.set_foreign(
                    gpu, self.memory.foreign_mib[gpu] + 1000 + round(8000 * amount)
                )
            if fault is Fault.LOAD_FAILS:
                trouble.append("it broke")
            elif not self.memory.take(service, effect.gpus, key):
                trouble.append("out of memory")
                self.out_of_memory.append(service.name)
            elif fault is Fault.LOAD_LEAVES_MEMORY:
                trouble.append("it broke late")
                self.memory.drop(service, kept=0.5)
                self.after(1.0 + 8.0 * amount, service, lambda: self._clear_unless(service))
            if fault is Fault.DIES_LOADING:
                self.die(service, 0.1 + 3.0 * amount)

        def over() -> None:
            if service.generation != generation:
                trouble.append("its process ended")
            if fault is Fault.LOAD_ANSWER_LOST:
                trouble.append("it did not answer in time")
                service.doubtful = True
            self._loaded(service, effect, trouble[0] if trouble else None, epoch)

        epoch = self.epoch
        self.after(load_s / 2, service, half_way)
        lost_s = LOAD_DEADLINE_S if fault is Fault.LOAD_ANSWER_LOST else 0.0
        self._agenda.after(max(load_s, lost_s), over)

    def _clear_unless(self, service: Service) -> None:
        if not service.loaded:
            self.memory.drop(service)

    def _begin(self, name: str, kind: str) -> Service:
        service = self.services[name]
        assert not service.asked, f"{name} is asked for two things at once"
        service.asked = True
        self._answer_again(service, kind)
        return service

    def _loaded_in(
        self, delay_s: float, service: Service, effect: StartLoad, error: str | None
    ) -> None:
        epoch = self.epoch
        self._agenda.after(delay_s, lambda: self._loaded(service, effect, error, epoch))

    def _loaded(self, service: Service, effect: StartLoad, error: str | None, epoch: int) -> None:
        if epoch != self.epoch:
            return
        service.asked = False
        if error is None:
            service.doubtful = not service.loaded
        name, attempt = effect.consumer, effect.attempt
        begun = error != REFUSED
        self._answer(service, "load", lambda at: LoadEnded(at, name, attempt, error, begun))

    def _answer(self, service: Service, kind: str, make: Callable[[float], Event]) -> None:
        """Post a completion, and do so again where a fault wants it."""
        self._post(make)
        if waiting := service.armed.get(Fault.ANSWER_TWICE):
            waiting.pop(0)
            self.met[Fault.ANSWER_TWICE] += 1
            self._post(make)
        service.last_answers[kind] = make

    def _answer_again(self, service: Service, kind: str) -> None:
        """While the next load or unload is under way, the last one's completion comes once more."""
        waiting, old = (
            service.armed.get(Fault.ANSWER_OF_OLD_ATTEMPT),
            service.last_answers.get(kind),
        )
        if waiting and old is not None:
            waiting.pop(0)
            self.met[Fault.ANSWER_OF_OLD_ATTEMPT] += 1
            epoch = self.epoch
            self._agenda.after(0.02, lambda: self._post(old) if epoch == self.epoch else None)

    # Unloads

    def unload(self, effect: StartUnload) -> None:  # noqa: C901 - one way a fault
        """Begin to unload a service as the broker wants it."""
        service = self._begin(effect.consumer, "unload")
        if effect.escalate:
            self._stop(service, effect)
            return
        fault, amount = self._opportunity(service, OF_UNLOADS)
        unload_s, epoch = service.spec.unload_s, self.epoch
        if fault is Fault.UNLOAD_REFUSED or not service.alive:
            self._unloaded_in(0.01, service, effect, "connection refused")
        elif fault is Fault.UNLOAD_HANGS:
            self._unloaded_in(UNLOAD_DEADLINE_S, service, effect, "it did not end in time")
        elif fault is Fault.UNLOAD_ANSWER_LOST:
            self.after(unload_s, service, lambda: self._let_go(service, epoch))
            self._unloaded_in(UNLOAD_DEADLINE_S, service, effect, "it did not answer in time")
        elif fault is Fault.MEMORY_NEVER_BACK:
            self.after(unload_s, service, lambda: self._let_go(service, epoch, kept=1.0))
            self._unloaded_in(unload_s, service, effect, None)
        elif fault is Fault.RESIDUAL_LEFT:
            self.after(
                unload_s, service, lambda: self._let_go(service, epoch, kept=0.1 + 0.8 * amount)
            )
            self._unloaded_in(unload_s, service, effect, None)
        elif fault is Fault.LATE_MEMORY:
            late_s = unload_s + 0.3 + 3.0 * amount
            self.after(unload_s, service, lambda: self._let_go(service, epoch, kept=1.0))
            self.after(late_s, service, lambda: self._clear_unless(service))
            self._unloaded_in(unload_s, service, effect, None)
        elif fault is Fault.MEMORY_IN_STEPS:
            self.after(unload_s, service, lambda: self._let_go(service, epoch, kept=0.4))
            late_s = unload_s + 0.2 + 2.0 * amount
            self.after(late_s, service, lambda: self._clear_unless(service))
            self._unloaded_in(unload_s, service, effect, None)
        elif fault is Fault.MEMORY_BEFORE_ANSWER:
            self.after(unload_s, service, lambda: self._let_go(service, epoch))
            self._unloaded_in(unload_s + 0.5 + 1.5 * amount, service, effect, None)
        elif fault is Fault.DIES_UNLOADING:
            self.after(unload_s / 2, service, lambda: self.die(service, 0.1 + 3.0 * amount))
            self._unloaded_in(unload_s, service, effect, "connection reset")
        else:
            self.after(unload_s, service, lambda: self._let_go(service, epoch))
            self._unloaded_in(unload_s, service, effect, None)

    def _stop(self, service: Service, effect: StartUnload) -> None:
        hangs = service.armed.get(Fault.ESCALATION_HANGS)
        if hangs:
            hangs.pop(0)
            self.met[Fault.ESCALATION_HANGS] += 1
            self._unloaded_in(UNLOAD_DEADLINE_S, service, effect, "the unit did not stop")
            return
        # A stopped unit stays down until it is started to load.
        self.after(STOP_S, service, lambda: self.die(service, FOR_EVER_S))
        self._unloaded_in(STOP_S, service, effect, None)

    def _let_go(self, service: Service, epoch: int, *, kept: float = 0.0) -> None:
        """What a service computes on fails with its memory.

        Of what the broker of another epoch has asked for the present one knows nothing.
        """
        service.doubtful |= epoch != self.epoch
        for job in list(service.computing):
            self._end(service, job, Outcome.FAILED)
        self.memory.drop(service, kept=kept)

    def _unloaded_in(
        self, delay_s: float, service: Service, effect: StartUnload, error: str | None
    ) -> None:
        epoch = self.epoch
        name, attempt = effect.consumer, effect.attempt

        def over() -> None:
            if epoch == self.epoch:
                service.asked = False
                self._answer(service, "unload", lambda at: UnloadEnded(at, name, attempt, error))

        self._agenda.after(delay_s, over)

    # Jobs

    def compute(self, grant: Grant, run_s: float, *, roomed: bool) -> None:
        """A job computes; it loads its service first where nobody else did.

        ``roomed``: the broker has made room for that.
        """
        service, job = self.services[grant.consumer], grant.job
        now_s = self._agenda.now_s
        fault, amount = self._opportunity(service, OF_JOBS)
        if not service.alive:
            run_s, fault = 0.02, Fault.JOB_FAILS
        elif not service.loaded:
            half_s = service.spec.load_s / 2
            run_s += 2 * half_s
            load = partial(self._load_by_job, service, job, grant.gpus, roomed=roomed)
            self.after(half_s, service, load)
        ends_s = FOR_EVER_S if fault is Fault.JOB_HANGS else run_s
        computing = Computing(grant.token, now_s, now_s + ends_s)
        service.computing[job] = computing
        outcome = Outcome.FAILED if fault is Fault.JOB_FAILS else Outcome.DONE
        if fault is not Fault.JOB_HANGS:
            self.after(run_s, service, lambda: self._end(service, job, outcome))
        if fault is Fault.DIES_IN_JOB:
            self.after(run_s / 2, service, lambda: self.die(service, 0.1 + 5.0 * amount))
        elif fault is Fault.JOB_TAKES_MEMORY:
            self.after(run_s / 2, service, lambda: self.memory.grow(service, round(3000 * amount)))
        elif fault is Fault.END_TWICE:
            self._later_end(run_s + 0.01 + amount, job, grant.token)
        elif fault is Fault.END_WITH_OLD_TOKEN:
            self._later_end(run_s / 2, job, grant.token - 1)
        elif fault is Fault.LEAVES_AT_THE_END:
            left = JobLeft(0.0, job)
            self._agenda.after(run_s, lambda: self._post(lambda at: JobLeft(at, left.job)))
        elif fault is Fault.LETS_GO_LATE:
            computing.lets_go_s = 1.0 + 6.0 * amount

    def _load_by_job(
        self, service: Service, job: str, gpus: tuple[int, ...], *, roomed: bool
    ) -> None:
        if job not in service.computing or service.loaded:
            return
        hidden = not roomed and any(self.memory.is_hidden(gpu) for gpu in gpus)
        self.unbilled |= service.spec.policy.vram_managed or hidden
        if not self.memory.take(service, gpus):
            self._end(service, job, Outcome.FAILED)

    def _later_end(self, delay_s: float, job: str, token: int) -> None:
        epoch = self.epoch

        def end() -> None:
            if epoch == self.epoch:
                self._post(lambda at: JobEnded(at, job, token, Outcome.DONE))

        self._agenda.after(delay_s, end)

    def abort(self, consumer: str, job: str) -> None:
        """The broker lets go of a job's connections."""
        service = self.services[consumer]
        if (computing := service.computing.get(job)) is not None:
            let_go_s = computing.lets_go_s
            self._agenda.after(let_go_s, lambda: self._end(service, job, Outcome.CANCELLED))

    def _end(self, service: Service, job: str, outcome: Outcome) -> None:
        if (computing := service.computing.pop(job, None)) is not None:
            token = computing.token
            self._post(lambda at: JobEnded(at, job, token, outcome))

    # The broker

    def broker_died(self) -> None:
        """Whatever the old broker had asked for reaches its end, and nobody is told."""
        self.epoch += 1
        for service in self.services.values():
            service.asked = False
            service.last_answers.clear()
            service.doubtful = True
            for job, computing in list(service.computing.items()):
                if computing.ends_at >= FOR_EVER_S:
                    del service.computing[job]

    def calm(self) -> None:
        """Nothing more goes wrong: every fault that waits is forgotten, every process is up."""
        for service in self.services.values():
            service.armed.clear()
            if not service.spec.policy.can_escalate:
                service.alive = True
