from __future__ import annotations

import asyncio

from mgpu.broker.clock import MonotonicClock
from mgpu.broker.probing import Prober
from mgpu.core.events import ConsumerProbed, Event
from mgpu.ports import ProbeReport
from tests.broker.conftest import MemoryController, MemoryGpu


async def test_asks_at_the_start_then_at_intervals_and_when_there_is_a_reason() -> None:
    events: asyncio.Queue[Event] = asyncio.Queue()
    controller = MemoryController("a", 1, MemoryGpu())
    attempts = iter([7, 8, 9])
    prober = Prober(
        {"a": controller},
        lambda _name: next(attempts),
        MonotonicClock(),
        events.put_nowait,
        interval_s=60,
    )
    task = asyncio.create_task(prober.run("a"))
    async with asyncio.timeout(5):
        first = await events.get()
        prober.probe_soon("a")
        second = await events.get()
    task.cancel()
    assert isinstance(first, ConsumerProbed)
    assert isinstance(second, ConsumerProbed)
    assert (first.attempt, second.attempt) == (7, 8)
    assert (first.reachable, first.healthy, first.resident) == (True, True, False)


async def test_asks_again_by_itself() -> None:
    events: asyncio.Queue[Event] = asyncio.Queue()
    controller = MemoryController("a", 1, MemoryGpu())
    prober = Prober(
        {"a": controller}, lambda _: 0, MonotonicClock(), events.put_nowait, interval_s=0.01
    )
    task = asyncio.create_task(prober.run("a"))
    async with asyncio.timeout(5):
        for _ in range(3):
            await events.get()
    task.cancel()


async def test_tells_nothing_of_somebody_whom_nobody_could_ask_and_asks_again_soon() -> None:
    events: asyncio.Queue[Event] = asyncio.Queue()
    reports = iter(
        [
            ProbeReport(reachable=False, healthy=False, asked=False),
            ProbeReport(reachable=True, healthy=True, gpus=(1,)),
        ]
    )

    class Late(MemoryController):
        async def probe(self) -> ProbeReport:
            return next(reports)

    late = Late("a", 1, MemoryGpu())
    prober = Prober({"a": late}, lambda _: 0, MonotonicClock(), events.put_nowait, interval_s=60)
    task = asyncio.create_task(prober.run("a"))
    async with asyncio.timeout(5):
        first = await events.get()
    task.cancel()
    assert isinstance(first, ConsumerProbed)
    assert (first.reachable, first.gpus) == (True, (1,))
