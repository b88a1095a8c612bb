"""A broker over consumers and a GPU that live in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from mgpu.broker.clock import MonotonicClock
from mgpu.broker.effects import Observed
from mgpu.broker.service import Broker
from mgpu.core.effects import Finish
from mgpu.core.model import (
    ByHand,
    ConsumerPolicy,
    ConsumerState,
    GpuReading,
    Outcome,
    Policy,
)
from mgpu.errors import GpuUnhealthy, LoadFailed, UnloadFailed
from mgpu.ports import Placement, ProbeReport


@dataclass
class MemoryGpu:
    """A GPU whose memory is what ``held`` says."""

    total_mib: int = 10_000
    held: dict[str, int] = field(default_factory=dict)
    broken: str | None = None
    reads: int = 0

    async def read(self) -> tuple[GpuReading, ...]:
        self.reads += 1
        if self.broken is not None:
            raise GpuUnhealthy(self.broken)
        free_mib = self.total_mib - sum(self.held.values())
        return (GpuReading(index=0, uuid="GPU-0", total_mib=self.total_mib, free_mib=free_mib),)

    async def close(self) -> None:
        pass


@dataclass
class MemoryController:
    """A consumer that loads and unloads at once, unless told otherwise."""

    name: str
    footprint_mib: int
    gpu: MemoryGpu
    calls: list[str] = field(default_factory=list)
    load_error: Exception | None = None
    unload_error: Exception | None = None
    may_load: asyncio.Event = field(default_factory=asyncio.Event)
    loading: asyncio.Event = field(default_factory=asyncio.Event)
    resident: bool = False
    probed: asyncio.Event = field(default_factory=asyncio.Event)
    placements: list[Placement] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_load.set()

    async def load(self, placement: Placement, body: Any = None) -> None:
        self.calls.append("load")
        self.placements.append(placement)
        self.bodies.append(body)
        self.loading.set()
        await self.may_load.wait()
        if self.load_error is not None:
            raise self.load_error
        self.gpu.held[self.name] = self.footprint_mib
        self.resident = True

    async def unload(self) -> None:
        self.calls.append("unload")
        if self.unload_error is not None:
            raise self.unload_error
        self.gpu.held[self.name] = 0
        self.resident = False

    async def escalate(self) -> None:
        self.calls.append("escalate")
        self.gpu.held[self.name] = 0
        self.resident = False

    async def probe(self) -> ProbeReport:
        self.probed.set()
        return ProbeReport(reachable=True, healthy=True, resident=self.resident)

    async def close(self) -> None:
        pass


@dataclass
class MemoryKeeper:
    """Where what people ask for is written down, as soon as ``may_write``."""

    asked: list[ByHand] = field(default_factory=list)
    may_write: asyncio.Event = field(default_factory=asyncio.Event)
    awaited: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_write.set()

    def keep(self, by_hand: ByHand) -> None:
        self.asked.append(by_hand)

    async def written(self) -> None:
        if not self.may_write.is_set():
            self.awaited.set()
        await self.may_write.wait()


@dataclass
class Bench:
    """A broker with two consumers, ``a`` and ``b``, of which only one fits at a time."""

    broker: Broker
    gpu: MemoryGpu
    a: MemoryController
    b: MemoryController
    keeper: MemoryKeeper
    facts: list[Observed]

    async def until(self, condition: str, *, within_s: float = 5.0) -> None:
        """Wait until an expression over the snapshot ``s`` holds."""
        async with asyncio.timeout(within_s):
            while not eval(condition, {"s": self.broker.snapshot(), "self": self}):  # noqa: ASYNC110
                await asyncio.sleep(0.001)


def ends(desk: Bench) -> list[Outcome]:
    """How the jobs ended, one by one."""
    return [fact.outcome for fact in desk.facts if isinstance(fact, Finish)]


@asynccontextmanager
async def bench(**policy: object) -> AsyncIterator[Bench]:
    gpu = MemoryGpu()
    controllers = {name: MemoryController(name, 6_000, gpu) for name in ("a", "b")}
    facts: list[Observed] = []
    keeper = MemoryKeeper()
    consumers = {
        name: ConsumerPolicy(
            name=name,
            footprint_mib=6_000,
            initially=ConsumerState.ABSENT,
            can_escalate=True,
            job_timeout_s=float(str(policy.get("job_timeout_s", 60))),
        )
        for name in controllers
    }
    broker = Broker(
        Policy(consumers=consumers),
        controllers=dict(controllers),
        probe=gpu,
        clock=MonotonicClock(),
        first_token=100,
        sample_interval_s=0.05,
        keeper=keeper,
        observe=facts.append,
        observe_decision=lambda _seconds: None,
    )
    broker.start()
    try:
        yield Bench(broker, gpu, controllers["a"], controllers["b"], keeper, facts)
    finally:
        await broker.close()


@pytest.fixture
async def desk() -> AsyncIterator[Bench]:
    async with bench() as made:
        yield made


__all__ = ["LoadFailed", "UnloadFailed"]
