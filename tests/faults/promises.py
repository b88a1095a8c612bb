"""What must hold after every event, whatever the world does; and what must hold at rest.

The promises are checked against what really happened and against records kept here. Where the
scheduler's own figures are needed (a learned footprint, a leftover) they are read from its state,
but no judgement is left to its code. A promise that a fault excuses says which.

1. Nobody is unloaded under a running job that was not cut off before.
2. A load begins only where free memory as last read covers footprint and cushion, and where the
   books do so too; with nothing wrong in the world no load ever runs out of memory.
3. Under the exclusive lock one consumer computes on a GPU, one that was stopped at its work until
   it has answered; tokens grow, across restarts too, and an old one ends nothing.
4. One load or unload per consumer at a time; who is on the way out takes no job until it is absent.
5. A job ends exactly once, is granted at most once, and only while its consumer is there.
6. Nobody is overtaken after ``max_overtake_s``; every wait has a timer at its deadline, and is over
   when that has fired.
7. The oldest of the highest priority never waits for what it could have.
8. Nobody is evicted in vain: not for a target that fits without, not for one that cannot fit, not
   for nobody, and never one that must stay; who is brought back is in nobody's way.
9. At rest nothing is running, reserved, locked, asked for or timed but the clocks of the idle.
10. Queues and timers are bounded.
11. A job never computes while its consumer is loaded otherwise than the job asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mgpu.core import invariants
from mgpu.core.effects import (
    Abort,
    Answer,
    CancelTimer,
    Effect,
    Evicted,
    Finish,
    Grant,
    LoadMeasured,
    SetTimer,
    StartLoad,
    StartUnload,
    StateChanged,
    UnloadMeasured,
)
from mgpu.core.events import (
    ConsumerProbed,
    Event,
    GpusLost,
    GpusRead,
    JobArrived,
    JobEnded,
    LoadEnded,
    PauseRequested,
    Timer,
    TimerFired,
    TimerKind,
    UnloadEnded,
)
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import LockMode, NothingToEvict, Outcome
from mgpu.core.state import Consumer
from tests.faults import books, conserving, evictions, restores, turns
from tests.faults.broken import hold
from tests.faults.kinds import Fault
from tests.faults.scenario import Strike, Visit
from tests.faults.turns import EPSILON_S

if TYPE_CHECKING:
    from tests.faults.world import World


CLIENTS_AND_PEOPLE = frozenset(
    {
        Fault.LEAVES_QUEUED,
        Fault.LEAVES_EVICTING,
        Fault.LEAVES_SETTLING,
        Fault.LEAVES_LOADING,
        Fault.LEAVES_COMPUTING,
        Fault.LEAVES_STREAMING,
        Fault.LEAVES_AT_THE_END,
        Fault.ALL_LEAVE,
        Fault.LETS_GO_LATE,
        Fault.BURST,
        Fault.DEADLINE_STORM,
        Fault.UNLOAD_BY_HAND,
        Fault.LOAD_BY_HAND,
        Fault.PIN_BY_HAND,
        Fault.UNPIN_BY_HAND,
        Fault.PAUSE,
        Fault.STATUS_POLL,
        Fault.JOB_FAILS,
        Fault.JOB_HANGS,
        Fault.END_TWICE,
        Fault.END_WITH_OLD_TOKEN,
        Fault.ANSWER_TWICE,
        Fault.ANSWER_OF_OLD_ATTEMPT,
        Fault.LATE_MEMORY,
        Fault.MEMORY_IN_STEPS,
        Fault.MEMORY_BEFORE_ANSWER,
        Fault.LOAD_SLOW,
        Fault.TIMERS_EARLY,
        Fault.TIMERS_LATE,
        Fault.STALL,
        Fault.PROBES_STOP,
        Fault.PROBE_LATE,
        Fault.PROBE_UNHEALTHY,
    }
)
"""Faults that move no memory behind the scheduler's back: these excuse nothing about memory."""


@dataclass(slots=True)
class Lease:
    """A job that computes as far as the scheduler knows."""

    consumer: str
    token: int
    gpus: tuple[int, ...]


