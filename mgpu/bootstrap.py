"""The only place that builds the parts and joins them, and changes them while they run.

Start: state file, controllers, GPU probe, broker, listening sockets. Stop: nothing new, running
jobs end within ``server.drain_timeout_s``, who has no answer then is given one, and everything is
closed in the reverse order.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry

from mgpu import systemd
from mgpu.api.app import make_app, make_port_app, reconfigure
from mgpu.api.deps import Deps
from mgpu.api.proxy import make_session
from mgpu.api.server import HttpServer, start_server
from mgpu.api.unanswered import UNANSWERED
from mgpu.broker.clock import MonotonicClock
from mgpu.broker.effects import Observed
from mgpu.broker.service import Broker
from mgpu.config.fingerprint import fingerprints, fingerprints_of_models
from mgpu.config.keys import api_keys, secrets_of_environment
from mgpu.config.model import Config, ConsumerConfig
from mgpu.config.policy import policy
from mgpu.config.reload import controlled_otherwise
from mgpu.config.workflow import WorkflowError
from mgpu.consumers.wire import control_session
from mgpu.core.effects import Measured
from mgpu.core.views import Snapshot
from mgpu.errors import ConfigError
from mgpu.ports import Clock, Measurement, Placement
from mgpu.simulation.recorder import TraceRecorder
from mgpu.store.by_hand import ByHandStore
from mgpu.store.fence import SqliteFenceStore, database_path
from mgpu.store.measurements import MeasurementStore
from mgpu.store.models import ModelStore
from mgpu.store.unloaded import UnloadedStore
from mgpu.store.writer import Writer
from mgpu.telemetry import logs
from mgpu.telemetry.facts import log_fact
from mgpu.telemetry.feed import Feed
from mgpu.telemetry.metrics import Metrics
from mgpu.world import World, make_world

log = structlog.get_logger(__name__)

TOKENS_PER_RUN = 1 << 32
"""Fencing tokens reserved at each start: more than a run can use, and 2^31 starts' worth exist."""


@dataclass(slots=True, kw_only=True)
class Running:
    """A broker that serves: where it listens, and its parts."""

    broker: Broker
    server: HttpServer
    ports: Mapping[str, HttpServer]
    """The consumers' own ports."""
    app: web.Application
    config: Config
    """As it was read last; consumers that are still on their way out are in it too."""
    world: World
    metrics: Metrics
    measurements: MeasurementStore
    models: ModelStore
    recorder: TraceRecorder | None

    def reconfigure(self, config: Config) -> None:
        """Live by another configuration, which may differ in what can change while it runs.

        Raises ``errors.ConfigError`` before anything has changed.
        """
        rules = policy(config)
        controllers = {
            name: self.world.controller(name, config.consumers[name])
            for name in controlled_otherwise(self.config, config)
        }
        try:
            reconfigure(self.app, config)
        except WorkflowError as error:  # its file has changed since it was checked
            raise ConfigError(str(error)) from error
        logs.configure(secrets=secrets(config))
        self.world.configure(config, controllers)
        self.measurements.configure(fingerprints(config))
        self.models.configure(fingerprints_of_models(config))
        self.metrics.configure(config.consumers)
        self.broker.reconfigure(rules, controllers)
        if self.recorder is not None:
            self.recorder.configure(rules)
        leaving = self.broker.snapshot().consumers.keys() - config.consumers.keys()
        others = {name: self.config.consumers[name] for name in leaving}
        self.config = config.model_copy(update={"consumers": {**config.consumers, **others}})


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
        parts = await _build(stack, config, systemctl, () if watch is None else (watch,))
        yield parts
        timeout_s = parts.config.server.drain_timeout_s
        if not await parts.broker.drain(timeout_s):
            log.warning("jobs were cut off", drain_timeout_s=timeout_s)
        parts.app[UNANSWERED].tell()


