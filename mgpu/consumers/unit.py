"""A consumer with a systemd unit: alone, or under the consumer's own endpoints.

The unit is started for a load that finds it stopped. It is stopped to unload a consumer that has
no unload route, and as the harder way (``escalate``) for one that has. What the endpoints do,
``HttpController`` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from mgpu.config.model import ConsumerConfig
from mgpu.consumers.http import HttpController
from mgpu.consumers.probe import wait_until
from mgpu.consumers.systemd import SystemdUnit
from mgpu.errors import ConsumerError, ConsumerFailed, LoadFailed, UnloadFailed
from mgpu.ports import Placement, ProbeReport

START_TIMEOUT_S = 120.0
"""For the whole load of a consumer whose configuration has no load route to give a deadline."""
STOP_TIMEOUT_S = 30.0

_log = structlog.get_logger(__name__)


class UnitController:
    """One consumer with a unit; implements ``ports.ConsumerController``."""

    def __init__(
        self, name: str, config: ConsumerConfig, http: HttpController, unit: SystemdUnit
    ) -> None:
        self._name = name
        self._config = config
        self._http = http
        self._unit = unit
        self._by_unit_only = config.load is None and config.unload is None

    async def load(self, placement: Placement) -> None:  # noqa: ARG002  a unit has its own GPUs
        """Start the unit if it is stopped, wait for the service, then call its load route.

        The service is there when its health probe says so or, without one, when it accepts
        connections. One deadline, the load's ``timeout_s`` or 120 s, holds for all of it. A load
        that fails stops the unit again if it had started it, and is unloaded otherwise.
        """
        timeout_s = self._config.load.timeout_s if self._config.load else START_TIMEOUT_S
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        started = False
        try:
            with self._named(LoadFailed):
                if not (await self._unit.state()).is_active:
                    started = True
                    await self._unit.start(deadline - loop.time())
            await self._wait_for_service(deadline)
            await self._http.load_until(deadline)
        except LoadFailed:
            await (self._stop_again() if started else self._http.clean_up())
            raise

    async def unload(self) -> None:
        """Call the unload route or, where there is none, stop the unit within 30 s."""
        if self._config.unload is not None:
            await self._http.unload()
        else:
            await self.escalate()

    async def escalate(self) -> None:
        """Stop the unit within 30 s; raise ``UnloadFailed``."""
        with self._named(UnloadFailed):
            await self._unit.stop(STOP_TIMEOUT_S)

    async def probe(self) -> ProbeReport:
        """Ask the unit's state and, only when it runs, the service.

        A stopped unit's consumer is never connected to: that could start it by its socket.
        """
        try:
            state = await self._unit.state()
        except ConsumerFailed as error:
            return ProbeReport(reachable=False, healthy=False, detail=error.detail)
        if not state.is_active:
            resident = False if state.is_stopped else None
            detail = f"{self._unit.name} is {state}"
            return ProbeReport(reachable=False, healthy=False, resident=resident, detail=detail)
        report = ProbeReport(reachable=True, healthy=True)
        if self._config.health is not None or self._config.resident is not None:
            report = await self._http.probe()
        if self._by_unit_only and self._config.resident is None:
            return ProbeReport(
                report.reachable, report.healthy, resident=True, detail=report.detail
            )
        return report

    async def close(self) -> None:
        """Return: nothing is held between calls."""
        await self._http.close()

    async def _wait_for_service(self, deadline: float) -> None:
        health = self._config.health is not None
        await wait_until(
            lambda report: report.healthy if health else report.reachable,
            self._ask_started,
            deadline=deadline,
            what=f"consumer {self._name}: {self._unit.name} runs, but the service did not "
            + ("become healthy" if health else "accept connections"),
        )

    async def _ask_started(self) -> ProbeReport:
        """Probe a service that is starting; raise ``LoadFailed`` when its unit gave up."""
        with self._named(LoadFailed):
            state = await self._unit.state()
            if state.is_stopped:
                raise LoadFailed(f"{self._unit.name}: ended after its start, it is {state}")
        return await self._http.probe()

    async def _stop_again(self) -> None:
        try:
            await self.escalate()
        except UnloadFailed as error:
            _log.warning("clean_up_failed", consumer=self._name, error=error.detail)

    @contextmanager
    def _named(self, failure: type[LoadFailed | UnloadFailed]) -> Iterator[None]:
        """Add the consumer's name to what the unit says."""
        try:
            yield
        except ConsumerError as error:
            raise failure(f"consumer {self._name}: {error.detail}") from error
