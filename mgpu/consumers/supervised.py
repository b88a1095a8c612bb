"""A consumer that somebody starts and stops as a whole: a unit, a container, a program of ours.

Its supervisor starts it for a load that finds it stopped. It is stopped to unload a consumer that
has no unload route, and as the harder way (``escalate``) for one that has. What the endpoints do,
``HttpController`` does. That it runs is the supervisor's word and says little: a service is there
when it answers, and one that runs without answering is stopped, since only that can mend it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Protocol

import structlog

from mgpu.config.model import ConsumerConfig
from mgpu.consumers.http import HttpController
from mgpu.consumers.probe import wait_until
from mgpu.errors import ConsumerError, ConsumerFailed, LoadFailed, UnloadFailed
from mgpu.ports import Placement, ProbeReport, Whereabouts

START_TIMEOUT_S = 120.0
"""For the whole load of a consumer whose configuration has no load route to give a deadline."""
IDLE_TIMEOUT_S = 30.0
"""How long one without an unload route may compute before it is left alone, as an unload's call."""
STOP_MARGIN_S = 20.0
"""What a stop may take on top of the grace that the consumer has: to be killed, and to be gone."""

_log = structlog.get_logger(__name__)


class _EndedError(LoadFailed):
    """It ended while its service was waited for."""


class SupervisorState(Protocol):
    """How a consumer is as a whole; as text, in its supervisor's words."""

    @property
    def is_active(self) -> bool:
        """It runs and has finished starting, as far as its supervisor can tell."""

    @property
    def is_stopped(self) -> bool:
        """No process of it is left."""

    @property
    def healthy(self) -> bool | None:
        """What a health check of the supervisor's own says; None where there is none."""

    @property
    def whereabouts(self) -> Whereabouts:
        """Where its processes are to be found now."""

    @property
    def run(self) -> str:
        """What tells this run of it from all others, over restarts of the broker; empty: unknown.

        What does not run may say the same of its last one.
        """


class Supervisor(Protocol):
    """Who starts and stops a consumer as a whole. ``name`` is how a person would call it.

    What is to be started on other GPUs has a supervisor of its own (``mgpu.consumers.placed``).
    """

    name: str

    async def start(self, timeout_s: float) -> None:
        """Return when it runs; raise ``LoadFailed`` after ``timeout_s``, or little later."""

    async def stop(self, timeout_s: float) -> None:
        """Return when no process of it is left; otherwise as ``start``, with ``UnloadFailed``."""

    async def state(self) -> SupervisorState:
        """Ask how it is, within 2 s; raise ``ConsumerFailed`` when nobody can say."""

    async def close(self) -> None:
        """Give back connections, and end what would not live without the broker."""


