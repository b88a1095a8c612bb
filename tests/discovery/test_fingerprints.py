"""Services are recognised by their answers, whatever port they have and whomever they imitate."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mgpu.config import presets
from mgpu.consumers.wire import Answer, control_session
from mgpu.discovery import fingerprints
from mgpu.discovery.fingerprints import Verdict, questions, recognise, shows
from mgpu.discovery.listeners import Listener
from tests.support.servers import BadServer, free_port, serving
from tests.support.services.base import Service
from tests.support.services.catalogue import SERVICES
from tests.support.services.images import (
    ComfyUi,
)
from tests.support.services.language import (
    KoboldCpp,
    LlamaRouter,
)

NOWHERE = Path("/nowhere")
ALL = [presets.find(name, NOWHERE) for name in presets.names(NOWHERE)]


async def ask(url: str) -> Verdict:
    port = int(url.rpartition(":")[2])
    async with control_session() as session:
        return await recognise(
            Listener(port, ("127.0.0.1",), exposed=False), questions(ALL), session
        )


def names(verdict: Verdict) -> list[str]:
    return [found.name for found in verdict.presets]


@pytest.mark.parametrize("kind", SERVICES, ids=lambda kind: kind.preset)
async def test_a_service_is_recognised_and_comes_to_no_harm(kind: type[Service]) -> None:
    service = kind()
    service.put_in()
    await service.start()
    before = set(service.held)
    try:
        verdict = await ask(service.url)
    finally:
        await service.stop()

    assert names(verdict) == [kind.preset]
    assert verdict.url == service.url
    assert service.changes == [], "only GET is asked"
    assert service.held == before
    assert service.broken is None
    assert not {call.removesuffix("/") for call in service.calls} & set(kind.dangers)


async def test_one_that_imitates_others_is_itself() -> None:
    service = KoboldCpp()
    await service.start()
    try:
        assert names(await ask(service.url)) == ["koboldcpp"]
    finally:
        await service.stop()
    assert "GET /props" in service.calls, "which it answers as llama.cpp does"


async def test_a_router_that_has_no_model_yet_is_a_router() -> None:
    service = LlamaRouter()
    service.known = set()
    await service.start()
    try:
        assert names(await ask(service.url)) == ["llama-cpp-router"]
    finally:
        await service.stop()


@pytest.fixture
def site(aiohttp_server: Any) -> Any:
    async def start(routes: dict[str, Any], status: int = 200) -> TestServer:
        app = web.Application()

        async def answer(request: web.Request) -> web.Response:
            if request.path not in routes:
                return web.Response(status=404)
            return web.json_response(routes[request.path], status=status)

        app.router.add_get("/{path:.*}", answer)
        server: TestServer = await aiohttp_server(app)
        return server

    return start


async def test_who_answers_only_as_others_imitate_is_nobody(site: Any) -> None:
    server = await site(
        {"/api/version": {"version": "0.1"}, "/api/ps": {"models": []}, "/api/tags": {}}
    )

    verdict = await ask(str(server.make_url("")).rstrip("/"))

    assert (names(verdict), verdict.speaks_http) == ([], True)


async def test_a_speaches_whose_unload_never_answers_is_nobody(site: Any) -> None:
    unload: dict[str, Any] = {"delete": {"responses": {"200": {}, "422": {}}}}
    server = await site({"/openapi.json": {"paths": {"/api/ps/{model_id}": unload}}})

    assert names(await ask(str(server.make_url("")).rstrip("/"))) == []


async def test_two_that_cannot_be_told_apart_are_both_named(site: Any) -> None:
    server = await site(
        {"/prompt": {"exec_info": {"queue_remaining": 0}}, "/running": {"running": []}}
    )

    verdict = await ask(str(server.make_url("")).rstrip("/"))

    assert names(verdict) == ["comfyui", "llama-swap"]


async def test_one_that_wants_a_key_is_said_to(site: Any) -> None:
    server = await site({"/v1/models": {"detail": "Unauthorized"}}, status=401)

    verdict = await ask(str(server.make_url("")).rstrip("/"))

    assert (names(verdict), verdict.wants_a_key) == ([], True)


async def test_a_redirect_is_not_followed(aiohttp_server: Any) -> None:
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"exec_info": {"queue_remaining": 0}})

    target = web.Application()
    target.router.add_get("/{path:.*}", elsewhere)
    other = await aiohttp_server(target)

    async def redirect(request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect(other.make_url(request.path))

    app = web.Application()
    app.router.add_get("/{path:.*}", redirect)
    server = await aiohttp_server(app)

    assert names(await ask(str(server.make_url("")).rstrip("/"))) == []
    assert asked == []


async def test_what_hangs_is_asked_once_and_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "QUESTION_TIMEOUT_S", 0.05)
    async with serving(BadServer()) as server, asyncio.timeout(5):
        verdict = await ask(server.url)

    assert (verdict.presets, verdict.speaks_http) == ((), False)
    assert server.requests == 1


async def test_what_drips_without_an_end_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "QUESTION_TIMEOUT_S", 0.05)
    drips = BadServer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n")
    async with serving(drips) as server, asyncio.timeout(5):
        assert not (await ask(server.url)).speaks_http


async def test_what_slows_down_is_asked_no_more_than_a_few_times(
    site: Any, monkeypatch: pytest.MonkeyPatch, aiohttp_server: Any
) -> None:
    monkeypatch.setattr(fingerprints, "QUESTION_TIMEOUT_S", 0.1)
    asked: list[str] = []
    held = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path != "/":
            await held.wait()
        return web.Response()

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    server = await aiohttp_server(app)
    verdict = await ask(str(server.make_url("")).rstrip("/"))
    held.set()

    assert verdict.speaks_http
    assert len(asked) == 1 + fingerprints.MAX_SLOW


async def test_what_speaks_no_http_is_asked_once() -> None:
    async with serving(BadServer(b"SSH-2.0-OpenSSH_9.2\r\n", hang_up=True)) as server:
        verdict = await ask(server.url)

    assert (verdict.presets, verdict.speaks_http) == ((), False)
    assert server.requests == 1


async def test_a_port_where_nobody_listens_any_more_is_nobody() -> None:
    port = free_port()
    verdict = await ask(f"http://127.0.0.1:{port}")

    assert (verdict.presets, verdict.speaks_http) == ((), False)


async def test_a_port_that_does_not_take_ipv4_is_asked_by_ipv6() -> None:
    service = ComfyUi()
    runner = web.AppRunner(web.Application())
    app = runner.app
    app.router.add_get("/prompt", service.count)
    await runner.setup()
    site = web.TCPSite(runner, "::1", 0)
    try:
        await site.start()
    except OSError:
        pytest.skip("this machine has no IPv6")
    listener = Listener(runner.addresses[0][1], ("127.0.0.1", "::1"), exposed=True)
    try:
        async with control_session() as session:
            verdict = await recognise(listener, questions(ALL), session)
    finally:
        await runner.cleanup()

    assert names(verdict) == ["comfyui"]
    assert verdict.url == f"http://[::1]:{listener.port}"


@pytest.mark.parametrize(
    ("status", "body", "shown"),
    [
        (200, b'{"a": 1}', True),
        (200, b'{"a": null}', False),
        (200, b"<html>", False),
        (404, b'{"a": 1}', False),
    ],
)
def test_a_fingerprint_is_a_good_answer_with_something_in_it(
    status: int, body: bytes, shown: bool
) -> None:
    fingerprint = presets.Fingerprint(path="/x", when="a != null")

    assert shows(fingerprint, Answer(status, body, complete=True)) is shown


def test_every_service_that_is_recognised_has_a_stand_in() -> None:
    recognised = {found.name for found in ALL if found.preset.fingerprint is not None}
    assert recognised == {kind.preset for kind in SERVICES}


def test_whom_a_preset_is_meant_rather_than_is_a_preset() -> None:
    known = {found.name for found in ALL}
    for found in ALL:
        if found.preset.fingerprint is not None:
            assert set(found.preset.fingerprint.rather_than) <= known - {found.name}, found.name
