from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from mgpu.broker import sampling
from mgpu.broker.clock import MonotonicClock
from mgpu.broker.sampling import Sampler
from mgpu.core.events import Event, GpusLost, GpusRead
from tests.broker.conftest import MemoryGpu


class Watched:
    """A sampler whose events can be waited for."""

    def __init__(self, idle_interval_s: float) -> None:
        self.gpu = MemoryGpu()
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.sampler = Sampler(self.gpu, MonotonicClock(), self.events.put_nowait, idle_interval_s)

    async def next(self, within_s: float = 5.0) -> Event:
        async with asyncio.timeout(within_s):
            return await self.events.get()


@pytest.fixture
async def idle() -> AsyncIterator[Watched]:
    """One that would read only once a minute by itself."""
    watched = Watched(idle_interval_s=60)
    task = asyncio.create_task(watched.sampler.run())
    await watched.next()
    yield watched
    task.cancel()


async def test_reads_at_once_when_asked(idle: Watched) -> None:
    idle.sampler.sample(fast=False)
    assert isinstance(await idle.next(), GpusRead)
    assert idle.gpu.reads == 2


async def test_reads_again_and_again_while_memory_is_expected_to_change(idle: Watched) -> None:
    idle.sampler.sample(fast=True)
    started = asyncio.get_running_loop().time()
    for _ in range(20):
        await idle.next()
    # 5 ms growing by a quarter each time up to 20 ms: 20 readings take about 0.3 s.
    assert 0.1 < asyncio.get_running_loop().time() - started < 2.0


async def test_never_pauses_longer_than_a_fraction_of_a_swap_while_fast(idle: Watched) -> None:
    idle.sampler.sample(fast=True)
    pauses = [idle.sampler._next_pause_s() for _ in range(50)]
    assert pauses[0] == sampling.FAST_FIRST_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == sampling.FAST_MOST_S


async def test_goes_back_to_the_idle_pace(idle: Watched) -> None:
    idle.sampler.sample(fast=True)
    await idle.next()
    idle.sampler.sample(fast=False)
    assert idle.sampler._next_pause_s() == 60


async def test_tells_that_it_is_blind_and_goes_on(idle: Watched) -> None:
    idle.gpu.broken = "driver mismatch"
    idle.sampler.sample(fast=False)
    event = await idle.next()
    assert isinstance(event, GpusLost)
    assert event.error == "driver mismatch"
    idle.gpu.broken = None
    idle.sampler.sample(fast=False)
    assert isinstance(await idle.next(), GpusRead)
