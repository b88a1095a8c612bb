"""Plays a script to the scheduler: an event in, what it decides out, as short strings.

    play = Playbook(resident("stt", 8000), absent("tts", 8000), total_mib=12000)
    assert play.arrive("1", "tts") == ["unload stt"]
    assert play.leaves("stt") == ["load tts"]

Before every event the GPUs are read, so that no decision waits for a reading, unless ``stale``.

The strings tell what is asked of the world; timers, samples and facts are left out of them and
are found, with everything else of the last event, in ``effects``. The clock is virtual. After
every event the invariants are checked, and that every job comes to exactly one end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

from mgpu.core import invariants, views
from mgpu.core.effects import (
    Abort,
    Answer,
    CancelTimer,
    Effect,
    Finish,
    Grant,
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
from mgpu.core.model import (
    NOTHING_ASKED,
    ByHand,
    ConsumerPolicy,
    ConsumerState,
    GpuProcess,
    GpuReading,
    LockMode,
    NothingToEvict,
    Order,
    Outcome,
    Policy,
    Victims,
)
from mgpu.core.scheduler import Scheduler
from mgpu.core.state import Consumer
from mgpu.core.views import Snapshot

T = TypeVar("T", bound=Effect)

CHOICES = {
    "victims": Victims,
    "lock": LockMode,
    "order": Order,
    "when_nothing_to_evict": NothingToEvict,
}


def resident(name: str, footprint_mib: int = 8000, **policy: Any) -> ConsumerPolicy:
    return ConsumerPolicy(
        name=name, footprint_mib=footprint_mib, initially=ConsumerState.RESIDENT, **policy
    )


def absent(name: str, footprint_mib: int = 8000, **policy: Any) -> ConsumerPolicy:
    return ConsumerPolicy(
        name=name, footprint_mib=footprint_mib, initially=ConsumerState.ABSENT, **policy
    )


def unknown(name: str, footprint_mib: int = 8000, **policy: Any) -> ConsumerPolicy:
    return ConsumerPolicy(
        name=name, footprint_mib=footprint_mib, initially=ConsumerState.UNKNOWN, **policy
    )


class Playbook:
    """One scheduler, its clock and its timers. ``total_mib`` has an entry for each GPU.

    What the resident consumers leave is free at first, or ``free_mib`` of GPU 0; ``blind``: no GPU
    has been read yet; ``stale``: they are read only when the test says so.
    """

    def __init__(
        self,
        *consumers: ConsumerPolicy,
        total_mib: int | Sequence[int] = 24576,
        free_mib: int | None = None,
        blind: bool = False,
        stale: bool = False,
        learned_mib: Mapping[str, tuple[int, int]] = MappingProxyType({}),
        kept: ByHand = NOTHING_ASKED,
        **policy: Any,
    ) -> None:
        policy.setdefault("cushion_mib", 0)
        policy.setdefault("prefetch", False)
        policy.setdefault("order", "resident-first")
        for name in policy.keys() & CHOICES.keys():
            policy[name] = CHOICES[name](policy[name])
        rules = Policy(consumers={c.name: c for c in consumers}, **policy)
        self.scheduler = Scheduler(rules, learned_mib=learned_mib, kept=kept)
        self.state = self.scheduler.state
        self.now = 0.0
        self.sighted = not blind and not stale
        self.effects: list[Effect] = []
        self.timers: dict[Timer, float] = {}
        self.tokens: dict[str, int] = {}
        self.ended: dict[str, Finish] = {}
        totals = [total_mib] if isinstance(total_mib, int) else total_mib
        used_mib = dict.fromkeys(range(len(totals)), 0)
        for consumer in consumers:
            if consumer.initially is ConsumerState.RESIDENT:
                gpus = [i for i in consumer.gpus or (0,) if i in used_mib]
                for index in gpus:
                    used_mib[index] += consumer.footprint_mib // len(gpus)
        self.gpus = {
            index: GpuReading(index=index, total_mib=total, free_mib=total - used_mib[index])
            for index, total in enumerate(totals)
        }
        if not blind:
            self.memory(self.gpus[0].free_mib if free_mib is None else free_mib)

    def __getitem__(self, consumer: str) -> Consumer:
        return self.state.consumers[consumer]

    def handle(self, event: Event) -> list[str]:
        before = set(self.state.jobs)
        self.effects = []
        if self.sighted and not isinstance(event, GpusRead | GpusLost):
            self._handle(GpusRead(self.now, tuple(self.gpus.values())))
        self._handle(event)
        gone = before - set(self.state.jobs)
        assert gone <= self.ended.keys(), f"{gone} vanished without an end"
        return shown(self.effects)

    def _handle(self, event: Event) -> None:
        effects = self.scheduler.handle(event)
        self.effects += effects
        invariants.check(self.state)
        invariants.check_effects(self.state, effects)
        for effect in effects:
            self._keep(effect)

    def _keep(self, effect: Effect) -> None:
        match effect:
            case SetTimer(timer, at):
                self.timers[timer] = at
            case CancelTimer(timer):
                self.timers.pop(timer, None)
            case Grant():
                assert effect.token > max(self.tokens.values(), default=0)
                self.tokens[effect.job] = effect.token
            case Abort():
                assert effect.job in self.tokens
            case Finish():
                assert effect.job not in self.ended, f"{effect.job} ended twice"
                self.ended[effect.job] = effect
            case _:
                pass

    def arrive(self, job: str, consumer: str, **fields: Any) -> list[str]:
        effects = self.handle(JobArrived(self.now, job, consumer, **fields))
        assert job in self.state.jobs or job in self.ended
        return effects

    def load(self, job: str, consumer: str, load_key: str | None = None) -> list[str]:
        return self.arrive(job, consumer, kind=JobKind.LOAD, load_key=load_key)

    def leave(self, job: str) -> list[str]:
        return self.handle(JobLeft(self.now, job))

    def end(
        self, job: str, outcome: Outcome = Outcome.DONE, *, token: int | None = None
    ) -> list[str]:
        held = self.tokens[job] if token is None else token
        return self.handle(JobEnded(self.now, job, held, outcome))

    def loaded(
        self,
        consumer: str,
        *,
        error: str | None = None,
        attempt: int | None = None,
        begun: bool = True,
    ) -> list[str]:
        number = self[consumer].attempt if attempt is None else attempt
        return self.handle(LoadEnded(self.now, consumer, number, error, begun))

    def load_fails(
        self, consumer: str, error: str = "no memory", *, begun: bool = True
    ) -> list[str]:
        return self.loaded(consumer, error=error, begun=begun)

    def unloaded(
        self, consumer: str, *, error: str | None = None, attempt: int | None = None
    ) -> list[str]:
        number = self[consumer].attempt if attempt is None else attempt
        return self.handle(UnloadEnded(self.now, consumer, number, error))

    def declines(self, consumer: str, error: str = "it computes") -> list[str]:
        number = self[consumer].attempt
        return self.handle(UnloadEnded(self.now, consumer, number, error, declined=True))

    def unload_fails(self, consumer: str, error: str = "it hangs") -> list[str]:
        return self.unloaded(consumer, error=error)

    def memory(
        self, free_mib: int, gpu: int = 0, error: str | None = None, asked_s_ago: float = 0.0
    ) -> list[str]:
        old = self.gpus[gpu]
        self.gpus[gpu] = replace(old, free_mib=free_mib, error=error)
        asked_at = self.now - asked_s_ago
        return self.handle(GpusRead(self.now, tuple(self.gpus.values()), asked_at))

    def holds(
        self,
        gpu: int = 0,
        *,
        foreign: tuple[GpuProcess, ...] = (),
        unlisted_mib: int = 0,
        **held_mib: int,
    ) -> list[str]:
        """What processes hold of a GPU, consumers' and others'; the rest of it is free.

        ``unlisted_mib`` is used too, and by nobody that is listed.
        """
        old = self.gpus[gpu]
        used_mib = sum(held_mib.values()) + sum(p.mib or 0 for p in foreign) + unlisted_mib
        self.gpus[gpu] = replace(
            old, free_mib=old.total_mib - used_mib, held_mib=held_mib, foreign=foreign
        )
        return self.handle(GpusRead(self.now, tuple(self.gpus.values())))

    def leaves(self, consumer: str) -> list[str]:
        """Its unload is answered, then its memory shows as free."""
        answered = self.unloaded(consumer)
        return answered + self._memory_moves(self[consumer], +1)

    def comes(self, consumer: str) -> list[str]:
        """Its memory is taken, then its load is over."""
        taken = self._memory_moves(self[consumer], -1)
        return taken + self.loaded(consumer)

    def _memory_moves(self, consumer: Consumer, sign: int) -> list[str]:
        kept_mib = consumer.policy.residual_mib
        share_mib = (consumer.policy.footprint_mib - kept_mib) // len(consumer.gpus)
        effects = []
        for index in consumer.gpus:
            effects += self.memory(self.gpus[index].free_mib + sign * share_mib, index)
        return effects

    def probe(
        self,
        consumer: str,
        *,
        resident: bool | None = None,
        reachable: bool = True,
        healthy: bool = True,
        alive: bool = False,
        busy: bool = False,
        asked_s_ago: float = 0.0,
        attempt: int | None = None,
        gpus: tuple[int, ...] | None = None,
    ) -> list[str]:
        number = self[consumer].attempt if attempt is None else attempt
        asked_at = self.now - asked_s_ago
        return self.handle(
            ConsumerProbed(
                self.now,
                consumer,
                number,
                reachable,
                healthy,
                resident,
                alive,
                busy,
                asked_at,
                gpus,
            )
        )

    def gpus_lost(self, error: str = "timed out") -> list[str]:
        self.sighted = False
        return self.handle(GpusLost(self.now, error))

    def unload_by_hand(self, consumer: str, request: str = "r") -> list[str]:
        return self.handle(UnloadRequested(self.now, request, consumer))

    def restart(self, consumer: str, request: str = "r") -> list[str]:
        return self.handle(RestartRequested(self.now, request, consumer))

    def pin(self, consumer: str, *, pinned: bool = True) -> list[str]:
        return self.handle(PinRequested(self.now, consumer, pinned))

    def pause(self, request: str = "p") -> list[str]:
        return self.handle(PauseRequested(self.now, request))

    def resume(self) -> list[str]:
        return self.handle(ResumeRequested(self.now))

    def drain(self) -> list[str]:
        return self.handle(DrainRequested(self.now))

    def after(self, seconds: float) -> list[str]:
        """Let time pass; timers that fall due fire on the way, each at its moment."""
        until, effects = self.now + seconds, list[str]()
        while due := [(at, timer) for timer, at in self.timers.items() if at <= until]:
            at, timer = min(due, key=lambda entry: entry[0])
            del self.timers[timer]
            self.now = max(self.now, at)
            effects += self.handle(TimerFired(self.now, timer))
        self.now = until
        return effects

    def use(self, consumer: str) -> None:
        """One job, done a second later."""
        job = f"use {consumer} at {self.now}"
        assert self.arrive(job, consumer) == [f"grant {job}"]
        self.after(1.0)
        self.end(job)

    def facts(self, kind: type[T]) -> list[T]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def states(self) -> dict[str, str]:
        return {name: str(consumer.state) for name, consumer in self.state.consumers.items()}

    def snapshot(self) -> Snapshot:
        return views.take(self.state, self.now)


def shown(effects: Iterable[Effect]) -> list[str]:
    return [line for effect in effects if (line := _shown(effect))]


def _shown(effect: Effect) -> str:  # noqa: PLR0911 - one arm an effect
    match effect:
        case StartLoad(consumer, _, gpus, load_key):
            where = "" if gpus == (0,) else f" on {', '.join(map(str, gpus))}"
            return f"load {consumer}{where}" + (f" with {load_key}" if load_key else "")
        case StartUnload(consumer, _, escalate):
            return f"{'stop' if escalate else 'unload'} {consumer}"
        case Grant(job):
            return f"grant {job}"
        case Abort(job, refusal):
            return f"abort {job}: {refusal.code}"
        case Finish(job, _, outcome, refusal):
            return f"{outcome} {job}" + (f": {refusal.code}" if refusal else "")
        case Answer(request, refusal):
            return f"answer {request}" + (f": {refusal.code}" if refusal else "")
        case _:
            return ""
