"""A consumer whose configuration depends on where it is loaded (``mgpu.config.gpu_placeholders``).

Each place has a controller of its own, with the placeholders filled in for it; which of them is
meant is the broker's belief, so that an unload reaches the instance that was loaded. Where what is
started differs from place to place (the instances of ``llm@{gpu_index}.service``, a container or a
program for each GPU), the one that runs says where the consumer is: after a restart of the broker
nothing else can tell.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mgpu.config import gpu_placeholders
from mgpu.config.model import ConsumerConfig
from mgpu.errors import UnloadFailed
from mgpu.ports import ConsumerController, Located, Placement, ProbeReport, Whereabouts

Places = Callable[[], Sequence[Placement]]
"""Where a consumer may live: first where it is taken to live now. Empty before GPUs were read."""

_STARTED_BY = ("systemd_unit", "container", "command", "environment")


class PlacedController:
    """One consumer with placeholders; implements ``ports.ConsumerController``.

    ``make`` gives the controller for a configuration that is filled in.
    """

    def __init__(
        self,
        name: str,
        config: ConsumerConfig,
        make: Callable[[ConsumerConfig], ConsumerController],
        places: Places,
    ) -> None:
        self._name = name
        self._config = config
        self._make = make
        self._places = places
        self._made: dict[Placement, ConsumerController] = {}
        self._last: ConsumerController | None = None

    async def load(self, placement: Placement, body: Any = None) -> None:
        """Load the instance of this place; raise ``LoadFailed``."""
        self._last = self._at(placement)
        await self._last.load(placement, body)

    async def unload(self) -> None:
        """Unload the instance of the place where it lives; raise ``UnloadFailed``."""
        await self._here().unload()

    async def escalate(self) -> None:
        """Unload that instance by the harder way; raise ``UnloadFailed``."""
        await self._here().escalate()

    async def probe(self) -> ProbeReport:
        """Ask the instance of the place where it is taken to live, then the others.

        Who runs tells where it is. When none does, one of which nobody can say whether it runs
        speaks for all.
        """
        places = self._places()
        if not places:
            return ProbeReport(reachable=False, healthy=False, asked=False)
        if not self._tells_where(places[0]):
            return await self._at(places[0]).probe()
        silent: list[ProbeReport] = []
        for place in places:
            report = await self._at(place).probe()
            if report.reachable or report.resident or report.alive:
                self._last = self._at(place)
                return replace(report, gpus=place.gpus)
            silent.append(report)
        return next((report for report in silent if report.resident is None), silent[0])

    async def close(self) -> None:
        """Close the controllers of all places, side by side: each may have a program to end."""
        await asyncio.gather(*(controller.close() for controller in self._made.values()))

    @property
    def whereabouts(self) -> Whereabouts:
        """Of the instance that was loaded, or found, last."""
        return self._last.whereabouts if isinstance(self._last, Located) else Whereabouts()

    def _here(self) -> ConsumerController:
        places = self._places()
        if not places:
            raise UnloadFailed(f"consumer {self._name}: no GPU has been read, so where is it?")
        return self._at(places[0])

    def _at(self, place: Placement) -> ConsumerController:
        if place not in self._made:
            self._made[place] = self._make(gpu_placeholders.fill_consumer(self._config, place))
        return self._made[place]

    def _tells_where(self, place: Placement) -> bool:
        """Whether what is started is another one at another place."""
        filled = gpu_placeholders.fill_consumer(self._config, place)
        return any(getattr(filled, way) != getattr(self._config, way) for way in _STARTED_BY)
