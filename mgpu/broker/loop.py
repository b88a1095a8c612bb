"""One queue, one writer: events go in, effects come out, in order.

An event is handled at once unless another is being handled just then (an effect that is run may
post the next event); so a decision costs no trip through the event loop, and still nothing ever
changes the state but one event at a time. Only the event loop's thread may post.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import structlog

from mgpu.core.effects import Effect
from mgpu.core.events import Event
from mgpu.core.scheduler import Scheduler

log = structlog.get_logger(__name__)


class Loop:
    """Feeds the scheduler and hands on what it decides.

    ``run`` is called with every effect; ``observe_decision`` with the seconds each decision took.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        run: Callable[[Effect], None],
        observe_decision: Callable[[float], None],
    ) -> None:
        self._scheduler = scheduler
        self._run = run
        self._observe_decision = observe_decision
        self._events: deque[Event] = deque()
        self._busy = False

    def post(self, event: Event) -> None:
        """Handle an event, now or as soon as the one being handled is done."""
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._events:
                self._handle(self._events.popleft())
        finally:
            self._busy = False

    def _handle(self, event: Event) -> None:
        started_s = time.perf_counter()
        # The border: a bug in one decision or effect must not take the others down with it.
        try:
            effects = self._scheduler.handle(event)
        except Exception:
            log.exception("a decision broke", scheduler_event=repr(event))
            return
        self._observe_decision(time.perf_counter() - started_s)
        for effect in effects:
            try:
                self._run(effect)
            except Exception:
                log.exception("an effect broke", effect=repr(effect))
