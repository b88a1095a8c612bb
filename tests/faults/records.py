"""What was seen of one broker: kept from its events and effects, for the promises to judge by.

Nothing is judged here. ``before`` remembers what the scheduler believed as an event came; ``saw``
takes in an effect, after it has been checked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mgpu.core.effects import (
    Abort,
    Answer,
    Effect,
    Finish,
    Grant,
    LoadMeasured,
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
    LoadEnded,
    PauseRequested,
    PinRequested,
    ResumeRequested,
    UnloadEnded,
)
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import NothingToEvict, Outcome
from tests.faults.kinds import CLIENTS_AND_PEOPLE
from tests.faults.scenario import Strike, Visit

if TYPE_CHECKING:
    from tests.faults.world import World


@dataclass(frozen=True, slots=True)
class Lease:
    """A job that computes as far as the scheduler knows."""

    consumer: str
    token: int
    gpus: tuple[int, ...]


@dataclass(slots=True)
class Records:
    """What was seen, and what was believed before the event that is handled."""

    world: World
    last_token: int = 0
    out_of_memory: int = 0
    """How many loads have run out of memory, as far as that was judged."""
    disturbed: bool = False
    """A fault may have moved memory behind the scheduler's back."""

    # People
    paused: bool = False
    """A person has asked for the GPU and not given it back."""
    pins: dict[str, bool] = field(default_factory=dict)
    """What was asked for last of each consumer that a person pinned or unpinned."""

    # Jobs
    waiting: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Jobs that wait: when they came, and how long they may."""
    leases: dict[str, Lease] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)

    # Consumers
    leaving: set[str] = field(default_factory=set)
    cut: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Those stopped at their work that may not know of it yet, and on which GPUs."""
    resident_since: dict[str, float] = field(default_factory=dict)
    unused: set[str] = field(default_factory=set)
    """Those that have done nothing since they became resident."""
    rooms: dict[str, float] = field(default_factory=dict)
    """Those that their first job loads and whose room was made, until a job of theirs is done, and
    since when one has computed."""
    not_before: dict[str, float] = field(default_factory=dict)
    """When a cooldown is over."""
    failures: dict[str, int] = field(default_factory=dict)
    """How often in a row one ended in a cooldown or in quarantine."""
    loads_failed: dict[str, int] = field(default_factory=dict)
    """Of the swap that is under way."""
    not_begun: set[str] = field(default_factory=set)
    """Those whose last load was not even begun."""
    loads: dict[str, int] = field(default_factory=dict)
    """The number of each one's last load."""
    unloads: dict[str, int] = field(default_factory=dict)
    """The number of each one's last unload."""
    unload_began_at: dict[str, float] = field(default_factory=dict)

    # GPUs
    readable: dict[int, bool] = field(default_factory=dict)
    read_at: float = -math.inf

    # Around the event
    believed: dict[str, S] = field(default_factory=dict)
    """Where everybody was before the event."""
    where: dict[str, S] = field(default_factory=dict)
    """The same, changed with each effect."""
    swaps_before: dict[str, frozenset[str]] = field(default_factory=dict)
    """The victims of each swap before the event."""
    job_s: dict[str, float | None] = field(default_factory=dict)
    """What jobs took on average, as known before the event."""
    attempt: int = 0
    """The number of a probed consumer's last load or unload."""
    answered: bool = False
    """Whether the unload that the event is about had been answered before."""
    effects: list[Effect] = field(default_factory=list)
    """What the event led to."""

    def of_next_broker(self) -> Records:
        """All that was known of the old broker is void, but for its tokens and what people want."""
        return Records(
            self.world,
            self.last_token,
            self.out_of_memory,
            disturbed=True,
            paused=self.paused,
            pins=self.pins,
        )

    @property
    def shaken(self) -> bool:
        """Whether something may explain that memory is not as the scheduler takes it to be."""
        return self.disturbed or self.world.machine.unbilled

    @property
    def forcing(self) -> bool:
        """Somebody may be loading against the books (``when_nothing_to_evict: attempt``)."""
        state = self.world.state
        if state.policy.when_nothing_to_evict is NothingToEvict.REJECT:
            return False
        if any(swap.forced for swap in state.swaps.values()):
            return True
        # One that its first job loads has no swap any more when the step is over.
        return any(isinstance(e, LoadMeasured) and e.seconds is None for e in self.effects)

    def computes(self, job: str) -> bool:
        """Whether a job that has a lease is really at work."""
        lease = self.leases.get(job)
        return lease is not None and job in self.world.machine.services[lease.consumer].computing

    def strikes(self, strike: Strike) -> None:
        """A fault happens."""
        if strike.fault not in CLIENTS_AND_PEOPLE:
            self.disturbed = True

    def comes(self, visit: Visit) -> None:
        """A client comes with a job."""
        now, most_s = self.world.now, self.world.scenario.policy.max_wait_s
        wait_s = most_s if visit.wait_s is None else min(visit.wait_s, most_s)
        self.waiting[visit.job] = (now, wait_s)

    def before(self, event: Event) -> None:  # noqa: C901 - one arm an event
        """Remember what the scheduler believes before it handles an event."""
        state = self.world.state
        self.believed = {c.name: c.state for c in state.consumers.values()}
        self.where = self.believed.copy()
        self.swaps_before = {name: frozenset(s.victims) for name, s in state.swaps.items()}
        self.job_s = {c.name: c.averages.job.seconds for c in state.consumers.values()}
        match event:
            case JobArrived():
                # It may have been told late.
                self.waiting[event.job] = (event.at, self.waiting[event.job][1])
            case GpusRead():
                self.read_at = event.at
                self.readable = {r.index: r.error is None for r in event.readings}
            case GpusLost():
                self.read_at = event.at
                self.readable = {}
            case UnloadEnded():
                if event.attempt == self.unloads.get(event.consumer):
                    self.cut.pop(event.consumer, None)
                unload = state.consumers[event.consumer].unload
                self.answered = unload is not None and unload.answered
            case PauseRequested():
                self.paused = True
                self.loads_failed.clear()  # a swap that is given up begins anew
            case LoadEnded():
                took = self.not_begun.discard if event.begun else self.not_begun.add
                took(event.consumer)
            case ResumeRequested():
                self.paused = False
            case PinRequested(_, name, pinned):
                self.pins[name] = pinned
            case ConsumerProbed():
                self.attempt = state.consumers[event.consumer].attempt
            case _:
                pass

    def saw(self, effect: Effect) -> None:  # noqa: C901 - one arm an effect
        """Take in what an effect changes."""
        match effect:
            case Grant():
                self._saw_grant(effect)
            case Abort(job):
                self.aborted.add(job)
            case Finish():
                self._saw_finish(effect)
            case StartLoad():
                self.loads[effect.consumer] = effect.attempt
            case LoadMeasured(consumer=name, ok=True):
                self.failures[name] = self.loads_failed[name] = 0
            case LoadMeasured(consumer=name):
                # A load that fails in a pause is not tried again: its swap is given up as well.
                given_up = self.world.state.paused
                self.loads_failed[name] = 0 if given_up else self.loads_failed.get(name, 0) + 1
            case StartUnload(consumer=name):
                self.leaving.add(name)
                self.unload_began_at[name] = self.world.now
                self.unloads[name] = effect.attempt
            case UnloadMeasured(consumer=name, ok=True):
                self.failures[name] = 0
            case StateChanged():
                self._saw_change(effect)
            case Answer(request):
                self.world.requests.discard(request)
            case _:
                pass

    def _saw_grant(self, grant: Grant) -> None:
        del self.waiting[grant.job]
        self.last_token = grant.token
        self.unused.discard(grant.consumer)
        self.leases[grant.job] = Lease(grant.consumer, grant.token, grant.gpus)
        if grant.consumer in self.rooms:
            self.rooms[grant.consumer] = min(self.rooms[grant.consumer], self.world.now)

    def _saw_finish(self, finish: Finish) -> None:
        job = finish.job
        self.ended.add(job)
        self.waiting.pop(job, None)
        computes, lease = self.computes(job), self.leases.pop(job, None)
        if lease is not None and finish.outcome is Outcome.DONE:
            self.rooms.pop(lease.consumer, None)
        if lease is not None and computes:
            self.cut[lease.consumer] = lease.gpus
        self.aborted.discard(job)

    def _saw_change(self, change: StateChanged) -> None:
        name, now = change.consumer, self.world.now
        self.where[name] = change.new
        if change.new in {S.DRAINING, S.UNLOADING}:
            self.leaving.add(name)
        elif change.new is S.RESIDENT:
            self.loads_failed[name] = 0  # by itself too: a swap that it ended begins anew
            self.resident_since[name] = now
            self.unused.add(name)
            self.not_before.pop(name, None)
            if change.reason.startswith("room made"):
                self.rooms[name] = math.inf
            elif change.old is not S.UNLOADING:
                self.rooms.pop(name, None)
        elif change.new is S.ABSENT:
            self.rooms.pop(name, None)
            self.leaving.discard(name)
            self.cut.pop(name, None)
            if change.reason == "restarted by hand":
                self.not_before.pop(name, None)
        elif change.new in {S.COOLDOWN, S.QUARANTINED}:
            self.loads_failed[name] = 0
            failed = self.failures[name] = self.failures.get(name, 0) + 1
            if change.new is S.COOLDOWN:
                self.not_before[name] = now + min(2.0 ** (failed - 1), 300.0)