class SupervisedController:
    """One consumer with a supervisor; implements ``ports.ConsumerController``."""

    def __init__(
        self, name: str, config: ConsumerConfig, http: HttpController, supervisor: Supervisor
    ) -> None:
        self._name = name
        self._config = config
        self._http = http
        self._supervisor = supervisor
        self._by_supervisor_only = config.load is None and config.unload is None
        self._whereabouts = Whereabouts()
        self._loaded_run = ""
        """The run that was loaded last or, before that, found first: it may hold its memory."""

    @property
    def whereabouts(self) -> Whereabouts:
        """Where its processes were to be found when its supervisor was last asked."""
        return self._whereabouts

    async def load(self, placement: Placement, body: Any = None) -> None:
        """Start it if it is stopped, wait for the service, then call its load route.

        The service is there when its health probe says so; without one, when its supervisor's own
        health check does; without either, when it accepts connections. One deadline, the load's
        ``timeout_s`` or 120 s, holds for all of it. A load that fails stops it again if the load
        had started it or the service never came, and unloads it by its endpoint otherwise.
        """
        timeout_s = self._config.load.timeout_s if self._config.load else START_TIMEOUT_S
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        to_be_stopped = True
        try:
            if await self._serves_already(deadline):
                to_be_stopped = False
            else:
                with self._named(LoadFailed):
                    await self._supervisor.start(deadline - loop.time())
                await self._wait_for_service(deadline)
            # Should it restart from here on, it is another run than this one that is asked next.
            run = self._http.run
            await self._http.load_until(deadline, placement, body)
            self._loaded_run = run
        except LoadFailed:
            await (self._stop_again() if to_be_stopped else self._http.clean_up())
            raise

    async def unload(self) -> None:
        """Call the unload route or, where there is none, stop it as ``escalate`` does.

        Either when the consumer is idle: ``UnloadDeclined`` when it is not in time.
        """
        if self._config.unload is not None:
            if self._config.is_remembered:
                with suppress(ConsumerFailed):
                    await self._state()
            await self._http.unload()
            return
        deadline = asyncio.get_running_loop().time() + IDLE_TIMEOUT_S
        otherwise = f"consumer {self._name}: {self._supervisor.name} was not stopped"
        await self._http.wait_until_idle(deadline, otherwise)
        await self.escalate()

    async def escalate(self) -> None:
        """Stop it within 20 s and the grace it has; raise ``UnloadFailed``."""
        with self._named(UnloadFailed):
            await self._supervisor.stop(self._config.stop_grace_s + STOP_MARGIN_S)
        self._http.forget()

    async def probe(self) -> ProbeReport:
        """Ask the supervisor and, only when it says that it runs, the service.

        A stopped unit's consumer is never connected to: that could start it by its socket. One that
        has a load route and does not say what it holds is not resident when it has been restarted,
        by its supervisor or by somebody, since it was loaded.
        """
        try:
            state = await self._state()
        except ConsumerFailed as error:
            return ProbeReport(reachable=False, healthy=False, detail=error.detail)
        if not state.is_active:
            self._http.forget()
            resident = False if state.is_stopped else None
            detail = f"{self._supervisor.name} is {state}"
            return ProbeReport(reachable=False, healthy=False, resident=resident, detail=detail)
        report = replace(await self._http.probe(), alive=True)
        if self._config.health is None and state.healthy is False:
            detail = report.detail or f"{self._supervisor.name} is {state}"
            report = replace(report, healthy=False, detail=detail)
        if self._by_supervisor_only and self._config.resident is None:
            return replace(report, resident=True)
        tells = report.resident is not None or self._config.load is None
        if tells or self._http.run == self._loaded_run:
            return report
        return replace(report, resident=False)

    async def close(self) -> None:
        """End what would not live without the broker."""
        await self._supervisor.close()
        await self._http.close()

    async def _serves_already(self, deadline: float) -> bool:
        """Wait for the service of one that runs; False: it does not, or not any more."""
        with self._named(LoadFailed):
            if not (await self._state()).is_active:
                return False
        try:
            await self._wait_for_service(deadline)
        except _EndedError:
            return False
        return True

    async def _wait_for_service(self, deadline: float) -> None:
        wanted = "become healthy" if self._config.health else "accept connections"
        await wait_until(
            lambda report: report.healthy,
            self._ask_started,
            deadline=deadline,
            what=f"consumer {self._name}: {self._supervisor.name} runs, but the service did not "
            f"{wanted}",
        )

    async def _ask_started(self) -> ProbeReport:
        """Say whether a service that is starting is there, as its health.

        Raises ``LoadFailed`` when its supervisor gave up.
        """
        with self._named(LoadFailed):
            state = await self._state()
        if state.is_stopped:
            what = f"consumer {self._name}: {self._supervisor.name}"
            raise _EndedError(f"{what}: ended after its start, it is {state}")
        if not state.is_active or (self._config.health is None and state.healthy is False):
            detail = f"{self._supervisor.name} is {state}"
            return ProbeReport(reachable=False, healthy=False, detail=detail)
        report = await self._http.probe()
        # Without a health route, being there is enough: the residence route may say no to anything
        # before the load.
        return report if self._config.health else replace(report, healthy=report.reachable)

    async def _state(self) -> SupervisorState:
        state = await self._supervisor.state()
        self._whereabouts = state.whereabouts
        self._http.found(state.run)
        self._loaded_run = self._loaded_run or state.run
        return state

    async def _stop_again(self) -> None:
        try:
            await self.escalate()
        except UnloadFailed as error:
            _log.warning("clean_up_failed", consumer=self._name, error=error.detail)

    @contextmanager
    def _named(self, failure: type[LoadFailed | UnloadFailed]) -> Iterator[None]:
        """Add the consumer's name to what the supervisor says."""
        try:
            yield
        except ConsumerError as error:
            raise failure(f"consumer {self._name}: {error.detail}") from error