class Promises:
    """Records of what was seen, and the checks on them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.last_token = 0
        self._seen_out_of_memory = 0
        self._shaken = False
        """Memory may have moved behind the scheduler's back."""
        self._fresh_records()

    def _fresh_records(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._cut: dict[str, tuple[int, ...]] = {}
        """Consumers stopped at their work that may not know of it yet."""
        self._ended: set[str] = set()
        self._waiting: dict[str, tuple[float, float]] = {}
        """Jobs that wait: when they came, and until when they may."""
        self._aborted: set[str] = set()
        self._leaving: set[str] = set()
        self._resident_since: dict[str, float] = {}
        self._unused: set[str] = set()
        """Consumers that have done nothing since they became resident."""
        self._failed: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._loads_failed: dict[str, int] = {}
        self._readable: dict[int, bool] = {}
        self._read_at = -math.inf
        self._unloads: dict[str, float] = {}
        self._loads: dict[str, int] = {}
        self._unload_attempts: dict[str, int] = {}
        """Number of each consumer's last load and unload."""
        self._attempt = 0
        """Number of a probed consumer's last load or unload."""
        self._answered = False
        """Whether the unload that an event is about had been answered before."""
        self.believed: dict[str, S] = {}
        self._where: dict[str, S] = {}
        """As before the event, and changed with each effect."""
        self.swaps_before: dict[str, frozenset[str]] = {}
        self._job_s: dict[str, float | None] = {}
        """What jobs took on average, as known before the event."""
        self.effects: list[Effect] = []
        self.rooms: dict[str, float] = {}
        """Consumers that their first job loads and whose room was made, until a job of theirs is
        done, and since when one has computed."""
        self.forcing = False
        """Somebody may be loading against the books (``when_nothing_to_evict: attempt``)."""

    @property
    def shaken(self) -> bool:
        """Whether something may explain that memory is not as the scheduler takes it to be."""
        return self._shaken or self.world.machine.unbilled

    def broker_started(self) -> None:
        """All that was known of the old broker is void, but for how far its tokens went."""
        self._fresh_records()
        self._shaken = True

    def strikes(self, strike: Strike) -> None:
        """A fault happens."""
        if strike.fault not in CLIENTS_AND_PEOPLE:
            self._shaken = True

    def comes(self, visit: Visit) -> None:
        """A client comes with a job."""
        now, most_s = self.world.now, self.world.scenario.policy.max_wait_s
        wait_s = most_s if visit.wait_s is None else min(visit.wait_s, most_s)
        self._waiting[visit.job] = (now, wait_s)

    # Around an event

    def before(self, event: Event) -> None:
        """Remember what the scheduler believes before it handles an event."""
        state = self.world.state
        self.believed = {c.name: c.state for c in state.consumers.values()}
        self._where = self.believed.copy()
        self.swaps_before = {name: frozenset(s.victims) for name, s in state.swaps.items()}
        self._job_s = {c.name: c.averages.job.seconds for c in state.consumers.values()}
        match event:
            case JobArrived():
                # It may have been told late.
                self._waiting[event.job] = (event.at, self._waiting[event.job][1])
            case GpusRead():
                self._read_at = event.at
                self._readable = {r.index: r.error is None for r in event.readings}
            case GpusLost():
                self._read_at = event.at
                self._readable = {}
            case UnloadEnded():
                if event.attempt == self._unload_attempts.get(event.consumer):
                    self._cut.pop(event.consumer, None)
                unload = state.consumers[event.consumer].unload
                self._answered = unload is not None and unload.answered
            case PauseRequested():
                self._loads_failed.clear()  # a swap that is given up begins anew
            case ConsumerProbed():
                self._attempt = state.consumers[event.consumer].attempt
            case _:
                pass

    def after(self, event: Event, effects: list[Effect]) -> None:
        """Check what was decided."""
        world = self.world
        invariants.check(world.state)
        invariants.check_effects(world.state, effects)
        self.effects = effects
        self.forcing = self._is_forcing()
        self._check_void(event, effects)
        for effect in effects:
            if (check := _CHECKS.get(type(effect))) is not None:
                check(self, effect)
        self._check_event(event)
        self._check_memory()
        self._check_swaps()
        if world.state.waiting:
            restores.check(world, effects)
            conserving.check(world, self._readable, self._read_at)

    def settled(self) -> None:
        """Check what the effects left, now that they are under way."""
        world, state = self.world, self.world.state
        moving = bool(state.swaps)
        for consumer in state.consumers.values():
            where = consumer.state
            if where is S.RESIDENT or where is S.ABSENT:
                continue
            moving = moving or where is S.LOADING or where is S.UNLOADING
            if where is S.COOLDOWN or where is S.QUARANTINED:
                kind = TimerKind.COOLDOWN if where is S.COOLDOWN else TimerKind.QUARANTINE
                timer = Timer(kind, consumer.name, consumer.attempt)
                hold(timer in world.timers, f"nobody will end {consumer.name}'s {where}")
            if where is S.UNLOADING:
                unload = consumer.unload
                timer = Timer(TimerKind.SETTLE, consumer.name, consumer.attempt)
                answered = unload is not None and unload.answered
                hold(not answered or timer in world.timers, f"{consumer.name} settles for ever")
        hold(world.fast or not moving, "memory moves, and nobody looks")
        bound = 3 * len(state.jobs) + 4 * len(state.consumers)
        hold(len(world.timers) <= bound, f"{len(world.timers)} timers")

    def _is_forcing(self) -> bool:
        state = self.world.state
        if state.policy.when_nothing_to_evict is NothingToEvict.REJECT:
            return False
        if any(swap.forced for swap in state.swaps.values()):
            return True
        # One that its first job loads has no swap any more when the step is over.
        return any(isinstance(e, LoadMeasured) and e.seconds is None for e in self.effects)

    def _check_void(  # noqa: C901 - one arm an event
        self, event: Event, effects: list[Effect]
    ) -> None:
        """An answer to an older question, or a release with another token, changes nothing."""
        match event:
            case JobEnded(_, job, token):
                lease = self._leases.get(job)
                if lease is None or lease.token != token:
                    for effect in effects:
                        ended = isinstance(effect, Finish) and effect.job == job
                        hold(not ended, f"an old token ended {job}")
            case ConsumerProbed(_, name, attempt) if attempt != self._attempt:
                for effect in effects:
                    if isinstance(effect, StateChanged) and effect.consumer == name:
                        lost = effect.old is S.RESIDENT and effect.new is S.ABSENT
                        hold(not lost, f"an old probe said that {name} is absent")
            case LoadEnded(_, name, attempt) if self._loads.get(name) != attempt:
                for effect in effects:
                    believed = isinstance(effect, LoadMeasured) and effect.consumer == name
                    hold(not believed, f"an old answer ended {name}'s load")
            case UnloadEnded(_, name, attempt) if self._unload_attempts.get(name) != attempt:
                unload = self.world.state.consumers[name].unload
                believed = unload is not None and unload.answered and not self._answered
                hold(not believed, f"an old answer ended {name}'s unload")
                for effect in effects:
                    if isinstance(effect, UnloadMeasured) and effect.consumer == name:
                        hold(effect.ok, f"an old answer ended {name}'s unload")
            case _:
                pass

    def _check_event(self, event: Event) -> None:
        if isinstance(event, TimerFired) and event.timer.kind is TimerKind.WAIT:
            job = event.timer.subject
            hold(job not in self._waiting, f"{job} waits on after its deadline")
        if isinstance(event, JobArrived) and event.job in self._waiting:
            came_at, wait_s = self._waiting[event.job]
            job = event.job
            hold(job in self.world.state.jobs, f"{job} is lost as it comes")
            at = next(
                (
                    e.at
                    for e in self.effects
                    if isinstance(e, SetTimer) and e.timer == Timer(TimerKind.WAIT, job)
                ),
                None,
            )
            hold(at is not None, f"{job} waits without a deadline")
            assert at is not None
            hold(abs(at - came_at - wait_s) < EPSILON_S, f"{job} waits until {at}")

    # Effects

    def _check_grant(self, grant: Grant) -> None:
        world = self.world
        state, job, name = world.state, grant.job, grant.consumer
        hold(job in self._waiting, f"{job} is granted and does not wait")
        del self._waiting[job]
        hold(grant.token > self.last_token, f"token {grant.token} after {self.last_token}")
        self.last_token = grant.token
        self._unused.discard(name)
        hold(not world.draining, f"{job} is granted while the broker drains")
        hold(name not in self._leaving, f"{name} is on its way out, and takes {job}")
        for gpu in grant.gpus:
            hold(self._readable.get(gpu, False), f"{job} is granted on GPU {gpu}, which is blind")
        service = world.machine.services[name]
        loads = service.spec.policy.can_load and not service.spec.policy.vram_managed
        there = service.loaded or service.doubtful or not loads
        hold(there, f"{job} is granted and {name} is not there")
        wanted, key = state.jobs[job].load_key, service.loaded_key
        asked_for = wanted is None or not service.loaded or service.doubtful or wanted == key
        hold(asked_for, f"{job} wants {name} loaded with {wanted}, and it is with {key or 'what?'}")
        if state.policy.lock is LockMode.EXCLUSIVE:
            for other, lease in self._leases.items():
                apart = lease.consumer == name or not set(lease.gpus) & set(grant.gpus)
                hold(apart, f"{job} and {other} compute at once")
            for other, gpus in self._cut.items():
                apart = other == name or not set(gpus) & set(grant.gpus)
                hold(apart, f"{job} computes while {other} may do so")
        turns.check(world, grant, state.jobs[job], self._job_s[name])
        self._leases[job] = Lease(name, grant.token, grant.gpus)
        if name in self.rooms:
            self.rooms[name] = min(self.rooms[name], world.now)
        self._check_timer(Timer(TimerKind.RUN, job), service.spec.policy.job_timeout_s)
        if (busy_s := service.spec.policy.busy_timeout_s) is not None:
            self._check_timer(Timer(TimerKind.BUSY, job), busy_s)

    def _check_timer(self, timer: Timer, delay_s: float) -> None:
        due = self.world.now + delay_s
        for effect in self.effects:
            if isinstance(effect, SetTimer) and effect.timer == timer:
                hold(abs(effect.at - due) < EPSILON_S, f"{timer} at {effect.at}")
                return
        hold(condition=False, message=f"no {timer}")

    def _check_finish(self, finish: Finish) -> None:
        job = finish.job
        if job not in self.world.visits:
            hold(job.startswith("preload-"), f"{job} ended twice, or never came")
            return
        hold(job not in self._ended, f"{job} ended twice")
        self._ended.add(job)
        self._waiting.pop(job, None)
        lease = self._leases.pop(job, None)
        if lease is not None and finish.outcome is Outcome.DONE:
            self.rooms.pop(lease.consumer, None)
        computing = lease and self.world.machine.services[lease.consumer].computing
        if lease is not None and computing and job in computing:
            hold(job in self._aborted, f"{job} is ended while it computes")
            self._cut[lease.consumer] = lease.gpus
        self._aborted.discard(job)

    def _check_abort(self, abort: Abort) -> None:
        hold(abort.job in self._leases, f"{abort.job} is told to stop and does not compute")
        self._aborted.add(abort.job)

    def _check_start_load(self, load: StartLoad) -> None:
        world, name = self.world, load.consumer
        self._loads[name] = load.attempt
        hold(not world.draining or name in self.swaps_before, f"{name} loads in a draining broker")
        consumer = world.state.consumers[name]
        hold(name not in self._leaving, f"{name} loads while it leaves")
        not_before = self._not_before.get(name, -math.inf)
        hold(world.now >= not_before - EPSILON_S, f"{name} loads in its cooldown")
        hold(self._loads_failed.get(name, 0) < 2, f"{name} loads a third time")
        places = consumer.policy.gpus
        hold(places is None or places == load.gpus, f"{name} loads on {load.gpus}")
        self._check_room(consumer, load.gpus)

    def _check_room(self, target: Consumer, gpus: tuple[int, ...]) -> None:
        """At the start of a load, by measurement and by the books."""
        state = self.world.state
        for gpu in gpus:
            hold(self._readable.get(gpu, False), f"{target.name} loads on GPU {gpu}, unread")
        if self.forcing:
            return
        attempts = state.policy.when_nothing_to_evict is NothingToEvict.ATTEMPT
        # Who was planned after this one, in the same step, took what it leaves.
        planned = {
            name
            for name, swap in state.swaps.items()
            if name not in self.swaps_before and swap.load_started_at is None
        }
        for gpu in gpus:
            free_mib = state.gpus[gpu].free_mib - self._untaken_mib(gpu, target.name)
            short_mib = books.shortage_mib(state, free_mib, gpu, target, gpus, without=planned)
            hold(short_mib <= 0, f"{target.name} loads with {short_mib} MiB too few on GPU {gpu}")
        if state.policy.max_resident and not self.shaken and not attempts:
            others = books.others_there(state, target.name, loading=True)
            hold(others < state.policy.max_resident, f"{target.name} is one too many")

    def _untaken_mib(self, gpu: int, target: str) -> int:
        """What other loads have still to take, as it really is.

        Where somebody else took memory meanwhile, that cannot be told from theirs.
        """
        machine, state = self.world.machine, self.world.state
        coming = {
            name: swap.load_started_at
            for name, swap in state.swaps.items()
            if swap.load_started_at is not None
        }
        there = {S.RESIDENT, S.DRAINING}
        coming |= {n: at for n, at in self.rooms.items() if state.consumers[n].state in there}
        return sum(
            books.share(books.need_mib(consumer), consumer.gpus)
            for name, since in coming.items()
            if gpu in (consumer := state.consumers[name]).gpus
            and name != target
            and not machine.services[name].held_mib
            and not any(at >= since for at, _ in machine.moved_at[gpu])
        )

    def _check_load_measured(self, load: LoadMeasured) -> None:
        name = load.consumer
        if load.ok:
            self._failed[name] = 0
            self._loads_failed[name] = 0
        else:
            self._loads_failed[name] = self._loads_failed.get(name, 0) + 1
        if load.seconds is None:
            consumer = self.world.state.consumers[name]
            self._check_room(consumer, consumer.gpus)

    def _check_start_unload(self, unload: StartUnload) -> None:
        name = unload.consumer
        policy = self.world.state.consumers[name].policy
        hold(policy.can_unload and not policy.vram_managed, f"{name} cannot be unloaded")
        hold(not unload.escalate or policy.can_escalate, f"{name} has no harder way")
        for job, lease in self._leases.items():
            hold(lease.consumer != name, f"{name} is unloaded under {job}")
        self._leaving.add(name)
        self._unloads[name] = self.world.now
        self._unload_attempts[name] = unload.attempt

    def _check_unload_measured(self, unload: UnloadMeasured) -> None:
        if unload.ok:
            self._failed[unload.consumer] = 0

    def _check_state_changed(self, change: StateChanged) -> None:
        name, now = change.consumer, self.world.now
        self._where[name] = change.new
        if change.new in {S.DRAINING, S.UNLOADING}:
            self._leaving.add(name)
        elif change.new is S.RESIDENT:
            hold(name not in self._leaving, f"{name} comes back to life")
            self._resident_since[name] = now
            self._unused.add(name)
            self._not_before.pop(name, None)
            if change.reason.startswith("room made"):
                self.rooms[name] = math.inf
            elif change.old is not S.UNLOADING:
                self.rooms.pop(name, None)
        elif change.new is S.ABSENT:
            self.rooms.pop(name, None)
            if change.old is S.UNLOADING and change.reason == "its memory is free":
                self._check_really_left(name)
            self._leaving.discard(name)
            self._cut.pop(name, None)
            if change.reason == "restarted by hand":
                self._not_before.pop(name, None)
        elif change.new in {S.COOLDOWN, S.QUARANTINED}:
            self._loads_failed[name] = 0
            failed = self._failed[name] = self._failed.get(name, 0) + 1
            if change.new is S.COOLDOWN:
                self._not_before[name] = now + min(2.0 ** (failed - 1), 300.0)
                waiting = len(self.world.state.consumers[name].waiting)
                hold(not waiting, f"{waiting} jobs are not told that {name} cannot be loaded")

    def _check_really_left(self, name: str) -> None:
        """Memory that is believed to be free is, unless others moved memory beside it."""
        machine, state = self.world.machine, self.world.state
        service, consumer = machine.services[name], state.consumers[name]
        if self.shaken or any(name in victims for victims in self.swaps_before.values()):
            return
        since = self._unloads.get(name, -math.inf)
        for gpu in consumer.gpus:
            moved = {whose for at, whose in machine.moved_at[gpu] if at >= since}
            if moved <= {name}:
                held_mib = service.held_mib.get(gpu, 0)
                most_mib = 0.25 * books.share(books.need_mib(consumer), consumer.gpus)
                hold(held_mib <= most_mib, f"{name} is believed gone and holds {held_mib} MiB")

    def _check_evicted(self, evicted: Evicted) -> None:
        world = self.world
        state, now = world.state, world.now
        victim, target = state.consumers[evicted.victim], state.consumers[evicted.target]
        what = f"{victim.name} is evicted for {target.name}"
        where = self._where[victim.name]
        hold(where is S.RESIDENT, f"{what} while {where}")
        hold(not any(x.consumer == victim.name for x in self._leases.values()), f"{what} at work")
        hold(not victim.pinned, f"{what} and is pinned")
        coexists = target.policy.can_coexist_with
        hold(not coexists & {victim.name, "*"}, f"{what} and may stay beside it")
        since = self._resident_since.get(victim.name, -math.inf)
        unasked = state.policy.restore_when_idle and victim.name in self._unused
        stayed = since + state.policy.min_resident_s <= now + EPSILON_S
        hold(unasked or stayed, f"{what} and just came")
        hold(bool(target.waiting), f"{what}, which nobody waits for")
        if victim.waiting:
            evictions.check_worth(state, victim, target, now, what)
        if (swap := state.swaps.get(target.name)) is not None:
            evictions.check_needed(self, swap.gpus, victim, target, what)

    def _check_answer(self, answer: Answer) -> None:
        hold(answer.request in self.world.requests, f"{answer.request} is answered again")
        self.world.requests.discard(answer.request)

    def _check_cancel(self, cancel: CancelTimer) -> None:
        job = cancel.timer.subject
        if cancel.timer.kind is TimerKind.WAIT and job in self._waiting:
            over = any(isinstance(e, Grant | Finish) and e.job == job for e in self.effects)
            hold(over, f"{job} waits on without a deadline")

    # The whole

    def _check_memory(self) -> None:
        """With nothing wrong in the world, no load that was asked for runs out of memory."""
        found = self.world.machine.out_of_memory
        forced = self.world.scenario.policy.when_nothing_to_evict == "attempt"
        if found > self._seen_out_of_memory and not self.shaken and not forced:
            hold(condition=False, message="a load ran out of memory")
        self._seen_out_of_memory = found

    def _check_swaps(self) -> None:
        state = self.world.state
        if len(state.swaps) < 2:
            return
        if state.policy.prefetch:
            # One that was being brought back when somebody came is nobody's load any more.
            most = state.policy.max_parallel_loads + (state.restoring in state.swaps)
            hold(len(state.swaps) <= most, f"{sorted(state.swaps)} load at once")
        else:
            gpus = [gpu for swap in state.swaps.values() for gpu in swap.gpus]
            hold(len(gpus) == len(set(gpus)), f"{sorted(state.swaps)} on one GPU")


_CHECKS: dict[type[Effect], Callable[[Promises, Any], None]] = {
    Grant: Promises._check_grant,
    Finish: Promises._check_finish,
    Abort: Promises._check_abort,
    StartLoad: Promises._check_start_load,
    LoadMeasured: Promises._check_load_measured,
    StartUnload: Promises._check_start_unload,
    UnloadMeasured: Promises._check_unload_measured,
    StateChanged: Promises._check_state_changed,
    Evicted: Promises._check_evicted,
    Answer: Promises._check_answer,
    CancelTimer: Promises._check_cancel,
}
