"""What holds for every kind of control: over HTTP, in a unit, in a container, as a program.

The service behind each is the same, and so are its bad habits: slow, half-dead, dying, lying.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
import pytest

from mgpu.consumers import supervised
from mgpu.errors import LoadFailed, UnloadFailed
from mgpu.ports import Placement
from tests.support.controlled import ENDPOINTS, Controlled, controlled
from tests.support.engines import ENGINES

NOWHERE = Placement()
COMING_BACK = ("systemd", *ENGINES)
KINDS = ("http", *COMING_BACK, "command")


@pytest.fixture(params=KINDS)
async def service(
    session: aiohttp.ClientSession, request: pytest.FixtureRequest
) -> AsyncIterator[Controlled]:
    made = controlled(request.param, request, session)
    yield made
    await made.close()


@pytest.fixture(params=KINDS[1:])
async def supervised_service(
    session: aiohttp.ClientSession, request: pytest.FixtureRequest
) -> AsyncIterator[Controlled]:
    made = controlled(request.param, request, session)
    yield made
    await made.close()


@pytest.fixture(params=COMING_BACK)
async def service_that_comes_back(
    session: aiohttp.ClientSession, request: pytest.FixtureRequest
) -> AsyncIterator[Controlled]:
    made = controlled(request.param, request, session)
    yield made
    await made.close()


async def test_a_load_makes_it_resident_and_an_unload_absent_as_often_as_wanted(
    service: Controlled,
) -> None:
    await service.install()
    one = service.controller(**ENDPOINTS)
    for _ in range(2):
        await one.load(NOWHERE)
        await one.load(NOWHERE)
        report = await one.probe()
        assert (report.reachable, report.healthy, report.resident) == (True, True, True)
        await one.unload()
        await one.unload()
        assert (await one.probe()).resident is False
    assert await service.runs()


async def test_without_endpoints_it_is_started_and_stopped(supervised_service: Controlled) -> None:
    service = supervised_service
    await service.install()
    one = service.controller()
    before = await one.probe()
    assert (before.reachable, before.healthy, before.resident) == (False, False, False)
    for _ in range(2):
        await one.load(NOWHERE)
        report = await one.probe()
        assert (report.reachable, report.healthy, report.resident) == (True, True, True)
        await one.unload()
        assert not await service.runs()
    await one.unload()


async def test_a_load_that_is_refused_names_the_consumer_and_leaves_nothing_started(
    service: Controlled,
) -> None:
    await service.install("--fail", "/load")
    with pytest.raises(LoadFailed, match=f"^consumer {service.name}: POST /load answered 500"):
        await service.controller(**ENDPOINTS).load(NOWHERE)
    assert await service.runs() is (service.way() == {})


# Slow


async def test_a_slow_one_is_waited_for(service: Controlled) -> None:
    await service.install("--slow-s", "0.4", "--deaf-s", "0.4")
    one = service.controller(**ENDPOINTS | {"unload": {"path": "/unload", "timeout_s": 5}})
    began = time.monotonic()
    await one.load(NOWHERE)
    assert time.monotonic() - began >= 0.4
    assert (await one.probe()).resident is True
    await one.unload()
    assert (await one.probe()).resident is False


async def test_one_that_is_too_slow_fails_at_the_loads_deadline(service: Controlled) -> None:
    await service.install("--slow-s", "1000")
    deadline_s = service.starts_within_s
    one = service.controller(**ENDPOINTS | {"load": {"path": "/load", "timeout_s": deadline_s}})
    began = time.monotonic()
    with pytest.raises(LoadFailed, match=f"POST /load did not end within {deadline_s:g} s"):
        await one.load(NOWHERE)
    # The unload that cleans up has its own deadline, or the stop its grace.
    assert time.monotonic() - began < deadline_s + 10


# Half-dead


async def test_one_that_accepts_and_never_answers_is_there_and_unhealthy(
    service: Controlled,
) -> None:
    await service.install("--hang", "/health")
    one = service.controller(health={"path": "/health"})
    loading = asyncio.create_task(one.load(NOWHERE))
    await service.listens()
    report = await one.probe()
    assert (report.reachable, report.healthy) == (True, False)
    assert report.detail == "no answer within 2 s"
    loading.cancel()
    with suppress(asyncio.CancelledError):  # over HTTP there is nothing to wait for
        await loading


async def test_a_hanging_unload_ends_at_its_deadline_and_the_harder_way_is_left(
    service: Controlled,
) -> None:
    await service.install("--hang", "/unload")
    one = service.controller(**ENDPOINTS)
    await one.load(NOWHERE)
    with pytest.raises(UnloadFailed, match=r"POST /unload did not end within 0\.5 s"):
        await one.unload()
    assert await service.runs()
    if service.way():
        await one.escalate()
        assert not await service.runs()
        assert (await one.probe()).resident is False
    else:
        with pytest.raises(UnloadFailed, match="no unit, container or command"):
            await one.escalate()


async def test_one_that_runs_and_does_not_listen_fails_the_load_and_is_stopped(
    supervised_service: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "START_TIMEOUT_S", 1.5)
    service = supervised_service
    await service.install("--deaf-s", "1000")
    one = service.controller()
    if service.comes_back:
        await service.start()  # the load finds it running, and stops it all the same
        report = await one.probe()
        assert (report.reachable, report.healthy, report.alive) == (False, False, True)
    with pytest.raises(LoadFailed, match="runs, but the service did not accept connections"):
        await one.load(NOWHERE)
    assert not await service.runs()


# Restarting


async def test_one_that_died_is_loaded_again(service: Controlled) -> None:
    await service.install()
    one = service.controller(**ENDPOINTS)
    await one.load(NOWHERE)
    await service.kill()
    if service.way() == {}:
        assert not (await one.probe()).reachable
        with pytest.raises(LoadFailed, match="connection refused: nothing listens there"):
            await one.load(NOWHERE)
        await one.unload()  # nothing is left of it
        await service.start()
    await one.load(NOWHERE)
    report = await one.probe()
    assert (report.reachable, report.healthy, report.resident) == (True, True, True)


async def test_one_that_dies_at_every_start_fails_the_load_and_is_left_stopped(
    supervised_service: Controlled,
) -> None:
    service = supervised_service
    await service.install("--exit", "3")
    one = service.controller(**ENDPOINTS | {"load": {"path": "/load", "timeout_s": 3}})
    with pytest.raises(LoadFailed, match=f"^consumer {service.name}: "):
        await one.load(NOWHERE)
    assert not await service.runs()


async def test_one_that_came_back_between_two_probes_is_empty_until_it_is_loaded(
    service_that_comes_back: Controlled,
) -> None:
    service = service_that_comes_back
    await service.install()
    one = service.controller(**ENDPOINTS | {"resident": None})
    await one.load(NOWHERE)
    assert [(await one.probe()).resident for _ in range(2)] == [None, None]
    await service.kill()
    await service.has_restarted()
    report = await one.probe()
    assert (report.reachable, report.healthy, report.resident) == (True, True, False)
    await one.load(NOWHERE)
    assert (await one.probe()).resident is None
    assert await service.heard() == ["POST /load"]


# Lying


async def test_one_that_says_that_it_loaded_and_has_not_fails_the_load(
    service: Controlled,
) -> None:
    await service.install("--lie")
    deadline_s = service.starts_within_s
    one = service.controller(**ENDPOINTS | {"load": {"path": "/load", "timeout_s": deadline_s}})
    with pytest.raises(LoadFailed, match="answered 200, but the consumer was not resident after"):
        await one.load(NOWHERE)


# Being interrupted


async def test_a_cancelled_load_leaves_no_task_once_it_is_closed(service: Controlled) -> None:
    await service.install("--hang", "/load")
    before = asyncio.all_tasks()
    one = service.controller(**ENDPOINTS)
    loading = asyncio.create_task(one.load(NOWHERE))
    await service.listens()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    await one.close()
    assert asyncio.all_tasks() == before
