"""Consumers that come back as another process, and what is believed of that one.

The service is real. Its supervisor is made up, so that a restart comes just when it is meant to;
``test_controllers`` has real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mgpu.config.model import ConsumerConfig
from mgpu.consumers.http import HttpController
from mgpu.consumers.supervised import SupervisedController
from mgpu.errors import ConsumerFailed
from mgpu.ports import Placement, Whereabouts

NOWHERE = Placement()
LOAD: dict[str, Any] = {"load": {"path": "/load", "timeout_s": 5}}
UNLOAD: dict[str, Any] = {"unload": {"path": "/unload", "timeout_s": 5}}
ONCE: dict[str, Any] = {key: call | {"repeatable": False} for key, call in (LOAD | UNLOAD).items()}
RESIDENT: dict[str, Any] = {"resident": {"path": "/status", "when": "loaded"}}


@dataclass
class Unit:
    """Something that is started and stopped; its state is itself."""

    name: str = "tts.service"
    starts: int = 1
    runs: bool = True
    tells: bool = True
    healthy: bool | None = None
    whereabouts: Whereabouts = field(default_factory=Whereabouts)

    @property
    def run(self) -> str:
        return f"run {self.starts}"

    @property
    def is_active(self) -> bool:
        return self.runs

    @property
    def is_stopped(self) -> bool:
        return not self.runs

    def restarts(self) -> None:
        self.starts += 1

    async def start(self, timeout_s: float) -> None:
        if not self.runs:
            self.runs = True
            self.restarts()

    async def stop(self, timeout_s: float) -> None:
        self.runs = False

    async def state(self) -> Unit:
        if not self.tells:
            raise ConsumerFailed("systemctl show hung")
        return self

    async def close(self) -> None:
        pass


class Restarting:
    """A service in such a unit, which notes what it was asked for, and its controllers."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.unit = Unit()
        self.heard: list[str] = []
        self.unloaded: MutableMapping[str, str] = {}
        self.restarts_in_a_load = False
        self.loads, self.may_load = asyncio.Event(), asyncio.Event()
        self.may_load.set()
        self._session = session
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self.server = TestServer(app)

    async def _answer(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            self.heard.append(request.path)
        if request.path == "/load":
            self.loads.set()
            await self.may_load.wait()
            if self.restarts_in_a_load:
                self.unit.restarts()
        return web.json_response({"loaded": True})

    def controller(self, **config: Any) -> SupervisedController:
        given = {"url": str(self.server.make_url("")), "systemd_unit": "tts"}
        made = ConsumerConfig.model_validate(given | {"health": {"path": "/"}} | config)
        http = HttpController("tts", made, self._session, self.unloaded)
        return SupervisedController("tts", made, http, self.unit)


@pytest.fixture
async def service(session: aiohttp.ClientSession) -> AsyncIterator[Restarting]:
    made = Restarting(session)
    async with made.server:
        yield made


async def resident(one: SupervisedController) -> bool | None:
    return (await one.probe()).resident


async def test_one_that_restarted_since_its_load_is_empty_until_the_next(
    service: Restarting,
) -> None:
    one = service.controller(**LOAD, **UNLOAD)
    await one.load(NOWHERE)
    assert await resident(one) is None
    service.unit.restarts()
    assert [await resident(one) for _ in range(2)] == [False, False]
    await one.load(NOWHERE)
    assert await resident(one) is None


async def test_one_that_was_found_running_is_empty_when_it_has_restarted(
    service: Restarting,
) -> None:
    one = service.controller(**LOAD, **UNLOAD)
    assert await resident(one) is None
    service.unit.restarts()
    assert await resident(one) is False


async def test_a_restart_by_the_broker_or_by_hand_is_no_other_than_its_own(
    service: Restarting,
) -> None:
    one = service.controller(**LOAD, **UNLOAD)
    await one.load(NOWHERE)
    await one.escalate()
    assert await resident(one) is False
    await one.load(NOWHERE)
    assert await resident(one) is None
    await service.unit.stop(5)
    await service.unit.start(5)
    assert await resident(one) is False


async def test_one_that_restarts_while_it_is_loaded_is_empty(service: Restarting) -> None:
    one = service.controller(**LOAD, **UNLOAD)
    service.restarts_in_a_load = True
    await one.load(NOWHERE)
    assert await resident(one) is False


async def test_a_probe_during_the_load_that_started_it_changes_nothing(
    service: Restarting,
) -> None:
    one = service.controller(**LOAD, **UNLOAD)
    assert await resident(one) is None
    await service.unit.stop(5)
    service.may_load.clear()
    async with asyncio.timeout(10):
        loading = asyncio.create_task(one.load(NOWHERE))
        await service.loads.wait()
        assert await resident(one) is False
        service.may_load.set()
        await loading
    assert await resident(one) is None


@pytest.mark.parametrize(
    ("keys", "word"),
    [(UNLOAD, None), ({}, True), (LOAD | UNLOAD | RESIDENT, True)],
    ids=["its start or first job loads it", "its start is its load", "it is asked"],
)
async def test_one_that_is_loaded_all_the_same_or_tells_is_not_taken_for_empty(
    service: Restarting, keys: dict[str, Any], word: bool | None
) -> None:
    one = service.controller(**keys)
    await one.load(NOWHERE)
    service.unit.restarts()
    assert await resident(one) is word


# Those that must not be asked twice


async def test_a_new_process_was_not_asked_to_unload_and_begins_resident(
    service: Restarting,
) -> None:
    one = service.controller(**ONCE)
    await one.load(NOWHERE)
    await one.unload()
    assert await resident(one) is False
    service.unit.restarts()
    assert await resident(one) is True
    await one.load(NOWHERE)
    assert service.heard == ["/unload"]


async def test_an_unload_counts_for_the_process_that_it_was_sent_to(service: Restarting) -> None:
    one = service.controller(**ONCE)
    assert await resident(one) is True
    service.unit.restarts()
    await one.unload()
    assert await resident(one) is False
    await one.unload()
    assert service.heard == ["/unload"]


async def test_an_unload_is_sent_although_nobody_can_say_to_which_process(
    service: Restarting,
) -> None:
    one = service.controller(**ONCE)
    service.unit.tells = False
    await one.unload()
    assert service.heard == ["/unload"]


@pytest.mark.parametrize(("restarted", "heard"), [(False, ["/load"]), (True, [])])
async def test_what_was_sent_last_is_known_to_the_next_broker_unless_the_process_is_another(
    service: Restarting, restarted: bool, heard: list[str]
) -> None:
    await service.controller(**ONCE).unload()
    service.heard.clear()
    if restarted:
        service.unit.restarts()
    one = service.controller(**ONCE)
    assert await resident(one) is restarted
    await one.load(NOWHERE)
    assert service.heard == heard
    assert not service.unloaded
