"""Asks every consumer how it is, every few seconds and whenever there is a reason to."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Mapping

from mgpu.core.events import ConsumerProbed, Event
from mgpu.ports import Clock, ConsumerController

NOT_YET_S = 0.1
"""Until somebody is asked again whom nobody could ask."""

INTERVAL_S = 5.0
"""With a probe's own deadline of 2 s, a dead consumer shows within 10 s."""


class Prober:
    """Posts ``ConsumerProbed`` for every consumer."""

    def __init__(
        self,
        controllers: Mapping[str, ConsumerController],
        attempt_of: Callable[[str], int],
        clock: Clock,
        post: Callable[[Event], None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._controllers = controllers
        self._attempt_of = attempt_of
        self._clock = clock
        self._post = post
        self._interval_s = interval_s
        self._wanted: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def probe_soon(self, consumer: str) -> None:
        """Ask this one now: something about it does not look right."""
        self._wanted[consumer].set()

    async def run(self, consumer: str) -> None:
        """Ask one consumer for ever."""
        wanted = self._wanted[consumer]
        while True:
            wanted.clear()
            attempt, asked_at = self._attempt_of(consumer), self._clock.now()
            report = await self._controllers[consumer].probe()
            if report.asked:
                self._post(
                    ConsumerProbed(
                        self._clock.now(),
                        consumer,
                        attempt,
                        report.reachable,
                        report.healthy,
                        report.resident,
                        report.alive,
                        report.busy,
                        asked_at,
                        report.gpus,
                    )
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s if report.asked else NOT_YET_S):
                    await wanted.wait()
