"""A world in virtual time that plays everybody the scheduler deals with, faults included.

Services load and unload with delays, memory comes back late and in steps, clients leave, loads
fail, unloads hang or free nothing, processes die, foreign ones take memory, NVML is lost. One seed
makes one history. After every event the promises are checked that hold at any time.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from mgpu.core import admission, invariants, ordering, placement, preloading, swapping, vram
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
    Event,
    GpusLost,
    GpusRead,
    JobArrived,
    JobEnded,
    JobKind,
    JobLeft,
    LoadEnded,
    PauseRequested,
    PinRequested,
    RestartRequested,
    ResumeRequested,
    Timer,
    TimerFired,
    UnloadEnded,
    UnloadRequested,
)
from mgpu.core.model import ConsumerPolicy, ConsumerState, GpuReading, Order, Outcome, Policy
from mgpu.core.scheduler import Scheduler
from mgpu.core.state import Claim, Consumer
from mgpu.core.step import Step

HISTORY = 40
SAMPLE_FAST_S = 0.1
SAMPLE_IDLE_S = 1.0
PROBE_S = 5.0
CALM = 10
"""After the last fault everybody looks so many times less often."""
UNLOAD_DEADLINE_S = 3.0
QUIET_S = 700.0
"""Longer than any pause, deadline or limit: whatever was begun is over by then."""


@dataclass
class Service:
    """What is really the case with one consumer."""

    policy: ConsumerPolicy
    held_mib: dict[int, int] = field(default_factory=dict)
    loaded: bool = False
    generation: int = 0
    """Number of its process: what an older one had begun is void."""
    asked: int = 0
    """Loads and unloads under way; never more than one."""


@dataclass(frozen=True)
class Faults:
    """Chances from 0 to 1, of one load, unload, job or probe each."""

    load_fails: float = 0.0
    unload_hangs: float = 0.0
    unload_frees_nothing: float = 0.0
    dies: float = 0.0
    client_leaves: float = 0.0
    nvml_lost: float = 0.0
    foreign: float = 0.0
    unload_by_hand: float = 0.0
    job_hangs: float = 0.0
    restart_by_hand: float = 0.0
    pin_by_hand: float = 0.0
    pause: float = 0.0


class World:
    """``jobs`` arrive in the first ``span_s`` seconds; the faults end when the last has arrived.

    Jobs wait for ``patience_s``, or for different times.
    """

    def __init__(
        self,
        seed: int,
        policy: Policy,
        *,
        jobs: int,
        span_s: float,
        gpus: int,
        faults: Faults,
        patience_s: float | None = None,
    ) -> None:
        self.chance = random.Random(seed)
        self.scheduler = Scheduler(policy)
        self.state = self.scheduler.state
        self.now = 0.0
        self.faults = faults
        self.faults_end = span_s
        self.patience_s = [None, 5.0, 60.0] if patience_s is None else [patience_s]
        self.total_mib = dict.fromkeys(range(gpus), 24576)
        self.foreign_mib = dict.fromkeys(range(gpus), 0)
        self.services = {name: Service(p) for name, p in policy.consumers.items()}
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.number = 0
        self.timers: dict[Timer, float] = {}
        self.deadlines: dict[str, float] = {}
        self.running: dict[str, int] = {}
        self.at_work: dict[str, str] = {}
        self.cut_off: set[str] = set()
        self.ended: dict[str, Finish] = {}
        self.asked: set[str] = set()
        self.sample_s = SAMPLE_IDLE_S
        self.sampling = 0
        self.last_token = 0
        self.trace: list[str] = []
        self.history: deque[str] = deque(maxlen=HISTORY)
        for service in self.services.values():
            if service.policy.initially is ConsumerState.RESIDENT:
                self._take(service, service.policy.gpus or (0,))
        self._plan_arrivals(jobs, span_s)
        self._later(0.0, self._sample)
        for name in self.services:
            self._later(self.chance.uniform(0.0, PROBE_S), partial(self._probe, name))

    def run(self) -> None:
        """Play to the end: until every job has ended, and all that was begun is over."""
        self._run_until(self.faults_end + QUIET_S)
        self._check_quiet()

    def _run_until(self, end: float) -> None:
        while self.queue and self.queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self.queue)
            action()

    def _later(self, delay_s: float, action: Callable[[], None]) -> int:
        self.number += 1
        heapq.heappush(self.queue, (self.now + delay_s, self.number, action))
        return self.number

    def _calmly(self, pause_s: float) -> float:
        return pause_s if self.now < self.faults_end else pause_s * CALM

    def _roll(self, chance: float) -> bool:
        return self.now < self.faults_end and self.chance.random() < chance

    # What the scheduler is told

    def _post(self, event: Event) -> None:
        self.history.append(repr(event))
        effects = self.scheduler.handle(event)
        self.trace.extend(map(repr, effects))
        self.history.extend(
            f"    {e}" for e in effects if not isinstance(e, SetTimer | CancelTimer)
        )
        self._check(effects)
        for effect in effects:
            self._do(effect)

    def _plan_arrivals(self, jobs: int, span_s: float) -> None:
        names = sorted(self.services)
        for number in range(jobs):
            at = self.chance.uniform(0.0, span_s)
            name = self.chance.choice(names)
            self._later(at, partial(self._arrive, f"j{number}", name))
            for chance, act in (
                (self.faults.unload_by_hand, self._unload_by_hand),
                (self.faults.restart_by_hand, self._restart_by_hand),
                (self.faults.pin_by_hand, self._pin_by_hand),
                (self.faults.pause, self._pause),
            ):
                if self.chance.random() < chance:
                    self._later(at, partial(act, f"r{number}-{act.__name__}", name))
        self._later(span_s, lambda: self._post(ResumeRequested(self.now)))
        self._later(span_s + QUIET_S / 2, self._unpin_all)

    def _arrive(self, job: str, consumer: str) -> None:
        kind = JobKind.LOAD if self.chance.random() < 0.03 else JobKind.COMPUTE
        wait_s = self.chance.choice(self.patience_s)
        priority = self.chance.choice([None, None, None, 1])
        self.deadlines[job] = self.now + (
            self.state.policy.max_wait_s if wait_s is None else wait_s
        )
        if self._roll(self.faults.client_leaves):
            self._later(self.chance.uniform(0.0, 20.0), lambda: self._post(JobLeft(self.now, job)))
        idle_s = self.chance.choice([None, None, 0.0, 10.0, math.inf])
        self._post(JobArrived(self.now, job, consumer, kind, priority, wait_s, idle_s))

    def _unload_by_hand(self, request: str, consumer: str) -> None:
        self.asked.add(request)
        self._post(UnloadRequested(self.now, request, consumer))

    def _restart_by_hand(self, request: str, consumer: str) -> None:
        self.asked.add(request)
        self._post(RestartRequested(self.now, request, consumer))

    def _pin_by_hand(self, _request: str, consumer: str) -> None:
        self._post(PinRequested(self.now, consumer, pinned=self.chance.random() < 0.5))

    def _pause(self, request: str, _consumer: str) -> None:
        self.asked.add(request)
        self._post(PauseRequested(self.now, request))
        length_s = self.chance.uniform(0.0, 10.0)
        self._later(length_s, lambda: self._post(ResumeRequested(self.now)))

    def _sample(self) -> None:
        if self._roll(self.faults.nvml_lost):
            self._post(GpusLost(self.now, "timed out"))
        else:
            self._post(GpusRead(self.now, tuple(self._reading(i) for i in self.total_mib)))
        if self._roll(self.faults.foreign):
            index = self.chance.choice(sorted(self.foreign_mib))
            self.foreign_mib[index] = self.chance.choice([0, 0, 3000])
        idle = self.sample_s == SAMPLE_IDLE_S
        self._sample_in(self._calmly(self.sample_s) if idle else self.sample_s)

    def _reading(self, index: int) -> GpuReading:
        if self._roll(self.faults.nvml_lost):
            return GpuReading(index=index, error="unknown error")
        total_mib = self.total_mib[index]
        return GpuReading(index=index, total_mib=total_mib, free_mib=max(0, self._free_mib(index)))

    def _free_mib(self, index: int) -> int:
        held_mib = sum(s.held_mib.get(index, 0) for s in self.services.values())
        return self.total_mib[index] - self.foreign_mib[index] - held_mib

    def _probe(self, name: str) -> None:
        service = self.services[name]
        if not service.asked and self._roll(self.faults.dies):
            self._die(service)
        attempt = self.state.consumers[name].attempt
        tells = service.policy.can_load or None
        event = (name, attempt, True, True, tells and service.loaded)
        self._later(0.05, lambda: self._post(ConsumerProbed(self.now, *event)))
        self._later(self._calmly(PROBE_S), lambda: self._probe(name))

    def _die(self, service: Service) -> None:
        """Its process ends and is started again: everything of it is free, and its jobs fail."""
        service.generation += 1
        self._drop(service)
        for job in list(self.state.consumers[service.policy.name].running):
            self._end(job, Outcome.FAILED)

    # What the scheduler wants done

    def _do(self, effect: Effect) -> None:  # noqa: C901, PLR0912 - one arm an effect
        match effect:
            case StartLoad(name, attempt, gpus):
                self._load(self.services[name], attempt, gpus)
            case StartUnload(name, attempt, escalate):
                self._unload(self.services[name], attempt, escalate=escalate)
            case Grant(job, consumer):
                self.running[job] = effect.token
                service = self.services[consumer]
                if not service.loaded:
                    self._take(service, effect.gpus)
                length_s = self.chance.expovariate(1 / 1.5)
                if self._roll(self.faults.job_hangs):
                    length_s = QUIET_S
                self._later(length_s, lambda: self._end(job, Outcome.DONE))
            case Abort(job):
                self._later(0.1, lambda: self._end(job, Outcome.CANCELLED))
            case Finish(job):
                assert job not in self.ended, f"{job} ended twice"
                if not job.startswith(preloading.JOB_PREFIX):
                    self.ended[job] = effect
            case Answer(request):
                self.asked.remove(request)
            case SetTimer(timer, at):
                self.timers[timer] = at
                self._later(at - self.now, lambda: self._fire(timer, at))
            case CancelTimer(timer):
                self.timers.pop(timer, None)
            case Sample(fast):
                self.sample_s = SAMPLE_FAST_S if fast else SAMPLE_IDLE_S
                self._sample_in(0.005)
            case _:
                pass

    def _sample_in(self, delay_s: float) -> None:
        self.queue = [entry for entry in self.queue if entry[1] != self.sampling]
        heapq.heapify(self.queue)
        self.sampling = self._later(delay_s, self._sample)

    def _fire(self, timer: Timer, at: float) -> None:
        if self.timers.get(timer) == at:
            del self.timers[timer]
            self._post(TimerFired(self.now, timer))

    def _end(self, job: str, outcome: Outcome) -> None:
        if (token := self.running.pop(job, None)) is not None:
            self._post(JobEnded(self.now, job, token, outcome))

    def _take(self, service: Service, gpus: tuple[int, ...]) -> None:
        service.loaded = True
        share_mib = service.policy.footprint_mib // len(gpus)
        service.held_mib = dict.fromkeys(gpus, share_mib)

    def _load(self, service: Service, attempt: int, gpus: tuple[int, ...]) -> None:
        self._begin(service)
        half_s, generation = self.chance.uniform(0.1, 1.5), service.generation
        fails = self._roll(self.faults.load_fails)

        def half_way() -> None:
            if not fails and service.generation == generation:
                self._take(service, gpus)

        def over() -> None:
            service.asked -= 1
            lost = fails or service.generation != generation
            error = "it broke" if lost else None
            if any(self._free_mib(index) < 0 for index in gpus):
                error = "out of memory"
                self._drop(service)
            self._post(LoadEnded(self.now, service.policy.name, attempt, error))

        self._later(half_s, half_way)
        self._later(2 * half_s, over)

    def _unload(self, service: Service, attempt: int, *, escalate: bool) -> None:
        self._begin(service)
        if not escalate and self._roll(self.faults.unload_hangs):
            self._later(UNLOAD_DEADLINE_S, lambda: self._unloaded(service, attempt, "it hangs"))
            return
        if escalate or not self._roll(self.faults.unload_frees_nothing):
            lag_s = self.chance.choice([0.0, 0.3, 1.5])
            self._later(lag_s / 2, lambda: self._halve(service))
            self._later(lag_s, lambda: self._drop(service))
        answer_s = self.chance.uniform(0.0, 0.5)
        self._later(answer_s, lambda: self._unloaded(service, attempt, None))

    def _begin(self, service: Service) -> None:
        assert not service.asked, f"{service.policy.name} is asked twice at once"
        service.asked += 1

    def _unloaded(self, service: Service, attempt: int, error: str | None) -> None:
        service.asked -= 1
        self._post(UnloadEnded(self.now, service.policy.name, attempt, error))

    def _halve(self, service: Service) -> None:
        service.held_mib = {index: mib // 2 for index, mib in service.held_mib.items()}

    def _drop(self, service: Service) -> None:
        service.loaded = False
        service.held_mib.clear()

    # What must hold

    def _check(self, effects: list[Effect]) -> None:
        invariants.check(self.state)
        invariants.check_effects(self.state, effects)
        self._check_nobody_is_unloaded_at_work(effects)
        for effect in effects:
            if isinstance(effect, Grant):
                assert effect.token > self.last_token, "tokens do not grow"
                self.last_token = effect.token
                self._check_not_overtaken(effect)
        for job in self.state.jobs.values():
            waits = not job.token
            deadline = self.deadlines.get(job.id, math.inf)
            assert not waits or self.now <= deadline + 1e-6, f"{job.id} waits on"
        self._check_work_conserving()

    def _check_nobody_is_unloaded_at_work(self, effects: list[Effect]) -> None:
        """Save for a busy timeout or a person's restart, which tell the job's holder so."""
        for effect in effects:
            match effect:
                case Abort(job, refusal) if refusal.code in {"job-timeout", "consumer-failed"}:
                    self.cut_off.add(job)
                case Grant(job, consumer):
                    self.at_work[job] = consumer
                case StartUnload(consumer):
                    for job, where in self.at_work.items():
                        works = job in self.running and job not in self.cut_off
                        assert not (where == consumer and works), f"unloaded under {job}"
                case _:
                    pass

    def _check_not_overtaken(self, grant: Grant) -> None:
        """Nobody overtakes a job that has waited for ``max_overtake_s``."""
        limit = self.now - self.state.policy.max_overtake_s
        for consumer in self.state.consumers.values():
            if consumer.name != grant.consumer:
                for job in consumer.waiting:
                    older = job.arrived_at <= limit and job.seq < self._seq(grant.job)
                    shares = placement.where(self.state, consumer) & set(grant.gpus)
                    assert not (older and shares), f"{grant.job} overtakes {job.id}"

    def _seq(self, job: str) -> int:
        return self.state.jobs[job].seq

    def _check_work_conserving(self) -> None:
        """Whoever is next and could be served is being served."""
        if self.state.paused:
            return
        turns = ordering.turns(self.state, self.now)
        if turns and self.state.gpus:
            first = turns[0].consumer
            assert not self._servable(turns[0]), f"{first.name} is next and could be served"
        if self.state.policy.order is Order.RESIDENT_FIRST and not any(t.barrier for t in turns):
            highest = max((turn.job.priority for turn in turns), default=0)
            for turn in (turn for turn in turns if turn.job.priority == highest):
                assert not self._servable(turn), f"{turn.consumer.name} could be served"

    def _servable(self, turn: ordering.Turn) -> bool:
        consumer = turn.consumer
        if consumer.state is ConsumerState.ABSENT and consumer.name not in self.state.swaps:
            busy = swapping._busy(Step(self.now, self.state))
            plan = placement.plan(self.state, consumer, self.now, busy=busy, claim=turn.claim)
            fresh = vram.figures_are_fresh(self.state, self.now)
            return fresh and isinstance(plan, placement.Plan)
        return admission.grantable(self.state, consumer)

    def _check_quiet(self) -> None:
        arrived = self.deadlines.keys()
        assert self.ended.keys() == arrived, f"no end: {arrived - self.ended.keys()}"
        assert not self.state.jobs
        assert not self.state.waiting
        assert not self.state.swaps
        assert not self.asked, f"no answer: {self.asked}"
        assert not self.running
        assert not self.state.sampling_fast
        for consumer in self.state.consumers.values():
            assert not consumer.running
            assert not consumer.waiting
            assert consumer.unload is None, f"{consumer.name} is {consumer.state}"
        for gpu in self.state.gpus.values():
            assert not gpu.holders
        assert not self.timers

    def _unpin_all(self) -> None:
        """After the faults every pinned consumer is in memory; one that fits nowhere tries on."""
        for consumer in self.state.consumers.values():
            kept = consumer.state is ConsumerState.RESIDENT
            assert kept or not self._to_be_kept(consumer), f"{consumer.name} is not kept"
            self._post(PinRequested(self.now, consumer.name, pinned=False))

    def _to_be_kept(self, consumer: Consumer) -> bool:
        """Whether a pinned consumer has no excuse for its absence."""
        busy = swapping._busy(Step(self.now, self.state))
        plan = placement.plan(self.state, consumer, self.now, busy=busy, claim=Claim(math.inf))
        fits = isinstance(plan, placement.Plan)
        kept = consumer.pinned and consumer.policy.can_load and not consumer.unloaded_by_hand
        absent = consumer.state is ConsumerState.ABSENT
        return kept and fits and absent and consumer.preload_after <= self.now
