"""Reads the GPUs at the pace that the scheduler asks for.

While memory is expected to change, the pause between two readings starts at 5 ms and grows to
20 ms, so that a change is seen within a small part of what a swap takes; otherwise it is the
configured one. A failed reading is posted too: whoever decides must know that it is blind.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from mgpu.core.events import Event, GpusLost, GpusRead
from mgpu.errors import GpuUnhealthy
from mgpu.ports import Clock, GpuProbe

FAST_FIRST_S = 0.005
FAST_GROWTH = 1.25
FAST_MOST_S = 0.020


class Sampler:
    """Posts ``GpusRead`` or ``GpusLost`` again and again."""

    def __init__(
        self, probe: GpuProbe, clock: Clock, post: Callable[[Event], None], idle_interval_s: float
    ) -> None:
        self._probe = probe
        self._clock = clock
        self._post = post
        self._idle_interval_s = idle_interval_s
        self._fast = False
        self._pause_s = FAST_FIRST_S
        self._wanted = asyncio.Event()

    def sample(self, *, fast: bool) -> None:
        """Read now, and go on at this pace."""
        self._fast = fast
        self._pause_s = FAST_FIRST_S
        self._wanted.set()

    async def run(self) -> None:
        """Read for ever."""
        while True:
            self._wanted.clear()
            await self._read()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._next_pause_s()):
                    await self._wanted.wait()

    async def _read(self) -> None:
        asked_at = self._clock.now()
        try:
            readings = await self._probe.read()
        except GpuUnhealthy as error:
            self._post(GpusLost(self._clock.now(), error.detail))
        else:
            self._post(GpusRead(self._clock.now(), readings, asked_at))

    def _next_pause_s(self) -> float:
        if not self._fast:
            return self._idle_interval_s
        pause_s = self._pause_s
        self._pause_s = min(pause_s * FAST_GROWTH, FAST_MOST_S)
        return pause_s
