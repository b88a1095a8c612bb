"""The only place that builds the parts and joins them, and the life of ``mgpu serve``.

Start: state file, controllers, GPU probe, broker, listening socket, then READY to systemd. Stop
(SIGTERM or SIGINT): not ready, nothing new, running jobs end within ``server.drain_timeout_s``,
then everything is closed in the reverse order.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import aiohttp
import structlog
import uvloop
from prometheus_client import CollectorRegistry
from yarl import URL

from mgpu import systemd
from mgpu.api.app import make_app, make_port_app
from mgpu.api.deps import Deps
from mgpu.api.proxy import make_session
from mgpu.api.server import HttpServer, start_server
from mgpu.broker.clock import MonotonicClock
from mgpu.broker.effects import Observed
from mgpu.broker.service import Broker
from mgpu.broker.tasks import Tasks
from mgpu.config.fingerprint import fingerprints
from mgpu.config.keys import api_keys, secrets_of_environment
from mgpu.config.model import Config, ConsumerConfig
from mgpu.config.policy import policy
from mgpu.consumers.factory import make_controller
from mgpu.consumers.wire import control_session
from mgpu.core.effects import Measured
from mgpu.core.views import Snapshot
from mgpu.gpu.attribution import AttributingReader
from mgpu.gpu.beliefs import Beliefs
from mgpu.gpu.nvml import NvmlReader
from mgpu.gpu.simulated import SimulatedGpu
from mgpu.gpu.thread import ThreadedProbe
from mgpu.ports import (
    ConsumerController,
    GpuProbe,
    Located,
    Measurement,
    Placement,
    Whereabouts,
)
from mgpu.simulation.recorder import TraceRecorder
from mgpu.store.fence import SqliteFenceStore, database_path
from mgpu.store.measurements import MeasurementStore
from mgpu.telemetry import logs
from mgpu.telemetry.facts import log_fact
from mgpu.telemetry.feed import Feed
from mgpu.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

_HERE = frozenset({"localhost", "127.0.0.1", "::1"})
"""Hosts of consumers that run on this machine, under the eyes of its NVML."""

TOKENS_PER_RUN = 1 << 32
"""Fencing tokens reserved at each start: more than a run can use, and 2^31 starts' worth exist."""

GC_THRESHOLD = 50_000
"""Allocations between two collections of the youngest generation. With 10,000 jobs waiting,
Python's default of 700 stalls every answer for about 0.2 s at a time."""


@dataclass(frozen=True, slots=True)
class Running:
    """A broker that serves: where it listens, and its parts."""

    broker: Broker
    server: HttpServer
    ports: Mapping[str, HttpServer]
    """The consumers' own ports."""


def serve(config: Config) -> None:
    """Run the broker until it is told to stop; returns after the drain.

    Raises ``errors.ConfigError`` when it cannot listen, or cannot keep its state.
    """
    logs.configure(secrets=_secrets(config))
    _allow_many_connections()
    uvloop.run(_serve(config))


@asynccontextmanager
async def running(
    config: Config,
    *,
    systemctl: Sequence[str] = ("systemctl",),
    watch: Callable[[Observed], None] | None = None,
) -> AsyncIterator[Running]:
    """Build a broker, serve while the body runs, then drain it and take it down.

    ``systemctl`` is the command that starts and stops units; ``watch`` is told what logs and
    metrics are told.
    """
    async with AsyncExitStack() as stack:
        store = SqliteFenceStore(database_path(config.jobs.database, os.environ))
        stack.callback(store.close)
        control = await stack.enter_async_context(control_session())
        session = await stack.enter_async_context(make_session())
        measurements = MeasurementStore(store.path, fingerprints(config))
        stack.callback(measurements.close)

        def died(consumer: str) -> None:
            broker.probe_soon(consumer)

        def places(name: str) -> Sequence[Placement]:
            return broker.places(name)

        probe, controllers, believe = _world(config, control, systemctl, died, places)
        stack.push_async_callback(probe.close)
        stack.push_async_callback(_close_controllers, controllers.values())
        registry = CollectorRegistry()
        metrics = Metrics(registry, config.consumers)

        feed = Feed()
        watchers: list[Callable[[Observed], None]] = [
            believe,
            metrics.observe,
            log_fact,
            feed.observe,
        ]
        if watch is not None:
            watchers.append(watch)

        def observe(fact: Observed) -> None:
            for watcher in watchers:
                watcher(fact)

        def observe_decision(seconds: float) -> None:
            metrics.observe_decision(seconds)
            feed.look(broker.revision)

        clock = MonotonicClock()
        rules = policy(config)
        broker = Broker(
            rules,
            controllers=controllers,
            probe=probe,
            clock=clock,
            first_token=store.reserve(TOKENS_PER_RUN),
            sample_interval_s=config.gpu.sample_interval_s,
            observe=observe,
            observe_decision=observe_decision,
            learned_mib=_learned(measurements),
        )
        metrics.watch(broker.snapshot)
        watchers.append(_keeper(measurements, broker.snapshot))
        if config.jobs.trace is not None:
            recorder = TraceRecorder(
                config.jobs.trace, policy=rules, snapshot=broker.snapshot, clock=clock
            )
            stack.callback(recorder.close)
            watchers.append(recorder.observe)
        stack.push_async_callback(broker.close)
        app = make_app(
            Deps(
                broker=broker,
                config=config,
                session=session,
                registry=registry,
                api_keys=api_keys(config),
                feed=feed,
            )
        )
        servers: list[HttpServer] = []
        stack.push_async_callback(_close_all, servers)
        server = await start_server(app, config.server.listen, systemd.listen_sockets())
        servers.append(server)
        ports = {}
        for name, consumer in config.consumers.items():
            if consumer.listen is not None:
                port = make_port_app(app, name)
                key = f"consumers.{name}.listen"
                ports[name] = await start_server(port, consumer.listen, key=key)
                servers.append(ports[name])
        stack.callback(feed.close)
        broker.start()
        _tune_garbage_collection()
        yield Running(broker, server, ports)
        if not await broker.drain(config.server.drain_timeout_s):
            log.warning("jobs were cut off", drain_timeout_s=config.server.drain_timeout_s)


