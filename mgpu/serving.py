"""The life of ``mgpu serve``: a process that systemd knows, and that signals reach.

READY is told to systemd when it listens. SIGTERM or SIGINT: not ready, and the broker is drained.
SIGHUP: the configuration is read again.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
from typing import Protocol

import structlog
import uvloop

from mgpu import systemd
from mgpu.bootstrap import Running, running, secrets
from mgpu.broker.tasks import Tasks
from mgpu.config.model import Config
from mgpu.config.problems import InvalidConfig
from mgpu.errors import ConfigError
from mgpu.telemetry import logs

log = structlog.get_logger(__name__)

GC_THRESHOLD = 50_000
"""Allocations between two collections of the youngest generation. With 10,000 jobs waiting,
Python's default of 700 stalls every answer for about 0.2 s at a time."""


class Read(Protocol):
    """Reads the configuration; with one that is ``running``, it may change no more than it can.

    Raises ``errors.ConfigError``.
    """

    def __call__(self, *, running: Config | None = None) -> Config:
        """Read it now."""


def serve(read: Read) -> None:
    """Run the broker until it is told to stop; returns after the drain.

    Raises ``errors.ConfigError`` when the configuration is wrong, or when it cannot listen, or
    cannot keep its state.
    """
    config = read()
    logs.configure(secrets=secrets(config))
    _allow_many_connections()
    uvloop.run(_serve(config, read))


async def _serve(config: Config, read: Read) -> None:
    stop, again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, again.set)
    tasks = Tasks()
    async with running(config) as parts:
        log.info("serving", listen=parts.server.addresses, consumers=list(config.consumers))
        for name, port in parts.ports.items():
            log.info("serving", consumer=name, listen=port.addresses)
        _tune_garbage_collection()
        systemd.notify(systemd.READY, systemd.status(f"serving on {parts.server.addresses[0]}"))
        tasks.spawn("ping the watchdog", _ping_watchdog())
        tasks.spawn("reload", _reload(again, read, parts))
        await stop.wait()
        log.info("stopping", drain_timeout_s=parts.config.server.drain_timeout_s)
        systemd.notify(systemd.STOPPING, systemd.status("draining"))
    await tasks.close()
    log.info("stopped")


async def _reload(again: asyncio.Event, read: Read, parts: Running) -> None:
    """Read the configuration whenever that is asked for; one that is wrong changes nothing."""
    serving = f"serving on {parts.server.addresses[0]}"
    while True:
        await again.wait()
        again.clear()
        systemd.notify(*systemd.reloading())
        status = serving
        try:
            parts.reconfigure(await asyncio.to_thread(read, running=parts.config))
            log.info("reloaded", consumers=list(parts.config.consumers))
        except ConfigError as error:
            problems = error.problems if isinstance(error, InvalidConfig) else (error,)
            for problem in problems:
                log.error("the configuration was not reloaded", problem=str(problem))  # noqa: TRY400
            status = f"{serving}; not reloaded: {problems[0]}"
        systemd.notify(systemd.READY, systemd.status(status))


async def _ping_watchdog() -> None:
    """Tell systemd that the event loop turns, twice in every interval it asked for."""
    interval_s = systemd.watchdog_interval_s()
    if interval_s is None:
        return
    while True:
        systemd.notify(systemd.WATCHDOG)
        await asyncio.sleep(interval_s / 2)


def _allow_many_connections() -> None:
    """Every waiting client is an open file: take as many as the system lets us have.

    The usual soft limit of 1024 is there for programs that still call select(2).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _tune_garbage_collection() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 20)
