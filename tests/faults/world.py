"""The scheduler in virtual time, with everybody it deals with, played from a scenario.

The world stands where the broker's shell stands: it carries events to the scheduler and effects to
the machine and keeps the timers; ``watching`` reads the GPUs and asks the consumers, ``strikes``
lets things go wrong. After every event the promises are checked (``tests.faults.promises``). When
the last line has been played and the last fault is over, everything must come to rest.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import partial

from mgpu.core.effects import (
    Abort,
    Answer,
    CancelTimer,
    Effect,
    Finish,
    Grant,
    Keep,
    Measured,
    Sample,
    SetTimer,
    StartLoad,
    StartUnload,
)
from mgpu.core.events import (
    ConsumerProbed,
    DrainRequested,
    Event,
    GpusRead,
    JobArrived,
    Timer,
    TimerFired,
)
from mgpu.core.model import NOTHING_ASKED, Outcome
from mgpu.core.scheduler import Scheduler
from mgpu.simulation.agenda import Agenda
from tests.faults import promises, rest, timers
from tests.faults.kinds import Fault
from tests.faults.machine import Machine
from tests.faults.modes import Modes
from tests.faults.records import Records
from tests.faults.scenario import Scenario, Strike, Visit
from tests.faults.strikes import Strikes
from tests.faults.watching import Watch

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
        self.scheduler = Scheduler(scenario.policy)
        self.state = self.scheduler.state
        self.modes = Modes(self.agenda)
        self.watch = Watch(self)
        self.machine = Machine(scenario, self.agenda, self.post, self.watch.memory_moves)
        self.strikes = Strikes(self)
        self.records = Records(self)
        self.visits: dict[str, Visit] = {}
        """Jobs whose clients are still there, or that are still under way."""
        self.outcomes: Counter[Outcome] = Counter()
        self.timers: dict[Timer, float] = {}
        self.draining = False
        self.by_hand = NOTHING_ASKED
        """What the broker's store has of people's wishes."""
        self.learned_mib: dict[str, tuple[int, int]] = {}
        """What it has of measurements: footprints and residuals."""
        self.requests: set[str] = set()
        self._deaf_until = -math.inf
        self._ends_at = scenario.starts_at + FAULTS_LAST_S
        if scenario.lines:
            self._ends_at += scenario.lines[-1].at

    @property
    def now(self) -> float:
        """The moment, on the monotonic clock."""
        return self.agenda.now_s

    def run(self) -> None:
        """Play it to the end; raises what does not hold."""
        self.watch.start()
        for line in self.scenario.lines:
            self.agenda.after(line.at, partial(self._play, line))
        self.watch.read_in(0.0)
        while self.agenda.now_s < self._ends_at:
            self.agenda.step()
        self._calm()
        self._come_to_rest()

    def note(self, line: str) -> None:
        """Add a line to the story."""
        if self.story is not None:
            self.story.append(f"{self.now - self.scenario.starts_at:8.3f}  {line}")

    # Telling the scheduler

    def post(self, make: Callable[[float], Event], *, insists: bool = False) -> None:
        """Let the scheduler handle an event now, or as soon as its process goes on.

        When that ends before it heard of it, who ``insists`` tells the next one.
        """
        if self.now < self._deaf_until:
            epoch = self.machine.epoch

            def again() -> None:
                if insists or epoch == self.machine.epoch:
                    self.post(make, insists=insists)

            self.agenda.at(self._deaf_until, again)
            return
        event = make(self.now)
        self.draining |= isinstance(event, DrainRequested)
        self.records.before(event)
        effects = self.scheduler.handle(event)
        if self.story is not None:
            self._tell(event, effects)
        promises.check(self, event, effects)
        for effect in effects:
            self._do(effect)
        timers.check_settled(self)
        self.strikes.leave_in_phase()

    def _tell(self, event: Event, effects: list[Effect]) -> None:
        boring = isinstance(event, GpusRead | ConsumerProbed | TimerFired)
        shown = [e for e in effects if not isinstance(e, SetTimer | CancelTimer | Sample)]
        if shown or not boring:
            self.note(str(event))
        for effect in shown:
            self.note(f"    -> {effect}")

    def _do(self, effect: Effect) -> None:  # noqa: C901, PLR0912 - one arm an effect
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
                    self.agenda.after(0.02, lambda: self.watch.probe(consumer))
            case Answer(request):
                self.requests.discard(request)
            case Keep(by_hand):
                self.by_hand = by_hand
            case Measured(name, _, footprint_mib, residual_mib):
                self.learned_mib[name] = (footprint_mib, residual_mib)
            case Sample(fast):
                self.watch.sample(fast=fast)
            case _:
                pass

    def _set_timer(self, timer: Timer, at: float) -> None:
        self.timers[timer] = at
        early = 0.0015 if self.modes.last(Fault.TIMERS_EARLY) else 0.0
        late = 0.4 if self.modes.last(Fault.TIMERS_LATE) else 0.0
        self.agenda.at(at - early + late, lambda: self._fire(timer, at))

    def _fire(self, timer: Timer, at: float) -> None:
        if self.timers.get(timer) != at:
            return
        if self.now < self._deaf_until:
            self.agenda.at(self._deaf_until, lambda: self._fire(timer, at))
            return
        del self.timers[timer]
        self.post(lambda now: TimerFired(now, timer))

    # Playing lines

    def _play(self, line: Visit | Strike) -> None:
        if isinstance(line, Visit):
            self.visit(line)
            return
        if self.story is not None:
            self.story.append(str(line))
        self.records.strikes(line)
        self.strikes.strike(line)

    def visit(self, visit: Visit) -> None:
        """A client comes with a job."""
        self.visits[visit.job] = visit
        self.records.comes(visit)
        v = visit
        self.post(
            lambda at: JobArrived(
                at, v.job, v.consumer, v.kind, v.priority, v.wait_s, v.idle_s, v.load_key
            )
        )

    def stall(self, seconds: float) -> None:
        """Let the broker's process stand still: it hears of everything when it goes on."""
        self._deaf_until = max(self._deaf_until, self.now + seconds)

    def start_again(self) -> None:
        """A new broker knows how far the tokens went, what was measured and what people wanted."""
        self.note("the broker starts again")
        self.machine.broker_died()
        first_token = self.records.last_token + TOKEN_BLOCK
        self.scheduler = Scheduler(
            self.scenario.policy, first_token, self.learned_mib, kept=self.by_hand
        )
        self.state = self.scheduler.state
        self.records = self.records.of_next_broker()
        for record in (self.timers, self.visits, self.requests):
            record.clear()
        self._deaf_until = -math.inf
        self.draining = False
        self.watch.start_again()

    # The end

    def _calm(self) -> None:
        """Nothing goes wrong any more."""
        self.note("all faults are over")
        self.modes.clear()
        self.strikes.calm()
        self.machine.calm()
        for gpu in self.machine.memory.foreign_mib:
            self.machine.memory.set_foreign(gpu, 0)

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
