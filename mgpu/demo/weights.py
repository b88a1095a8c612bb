"""Weights that are not there: the memory they would take, and the time to bring them in.

Memory is taken in steps while a load goes on and comes back a while after an unload was answered,
as with CUDA's caching allocators. Whatever needs the weights takes turns: a load, an unload and a
job never overlap.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

from mgpu.demo.catalogue import Profile

_STEPS = 8
T = TypeVar("T")


class Memory(Protocol):
    """Where a process says how much of the GPU it holds."""

    def hold(self, mib: int) -> None:
        """From now on this process holds ``mib`` MiB, whatever it held before."""


class NotLoadedError(Exception):
    """A job came while the weights were not in memory."""


class Weights:
    """One service's weights. ``lazy``: the first job loads them instead of being refused."""

    def __init__(self, profile: Profile, memory: Memory, *, lazy: bool = False) -> None:
        self.profile = profile
        self.loaded = False
        self.held_mib = 0
        self._memory = memory
        self._lazy = lazy
        self._turn = asyncio.Lock()
        self._floor_mib = 0
        self._unload_when_idle = False
        self._giving_back: asyncio.TimerHandle | None = None

    async def load(self) -> None:
        """Bring the weights in; returns at once when they are there."""
        async with self._turn:
            await self._bring_in()

    async def unload(self) -> None:
        """Answer a request to unload, after the running job; the memory follows later."""
        async with self._turn:
            await asyncio.sleep(self.profile.unload_s)
            self._drop()

    def unload_when_idle(self) -> None:
        """Drop the weights now, or after the running job; does not wait for it."""
        if self._turn.locked():
            self._unload_when_idle = True
        else:
            self._drop()

    @asynccontextmanager
    async def job(self) -> AsyncIterator[None]:
        """Use the weights, one job at a time; raises ``NotLoadedError``."""
        async with self._turn:
            if not self.loaded and not self._lazy:
                raise NotLoadedError
            try:
                await self._bring_in()
                yield
            finally:
                if self._unload_when_idle:
                    self._drop()

    async def run(self, work: Callable[[], T]) -> T:
        """Do ``work`` as a job, off the event loop; takes ``job_s`` at least."""
        async with self.job():
            result, _ = await asyncio.gather(
                asyncio.to_thread(work), asyncio.sleep(self.profile.job_s)
            )
            return result

    def close(self) -> None:
        """Hold nothing any more: the process ends."""
        if self._giving_back:
            self._giving_back.cancel()
        self._hold(0)

    async def _bring_in(self) -> None:
        if self.loaded:
            return
        if self._giving_back:
            self._giving_back.cancel()
            self._give_back()
        try:
            for step in range(1, _STEPS + 1):
                await asyncio.sleep(self.profile.load_s / _STEPS)
                self._hold(max(self._floor_mib, self.profile.footprint_mib * step // _STEPS))
            self.loaded = True
        finally:
            self._floor_mib = self.profile.residual_mib
            if not self.loaded:
                self._hold(self._floor_mib)

    def _drop(self) -> None:
        self._unload_when_idle = False
        if self.loaded:
            self.loaded = False
            loop = asyncio.get_running_loop()
            self._giving_back = loop.call_later(self.profile.lag_s, self._give_back)

    def _give_back(self) -> None:
        self._giving_back = None
        self._hold(self._floor_mib)

    def _hold(self, mib: int) -> None:
        self.held_mib = mib
        self._memory.hold(mib)
