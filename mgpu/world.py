"""What the broker is given to deal with: the GPUs, and a controller for every consumer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import aiohttp
from yarl import URL

from mgpu.broker.effects import Observed
from mgpu.config.model import Config, ConsumerConfig
from mgpu.config.policy import policy
from mgpu.consumers.factory import make_controller
from mgpu.gpu.attribution import AttributingReader, listener
from mgpu.gpu.beliefs import Beliefs
from mgpu.gpu.nvml import NvmlReader
from mgpu.gpu.simulated import SimulatedGpu
from mgpu.gpu.thread import ThreadedProbe
from mgpu.ports import ConsumerController, GpuProbe, Located, Placement, Whereabouts

_HERE = frozenset({"localhost", "127.0.0.1", "::1"})
"""Hosts of consumers that run on this machine, under the eyes of its NVML."""


@dataclass(slots=True)
class World:
    """The GPUs and the consumers."""

    config: Config
    make: Callable[[str, ConsumerConfig], ConsumerController]
    probe: GpuProbe = field(init=False)
    beliefs: Beliefs | None = None
    """What keeps a simulated GPU informed of the consumers."""
    controllers: dict[str, ConsumerController] = field(default_factory=dict)
    """Those in use; whoever uses them takes some in and others out."""
    replaced: list[ConsumerController] = field(default_factory=list)
    """Those that others stand in for: they may still be at work, so they are closed at the end."""

    def controller(self, name: str, config: ConsumerConfig) -> ConsumerController:
        """A controller for a consumer; raise ``errors.ConfigError``."""
        made = self.make(name, config)
        return made if self.beliefs is None else self.beliefs.wrap(name, made)

    def configure(self, config: Config, others: Collection[str]) -> None:
        """Be prepared for these consumers; ``others`` are those that have other controllers now."""
        self.config = config
        self.replaced.extend(self.controllers[name] for name in others if name in self.controllers)
        if self.beliefs is not None:
            self.beliefs.configure(policy(config).consumers)

    def places(self) -> dict[str, Whereabouts]:
        """Where each consumer runs, as its controller knows it now and as its URL says.

        May be asked from any thread.
        """
        places, consumers = {}, self.config.consumers
        for name, controller in list(self.controllers.items()):
            known = controller.whereabouts if isinstance(controller, Located) else Whereabouts()
            port = _port_here(consumers[name].url) if name in consumers else None
            places[name] = replace(known, port=port)
        return places

    def observe(self, fact: Observed) -> None:
        """Be told what happens."""
        if self.beliefs is not None:
            self.beliefs.observe(fact)

    async def close(self) -> None:
        """Give everything back, side by side: each may have a program to end, with its grace."""
        await asyncio.gather(*(one.close() for one in [*self.controllers.values(), *self.replaced]))
        await self.probe.close()


def make_world(  # noqa: PLR0913 - what the ways of control need of the outside
    config: Config,
    session: aiohttp.ClientSession,
    *,
    systemctl: Sequence[str],
    died: Callable[[str], None],
    places: Callable[[str], Sequence[Placement]],
    unloaded: MutableMapping[str, str],
) -> World:
    """Make everything for a configuration; ``session`` stays the caller's.

    For ``unloaded`` and what is called by consumers' names, see ``mgpu.consumers.factory``. Raises
    ``errors.ConfigError``.
    """

    def make(name: str, consumer: ConsumerConfig) -> ConsumerController:
        return make_controller(
            name,
            consumer,
            session,
            systemctl=systemctl,
            died=partial(died, name),
            places=partial(places, name),
            unloaded=unloaded,
            listener=partial(listener, _port_here(consumer.url)),
        )

    world = World(config, make)
    if config.gpu.backend == "nvml":
        world.probe = ThreadedProbe(AttributingReader(NvmlReader(config.gpu.devices), world.places))
    else:
        simulated = config.gpu.simulated
        world.probe = gpu = SimulatedGpu(simulated.total_mib, simulated.directory)
        world.beliefs = Beliefs(gpu, policy(config).consumers)
    for name, consumer in config.consumers.items():
        world.controllers[name] = world.controller(name, consumer)
    return world


def _port_here(url: str) -> int | None:
    """The port of a consumer that runs on this machine."""
    parsed = URL(url)
    return parsed.port if parsed.host in _HERE else None
