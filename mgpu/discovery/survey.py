"""Everything that was found on this machine: known services, and what else answers.

A service that another one has started is that one's business (ComfyUI behind SwarmUI, the
llama-servers of a llama-swap), and a broker's own ports are nobody new.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp

from mgpu.config import presets
from mgpu.config.model import ConsumerConfig, ModelsConfig
from mgpu.config.presets import Found
from mgpu.consumers.models import served_models
from mgpu.consumers.wire import control_session
from mgpu.discovery.fingerprints import Verdict, questions, recognise
from mgpu.discovery.homes import Containers, Home, containers, home
from mgpu.discovery.listeners import Listener, family

MAX_PORTS = 256
MAX_AT_ONCE = 8
_PRIVILEGED = 1024


@dataclass(frozen=True, slots=True)
class Service:
    """One that was found. ``presets`` are several when they cannot be told apart."""

    name: str
    url: str
    presets: tuple[Found, ...]
    listener: Listener
    home: Home
    pids: frozenset[int] = frozenset()
    """Its process and all that this one has started."""
    models: tuple[str, ...] | None = None
    """What it tells; None: it does not."""

    @property
    def found(self) -> Found:
        """Its preset, or the first of them."""
        return self.presets[0]

    @property
    def is_clear(self) -> bool:
        """Whether it is known which service it is."""
        return len(self.presets) == 1


@dataclass(frozen=True, slots=True)
class Stranger:
    """Something that speaks HTTP and is not known."""

    url: str
    process: str
    wants_a_key: bool
    usual: tuple[str, ...]
    """The presets that have its port by default."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found, by port."""

    services: tuple[Service, ...] = ()
    strangers: tuple[Stranger, ...] = ()
    parts: tuple[tuple[str, str], ...] = ()
    """The URL of each service that another one has started, and that one's name."""
    brokers: tuple[int, ...] = ()
    """Ports of a broker that runs."""
    asked: int = 0
    """How many ports were asked."""
    left_out: tuple[int, ...] = ()
    """Ports beyond the most that are asked."""
    taken: frozenset[int] = frozenset()
    """Every port that somebody listens at."""
    problem: str = ""
    """Why the container engine could not be asked, if so."""


async def survey(
    listening: Sequence[Listener],
    folder: Path,
    engine: Path,
    *,
    systemctl: Sequence[str] = ("systemctl",),
) -> Survey:
    """Ask what listens. ``folder`` is that of the configuration, for a user's own presets.

    Raises ``InvalidConfig`` for a preset that cannot be read.
    """
    known = [presets.find(name, folder) for name in presets.names(folder)]
    usual = {port for found in known for port in found.preset.ports}
    worth = [
        each
        for each in listening
        if not each.is_broker and (each.port >= _PRIVILEGED or each.port in usual)
    ]
    worth.sort(key=lambda each: (each.port not in usual, each.port))
    asked, left_out = worth[:MAX_PORTS], worth[MAX_PORTS:]
    verdicts, engine_says = await asyncio.gather(_ask_all(asked, known), containers(engine))
    answers = sorted(zip(asked, verdicts, strict=True), key=lambda pair: pair[0].port)
    services = [
        Service("", verdict.url, verdict.presets, listener, Home())
        for listener, verdict in answers
        if verdict.presets
    ]
    whole, parts = _told_apart(_named(services))
    settled = await _settled(whole, engine_says, systemctl)
    return Survey(
        services=tuple(settled),
        strangers=tuple(
            _stranger(listener, verdict, known)
            for listener, verdict in answers
            if verdict.speaks_http and not verdict.presets and not verdict.is_broker
        ),
        parts=tuple(parts),
        brokers=tuple(
            sorted(
                {each.port for each in listening if each.is_broker}
                | {listener.port for listener, verdict in answers if verdict.is_broker}
            )
        ),
        asked=len(asked),
        left_out=tuple(each.port for each in left_out),
        taken=frozenset(each.port for each in listening),
        problem=engine_says.problem,
    )


async def _ask_all(listening: Sequence[Listener], known: Iterable[Found]) -> list[Verdict]:
    asked, turns = questions(known), asyncio.Semaphore(MAX_AT_ONCE)
    async with control_session() as session:

        async def ask(listener: Listener) -> Verdict:
            async with turns:
                return await recognise(listener, asked, session)

        return list(await asyncio.gather(*map(ask, listening)))


def _named(services: Sequence[Service]) -> list[Service]:
    """Give each the name of its preset, with its port where there are several of a kind."""
    kinds = Counter(service.found.name for service in services)
    names: set[str] = set()
    named = []
    for service in services:
        kind = service.found.name
        name = kind if kinds[kind] == 1 else f"{kind}-{service.listener.port}"
        names.add(name)
        named.append(replace(service, name=name))
    return named


def _told_apart(services: Sequence[Service]) -> tuple[list[Service], list[tuple[str, str]]]:
    """Those that stand for themselves, and those that another one of them has started."""
    by_pid = {each.listener.pid: each.name for each in services if each.listener.pid is not None}
    whole, parts = [], []
    for service in services:
        owner = next((by_pid[p] for p in service.listener.ancestors if p in by_pid), None)
        if owner is None:
            whole.append(service)
        else:
            parts.append((service.url, owner))
    return whole, parts


async def _settled(
    services: Sequence[Service], engine: Containers, systemctl: Sequence[str]
) -> list[Service]:
    """Add where each runs and which models it tells; a unit of several services is nobody's."""
    homes = [
        await asyncio.to_thread(
            home, each.listener.pid, each.listener.port, engine, systemctl=systemctl
        )
        for each in services
    ]
    shared = Counter((each.unit, each.scope, each.container) for each in homes)
    settled = []
    async with control_session() as session:
        for service, place in zip(services, homes, strict=True):
            lives = place
            named = place.unit or place.container
            if named and shared[place.unit, place.scope, place.container] > 1:
                lives = Home(note=f"runs in {named} together with others: not stopped with it")
            models = await _models(service, session)
            settled.append(
                replace(service, home=lives, models=models, pids=family(service.listener.pid))
            )
    return settled


async def _models(service: Service, session: aiohttp.ClientSession) -> tuple[str, ...] | None:
    """Those that it tells, where its preset says that it does."""
    where = service.found.preset.consumer.get("models")
    if not service.is_clear or where is None:
        return None
    config = ConsumerConfig(url=service.url, models=ModelsConfig.model_validate(where))
    return await served_models(config, session)


def _stranger(listener: Listener, verdict: Verdict, known: Sequence[Found]) -> Stranger:
    usual = tuple(found.name for found in known if listener.port in found.preset.ports)
    return Stranger(verdict.url, listener.process, verdict.wants_a_key, usual)
