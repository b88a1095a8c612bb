"""What consumers that write no file of their own would hold on the simulated GPU.

A real GPU shows an unload before the scheduler believes it, so here too: memory goes back when the
consumer has accepted to unload, and comes when the scheduler takes it for resident.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mgpu.core.effects import Effect, StateChanged
from mgpu.core.model import ConsumerPolicy, ConsumerState
from mgpu.gpu.simulated import SimulatedGpu
from mgpu.ports import ConsumerController, Placement, ProbeReport


class Beliefs:
    """Tells a simulated GPU what the broker's consumers hold."""

    def __init__(self, gpu: SimulatedGpu, consumers: Mapping[str, ConsumerPolicy]) -> None:
        self._gpu = gpu
        self._consumers: dict[str, ConsumerPolicy] = {}
        self.configure(consumers)

    def configure(self, consumers: Mapping[str, ConsumerPolicy]) -> None:
        """Believe of these consumers what their policies say, and of others what they said."""
        before = self._consumers
        ours = {n: p for n, p in consumers.items() if not p.vram_managed}
        self._consumers = before | ours
        for name, policy in ours.items():
            if name not in before and policy.initially is ConsumerState.RESIDENT:
                self._loaded(name)

    def wrap(self, name: str, inner: ConsumerController) -> ConsumerController:
        """The same controller, whose unloads show on the GPU as soon as they are accepted."""
        return _Believed(name, inner, self)

    def observe(self, fact: Effect) -> None:
        """Follow the scheduler's own belief."""
        if isinstance(fact, StateChanged) and fact.new is ConsumerState.RESIDENT:
            self._loaded(fact.consumer)
        elif isinstance(fact, StateChanged) and fact.new is ConsumerState.ABSENT:
            self.unloaded(fact.consumer)

    def unloaded(self, name: str) -> None:
        """It holds its residual."""
        if name in self._consumers:
            self._gpu.believe(name, self._consumers[name].residual_mib)

    def _loaded(self, name: str) -> None:
        if name in self._consumers:
            self._gpu.believe(name, self._consumers[name].footprint_mib)


@dataclass(frozen=True, slots=True)
class _Believed:
    name: str
    inner: ConsumerController
    beliefs: Beliefs

    async def load(self, placement: Placement, body: Any = None) -> None:
        await self.inner.load(placement, body)

    async def unload(self) -> None:
        await self.inner.unload()
        self.beliefs.unloaded(self.name)

    async def escalate(self) -> None:
        await self.inner.escalate()
        self.beliefs.unloaded(self.name)

    async def probe(self) -> ProbeReport:
        return await self.inner.probe()

    async def close(self) -> None:
        await self.inner.close()
