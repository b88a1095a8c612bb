"""Does what the scheduler decided; what is slow, in a task of its own that comes back as an event.

Nothing here is awaited by the loop. A load or an unload is done through the consumer's controller,
which keeps its own deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from mgpu.broker.clients import Clients
from mgpu.broker.probing import Prober
from mgpu.broker.sampling import Sampler
from mgpu.broker.tasks import Tasks
from mgpu.config.residency import load_body
from mgpu.core.effects import (
    Abort,
    Answer,
    CancelTimer,
    Effect,
    Fact,
    Finish,
    Forget,
    Grant,
    Keep,
    Sample,
    SetTimer,
    StartLoad,
    StartUnload,
)
from mgpu.core.events import Event, LoadEnded, Timer, TimerFired, UnloadEnded
from mgpu.core.model import Outcome
from mgpu.errors import LoadFailed, LoadNotBegun, UnloadDeclined, UnloadFailed
from mgpu.ports import Clock, ConsumerController, Keeper, Placement

Observed = Fact | Grant | Finish
"""What logs and metrics are made of."""

BROKE = "its controller broke"
"""What the scheduler is told when a controller raises what it must not: it waits for nothing."""


class EffectRunner:
    """Runs one effect after the other; never blocks, never raises for what the world does."""

    def __init__(  # noqa: PLR0913 - it is where everything meets
        self,
        *,
        clients: Clients,
        forget: Callable[[str], None],
        controllers: Mapping[str, ConsumerController],
        placement_of: Callable[[tuple[int, ...]], Placement],
        clock: Clock,
        tasks: Tasks,
        post: Callable[[Event], None],
        sampler: Sampler,
        prober: Prober,
        keeper: Keeper,
        observe: Callable[[Observed], None],
    ) -> None:
        self._clients = clients
        self._forget = forget
        self._controllers = controllers
        self._placement_of = placement_of
        self._clock = clock
        self._tasks = tasks
        self._post = post
        self._sampler = sampler
        self._prober = prober
        self._keeper = keeper
        self._observe = observe
        self._timers: dict[Timer, asyncio.TimerHandle] = {}

    def run(self, effect: Effect) -> None:  # noqa: C901 - one arm an effect
        """Do it, or see to it that it is done."""
        match effect:
            case StartLoad():
                self._tasks.spawn(f"load {effect.consumer}", self._load(effect))
            case StartUnload():
                self._tasks.spawn(f"unload {effect.consumer}", self._unload(effect))
            case Grant():
                self._observe(effect)
                self._clients.granted(effect)
            case Abort():
                self._clients.aborted(effect)
            case Finish():
                self._finish(effect)
            case Answer():
                self._clients.answered(effect)
            case SetTimer(timer, at):
                self._set_timer(timer, at)
            case CancelTimer(timer):
                self._cancel_timer(timer)
            case Forget(consumer):
                self._forget(consumer)
            case Keep(by_hand):
                self._keeper.keep(by_hand)
            case Sample(fast):
                self._sampler.sample(fast=fast)
            case _:
                fact: Fact = effect
                self._observe(fact)

    def close(self) -> None:
        """Forget all timers."""
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()

    async def _load(self, effect: StartLoad) -> None:
        error: str | None = BROKE
        begun = True
        try:
            body = None if effect.load_key is None else load_body(effect.load_key)
            placement = self._placement_of(effect.gpus)
            await self._controllers[effect.consumer].load(placement, body)
            error = None
        except LoadFailed as failure:
            error, begun = failure.detail, not isinstance(failure, LoadNotBegun)
        finally:
            self._post(LoadEnded(self._clock.now(), effect.consumer, effect.attempt, error, begun))

    async def _unload(self, effect: StartUnload) -> None:
        controller = self._controllers[effect.consumer]
        error: str | None = BROKE
        declined = False
        try:
            await (controller.escalate() if effect.escalate else controller.unload())
            error = None
        except UnloadFailed as failure:
            error = failure.detail
            declined = isinstance(failure, UnloadDeclined)
        finally:
            now = self._clock.now()
            self._post(UnloadEnded(now, effect.consumer, effect.attempt, error, declined))

    def _finish(self, effect: Finish) -> None:
        self._clients.finished(effect)
        self._observe(effect)
        if effect.outcome is Outcome.FAILED:
            self._prober.probe_soon(effect.consumer)

    def _set_timer(self, timer: Timer, at: float) -> None:
        self._cancel_timer(timer)
        delay_s = max(0.0, at - self._clock.now())
        loop = asyncio.get_running_loop()
        self._timers[timer] = loop.call_later(delay_s, self._fire, timer)

    def _cancel_timer(self, timer: Timer) -> None:
        if (handle := self._timers.pop(timer, None)) is not None:
            handle.cancel()

    def _fire(self, timer: Timer) -> None:
        del self._timers[timer]
        self._post(TimerFired(self._clock.now(), timer))
