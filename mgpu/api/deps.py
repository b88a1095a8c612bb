"""What the HTTP interface is given: the broker, the configuration and the means to talk.

The broker is a protocol here, so that the interface can be tried against one that is three
dictionaries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry

from mgpu.config.model import Config
from mgpu.core.effects import Phases
from mgpu.core.views import JobView, Snapshot
from mgpu.telemetry.feed import Feed


class Lease(Protocol):
    """The right of one job to compute; ``failed`` is set when the consumer's answer was one."""

    @property
    def job(self) -> str:
        """The job's id."""

    @property
    def consumer(self) -> str:
        """The consumer's name."""

    @property
    def phases(self) -> Phases:
        """Where the wait went."""

    failed: bool


class Broker(Protocol):
    """The part of the broker that requests need; everything raises ``errors.MgpuError``."""

    @property
    def ready_problems(self) -> tuple[str, ...]:
        """Why the broker is not ready; empty when it is."""

    def new_job_id(self) -> str:
        """An id no other job has."""

    def lease(  # noqa: PLR0913 - what a job may ask for
        self,
        job: str,
        consumer: str,
        *,
        priority: int | None = None,
        max_wait_s: float | None = None,
        idle_unload_s: float | None = None,
        load_key: str | None = None,
    ) -> AbstractAsyncContextManager[Lease]:
        """Wait until the job may compute; leaving the context gives the lease back.

        ``idle_unload_s``: how long the consumer may be idle afterwards, infinity for ever.
        ``load_key``: with what it must be loaded (``mgpu.config.residency``); None: with anything.

        A body that is cancelled ends the job as cancelled, any other exception as failed. Being
        cancelled while waiting takes the job out of the queue.
        """

    async def load(self, consumer: str, load_key: str | None = None) -> None:
        """Return when the consumer is resident, loaded with this, or with anything (None)."""

    async def unload(self, consumer: str) -> None:
        """Return when the consumer is absent."""

    async def restart(self, consumer: str) -> None:
        """Stop the consumer and its jobs, then load it again."""

    async def pin(self, consumer: str, *, pinned: bool) -> None:
        """Keep the consumer in VRAM from now on, or not any more."""

    async def pause(self) -> None:
        """Hold the queue; return when everybody has left."""

    async def resume(self) -> None:
        """Go on after a pause."""

    def cancel(self, job: str) -> None:
        """Take a job out of the queue, or stop it."""

    def jobs(self) -> tuple[JobView, ...]:
        """Every job that runs, then those that wait, in the order in which they are served."""

    def job(self, job: str) -> JobView:
        """One job that has not ended; raise ``errors.UnknownJob``."""

    def snapshot(self) -> Snapshot:
        """Everything at this moment."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a request may take up, where no configuration key sets one."""

    body_idle_s: float = 25.0
    """A request body that brings nothing for this long is given up: 30 s are promised, and a few
    of them go to telling the client."""
    body_memory_bytes: int = 1 << 18
    """What is kept in memory of a body that the consumer does not take yet; the rest of it goes
    to disk, or waits at the client when the disk has no room."""
    spool_bytes: int = 1 << 30
    """Disk that the bodies of all requests may use together."""


@dataclass(slots=True, kw_only=True)
class Deps:
    """Everything that ``make_app`` needs. The session comes from ``proxy.make_session``.

    Only ``config`` ever changes, by ``app.reconfigure``.
    """

    broker: Broker
    config: Config
    session: aiohttp.ClientSession
    registry: CollectorRegistry
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    limits: Limits = Limits()
    feed: Feed = field(default_factory=Feed)
    """Where what happens is told."""
    told_models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What each consumer told of its models before this start."""
    keep_models: Callable[[str, tuple[str, ...]], None] = lambda _consumer, _names: None
    """Keeps what one tells over restarts; returns at once."""


DEPS = web.AppKey("deps", Deps)