async def _build(
    stack: AsyncExitStack,
    config: Config,
    systemctl: Sequence[str],
    watch: Iterable[Callable[[Observed], None]],
) -> Running:
    """Make the parts and begin to serve; ``stack`` takes them down in the reverse order."""
    store = SqliteFenceStore(database_path(config.jobs.database, os.environ))
    stack.callback(store.close)
    control = await stack.enter_async_context(control_session())
    session = await stack.enter_async_context(make_session())
    writer = Writer(store.path)
    stack.callback(writer.close)
    clock = MonotonicClock()
    measurements = MeasurementStore(writer, fingerprints(config))
    models = ModelStore(writer, fingerprints_of_models(config))
    by_hand = ByHandStore(writer, clock)
    unloaded = UnloadedStore(writer)

    def places(name: str) -> Sequence[Placement]:
        return broker.places(name)

    def died(consumer: str) -> None:
        broker.probe_soon(consumer)

    world = make_world(
        config, control, systemctl=systemctl, died=died, places=places, unloaded=unloaded
    )
    stack.push_async_callback(world.close)
    registry = CollectorRegistry()
    metrics, feed = Metrics(registry, config.consumers), Feed()
    watchers = [world.observe, metrics.observe, log_fact, feed.observe, *watch]

    def observe(fact: Observed) -> None:
        for watcher in watchers:
            watcher(fact)

    def observe_decision(seconds: float) -> None:
        metrics.observe_decision(seconds)
        feed.look(broker.revision)

    broker = Broker(
        policy(config),
        controllers=world.controllers,
        probe=world.probe,
        clock=clock,
        first_token=store.reserve(TOKENS_PER_RUN),
        sample_interval_s=config.gpu.sample_interval_s,
        observe=observe,
        observe_decision=observe_decision,
        keeper=by_hand,
        learned_mib=_learned(measurements),
        kept=by_hand.load({name: each.pinned for name, each in config.consumers.items()}),
    )
    metrics.watch(broker.snapshot)
    watchers.append(_remembers(measurements, broker.snapshot))
    recording = stack.enter_context(ExitStack())
    stack.push_async_callback(broker.close)
    app = make_app(
        Deps(
            broker=broker,
            config=config,
            session=session,
            registry=registry,
            api_keys=api_keys(config),
            feed=feed,
            told_models=models.load(),
            keep_models=models.keep,
        )
    )
    server, ports = await _listen(stack, app, config)
    # A start that fails since another broker listens here must not put that one's trace aside.
    if (recorder := _recorder(config, broker.snapshot, clock)) is not None:
        recording.callback(recorder.close)
        watchers.append(recorder.observe)
    stack.callback(feed.close)
    broker.start()
    return Running(
        broker=broker,
        server=server,
        ports=ports,
        app=app,
        config=config,
        world=world,
        metrics=metrics,
        measurements=measurements,
        models=models,
        recorder=recorder,
    )


async def _listen(
    stack: AsyncExitStack, app: web.Application, config: Config
) -> tuple[HttpServer, Mapping[str, HttpServer]]:
    """Open the broker's own port and the consumers'."""
    servers: list[HttpServer] = []
    stack.push_async_callback(_close_all, servers)
    server = await start_server(app, config.server.listen, systemd.listen_sockets())
    servers.append(server)
    ports = {}
    for name, consumer in config.consumers.items():
        if consumer.listen is not None:
            port, key = make_port_app(app, name), f"consumers.{name}.listen"
            ports[name] = await start_server(port, consumer.listen, key=key)
            servers.append(ports[name])
    return server, ports


async def _close_all(servers: Sequence[HttpServer]) -> None:
    """All at once: each waits a while for the connections that stay open, such as a page's."""
    await asyncio.gather(*(server.close() for server in servers))


def _recorder(
    config: Config, snapshot: Callable[[], Snapshot], clock: Clock
) -> TraceRecorder | None:
    if config.jobs.trace is None:
        return None
    return TraceRecorder(config.jobs.trace, policy=policy(config), snapshot=snapshot, clock=clock)


def _learned(measurements: MeasurementStore) -> dict[str, tuple[int, int]]:
    """Footprint and residual of the consumers that were measured before."""
    found = measurements.load()
    return {name: (known.footprint_mib, known.residual_mib) for name, known in found.items()}


def _remembers(
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


def secrets(config: Config) -> list[str]:
    """What must never be logged."""
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