async def _serve(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tasks = Tasks()
    async with running(config) as parts:
        log.info("serving", listen=parts.server.addresses, consumers=list(config.consumers))
        for name, port in parts.ports.items():
            log.info("serving", consumer=name, listen=port.addresses)
        systemd.notify(systemd.READY, systemd.status(f"serving on {parts.server.addresses[0]}"))
        tasks.spawn("ping the watchdog", _ping_watchdog())
        await stop.wait()
        log.info("stopping", drain_timeout_s=config.server.drain_timeout_s)
        systemd.notify(systemd.STOPPING, systemd.status("draining"))
    await tasks.close()
    log.info("stopped")


async def _close_all(servers: Sequence[HttpServer]) -> None:
    """All at once: each waits a while for the connections that stay open, such as a page's."""
    await asyncio.gather(*(server.close() for server in servers))


async def _ping_watchdog() -> None:
    """Tell systemd that the event loop turns, twice in every interval it asked for."""
    interval_s = systemd.watchdog_interval_s()
    if interval_s is None:
        return
    while True:
        systemd.notify(systemd.WATCHDOG)
        await asyncio.sleep(interval_s / 2)


async def _close_controllers(controllers: Iterable[ConsumerController]) -> None:
    """Side by side: each may have a program to end, and the grace that goes with it."""
    await asyncio.gather(*(controller.close() for controller in controllers))


def _secrets(config: Config) -> list[str]:
    headers = [
        value
        for consumer in config.consumers.values()
        for sent in _headers(consumer)
        for value in sent.values()
    ]
    headers += [value.rpartition(" ")[2] for value in headers]  # without "Bearer"
    environment = [
        value
        for consumer in config.consumers.values()
        for value in secrets_of_environment(consumer)
    ]
    return [*api_keys(config), *headers, *environment]


def _headers(consumer: ConsumerConfig) -> Iterator[Mapping[str, str]]:
    """All headers that are sent to a consumer's own routes."""
    yield consumer.headers
    each = consumer.unload.for_each if consumer.unload else None
    calls = (consumer.load, consumer.unload, consumer.health, consumer.resident, consumer.busy)
    for request in (*calls, each):
        if request is not None:
            yield request.headers


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


def _learned(measurements: MeasurementStore) -> dict[str, tuple[int, int]]:
    """Footprint and residual of the consumers that were measured before."""
    found = measurements.load()
    return {name: (known.footprint_mib, known.residual_mib) for name, known in found.items()}


def _keeper(
    measurements: MeasurementStore, snapshot: Callable[[], Snapshot]
) -> Callable[[Observed], None]:
    """Writes down what was learned, with the UUIDs of the GPUs that it was learned on."""

    def keep(fact: Observed) -> None:
        if isinstance(fact, Measured):
            uuids = {gpu.index: gpu.uuid for gpu in snapshot().gpus}
            where = " ".join(uuids[index] for index in fact.gpus)
            measurement = Measurement(fact.footprint_mib, fact.residual_mib)
            measurements.keep(fact.consumer, where, measurement)

    return keep


def _places(
    config: Config, controllers: Mapping[str, ConsumerController]
) -> dict[str, Whereabouts]:
    """Where each consumer runs, as its controller knows it now and as its URL says."""
    places = {}
    for name, controller in controllers.items():
        known = controller.whereabouts if isinstance(controller, Located) else Whereabouts()
        url = URL(config.consumers[name].url)
        port = url.port if url.host in _HERE else None
        places[name] = replace(known, port=port)
    return places


def _world(
    config: Config,
    session: aiohttp.ClientSession,
    systemctl: Sequence[str],
    died: Callable[[str], None],
    places: Callable[[str], Sequence[Placement]],
) -> tuple[GpuProbe, dict[str, ConsumerController], Callable[[Observed], None]]:
    """The GPUs, the consumers, and what keeps the simulated GPU informed of them."""
    controllers = {
        name: make_controller(
            name,
            consumer,
            session,
            systemctl=systemctl,
            died=partial(died, name),
            places=partial(places, name),
        )
        for name, consumer in config.consumers.items()
    }
    if config.gpu.backend == "nvml":
        reader = AttributingReader(
            NvmlReader(config.gpu.devices), partial(_places, config, controllers)
        )
        return ThreadedProbe(reader), controllers, lambda _fact: None
    simulated = config.gpu.simulated
    gpu = SimulatedGpu(simulated.total_mib, simulated.directory)
    beliefs = Beliefs(gpu, policy(config).consumers)
    return gpu, beliefs.wrap(controllers), beliefs.observe
