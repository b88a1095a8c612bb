"""Asking a consumer how it is: every answer, and no answer, has its report."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from mgpu.config.model import ConsumerConfig
from mgpu.consumers import probe as probing
from mgpu.consumers.probe import probe, wait_until
from mgpu.errors import LoadFailed
from mgpu.ports import ProbeReport
from tests.support.servers import BadServer, free_port, serving

Serve = Callable[[web.Application], Awaitable[TestServer]]
HEALTH = {"path": "/health"}
RESIDENT = {"path": "/status", "when": "loaded"}


def answering(status: int = 200, text: str = "", **headers: str) -> web.Application:
    """The same answer on both routes; anywhere else is a failure of the test."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text, headers=headers)

    made = web.Application()
    made.router.add_get("/health", answer)
    made.router.add_get("/status", answer)
    return made


async def ask(session: aiohttp.ClientSession, url: object, **config: Any) -> ProbeReport:
    return await probe(ConsumerConfig(url=str(url), **config), session)


@pytest.mark.parametrize(
    ("status", "text", "health", "healthy"),
    [
        (200, "", HEALTH, True),
        (204, "", HEALTH, False),
        (204, "", {**HEALTH, "ok": [204]}, True),
        (503, "", HEALTH, False),
        (200, '{"status": "ok"}', {**HEALTH, "when": "status == 'ok'"}, True),
        (200, '{"status": "loading"}', {**HEALTH, "when": "status == 'ok'"}, False),
        (503, '{"status": "ok"}', {**HEALTH, "when": "status == 'ok'"}, False),
        (200, "<html>", {**HEALTH, "when": "status"}, False),
    ],
)
async def test_healthy_takes_an_ok_status_and_the_condition(
    session: aiohttp.ClientSession,
    aiohttp_server: Serve,
    *,
    status: int,
    text: str,
    health: dict[str, Any],
    healthy: bool,
) -> None:
    server = await aiohttp_server(answering(status, text))
    report = await ask(session, server.make_url(""), health=health)
    assert report.reachable
    assert report.healthy is healthy
    assert report.resident is None
    assert bool(report.detail) is not healthy


@pytest.mark.parametrize(
    ("text", "when", "resident"),
    [
        ('{"loaded": true}', "loaded", True),
        ('{"loaded": false}', "loaded", False),
        ('{"loaded": null}', "loaded", False),
        ("{}", "loaded", False),
        ('{"models": []}', "models", False),
        ('{"models": [{"name": "m", "size_vram": 5}]}', "models[?name=='m'].size_vram", True),
        ('{"size_vram": 0}', "size_vram", False),
        ('{"models": null}', "length(models) > `0`", None),
        ("not json", "loaded", None),
        ("[" * 100_000, "loaded", None),
    ],
)
async def test_resident_is_the_conditions_truth_and_none_where_it_cannot_be_told(
    session: aiohttp.ClientSession,
    aiohttp_server: Serve,
    text: str,
    when: str,
    resident: bool | None,
) -> None:
    server = await aiohttp_server(answering(200, text))
    report = await ask(session, server.make_url(""), resident={"path": "/status", "when": when})
    assert (report.reachable, report.healthy, report.resident) == (True, True, resident)
    assert bool(report.detail) is (resident is None)


async def test_an_error_on_the_resident_route_says_nothing_about_residency(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    server = await aiohttp_server(answering(500, '{"loaded": true}'))
    report = await ask(session, server.make_url(""), resident=RESIDENT)
    assert (report.reachable, report.healthy, report.resident) == (True, False, None)
    assert report.detail == 'GET /status: answered 500 {"loaded": true}'


async def test_health_and_residency_are_asked_together(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    server = await aiohttp_server(answering(200, '{"loaded": true, "ok": false}'))
    report = await ask(
        session, server.make_url(""), health={**HEALTH, "when": "ok"}, resident=RESIDENT
    )
    assert (report.reachable, report.healthy, report.resident) == (True, False, True)
    assert report.detail.startswith("GET /health: answered 200")


async def test_a_redirect_is_an_answer_and_is_not_followed(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    trap = await aiohttp_server(answering(200))
    server = await aiohttp_server(answering(302, Location=str(trap.make_url("/health"))))
    report = await ask(session, server.make_url(""), health=HEALTH)
    assert (report.reachable, report.healthy) == (True, False)
    assert "answered 302" in report.detail


async def test_a_huge_answer_is_not_read_to_its_end(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    text = '{"loaded": true, "more": "' + "x" * probing.MAX_BODY_BYTES + '"}'
    server = await aiohttp_server(answering(200, text))
    report = await ask(session, server.make_url(""), resident=RESIDENT)
    assert report.resident is None
    assert report.detail == "GET /status: the answer is longer than 1048576 bytes"


@pytest.mark.parametrize("config", [{}, {"health": HEALTH}, {"resident": RESIDENT}])
async def test_nothing_listening_is_unreachable(
    session: aiohttp.ClientSession, config: dict[str, Any]
) -> None:
    report = await ask(session, f"http://127.0.0.1:{free_port()}", **config)
    assert (report.reachable, report.healthy, report.resident) == (False, False, None)
    assert report.detail == "connection refused: nothing listens there"


async def test_without_routes_an_accepted_connection_is_all_that_is_asked(
    session: aiohttp.ClientSession,
) -> None:
    async with serving(BadServer()) as server:
        report = await ask(session, server.url)
        assert report == ProbeReport(reachable=True, healthy=True)
        async with asyncio.timeout(5):
            await server.left.wait()
        assert server.requests == 0


@pytest.mark.parametrize(
    ("prefix", "drip"),
    [(b"", b""), (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x")],
    ids=["hanging", "dripping"],
)
async def test_a_service_that_does_not_answer_in_time_is_reachable_but_not_healthy(
    session: aiohttp.ClientSession,
    monkeypatch: pytest.MonkeyPatch,
    prefix: bytes,
    drip: bytes,
) -> None:
    monkeypatch.setattr(probing, "PROBE_TIMEOUT_S", 0.2)
    async with serving(BadServer(prefix, drip)) as server:
        began = time.monotonic()
        report = await ask(session, server.url, health=HEALTH, resident=RESIDENT)
        assert time.monotonic() - began < 0.5
        async with asyncio.timeout(5):
            await server.left.wait()
    assert report == ProbeReport(reachable=True, healthy=False, detail="no answer within 0.2 s")


async def test_a_broken_connection_is_reachable_but_not_healthy(
    session: aiohttp.ClientSession,
) -> None:
    async with serving(BadServer(hang_up=True)) as server:
        report = await ask(session, server.url, health=HEALTH)
    assert (report.reachable, report.healthy) == (True, False)
    assert report.detail == "it closed the connection without an answer"


async def test_what_health_has_said_stands_when_the_resident_route_hangs(
    session: aiohttp.ClientSession, aiohttp_server: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "PROBE_TIMEOUT_S", 1.0)
    forever = asyncio.Event()

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    async def status(_: web.Request) -> web.Response:
        await forever.wait()
        return web.Response()

    made = web.Application()
    made.router.add_get("/health", health)
    made.router.add_get("/status", status)
    server = await aiohttp_server(made)
    report = await ask(session, server.make_url(""), health=HEALTH, resident=RESIDENT)
    forever.set()
    assert (report.reachable, report.healthy, report.resident) == (True, True, None)


async def test_waiting_names_what_was_heard_last_when_it_gives_up() -> None:
    async def asleep() -> ProbeReport:
        return ProbeReport(reachable=True, healthy=False, detail="GET /health: answered 503")

    deadline = asyncio.get_running_loop().time() + 0.1
    with pytest.raises(LoadFailed) as caught:
        await wait_until(
            lambda report: report.healthy, asleep, deadline=deadline, what="it was not healthy"
        )
    assert caught.value.detail == "it was not healthy after 0.1 s: GET /health: answered 503"


async def test_waiting_ends_at_once_when_asking_is_hopeless() -> None:
    async def dead() -> ProbeReport:
        raise LoadFailed("it crashed")

    deadline = asyncio.get_running_loop().time() + 60
    with pytest.raises(LoadFailed, match="it crashed"):
        await wait_until(lambda report: report.healthy, dead, deadline=deadline, what="x")


async def test_that_a_load_is_over_is_noticed_within_50_ms_however_long_it_took() -> None:
    """A poll that has slowed down would prolong every swap by its last pause."""
    asked: list[float] = []

    async def ready_after_a_second() -> ProbeReport:
        asked.append(time.monotonic())
        return ProbeReport(reachable=True, healthy=True, resident=asked[-1] - asked[0] > 1.0)

    deadline = asyncio.get_running_loop().time() + 10
    await wait_until(
        lambda report: bool(report.resident), ready_after_a_second, deadline=deadline, what="tts"
    )
    pauses = sorted(after - before for before, after in itertools.pairwise(asked))
    assert pauses[len(pauses) // 2] < 0.05


# Computing

BUSY = {"path": "/busy", "when": "running"}


@pytest.mark.parametrize(("text", "busy"), [('{"running": 1}', True), ('{"running": 0}', False)])
async def test_busy_is_the_conditions_truth(
    session: aiohttp.ClientSession, aiohttp_server: Serve, text: str, busy: bool
) -> None:
    server = await aiohttp_server(answering_anything(200, text))
    report = await ask(session, server.make_url(""), busy=BUSY)
    assert (report.reachable, report.healthy, report.busy) == (True, True, busy)


@pytest.mark.parametrize(("status", "text"), [(200, "no JSON"), (404, '{"running": 1}')])
async def test_one_that_does_not_say_is_not_busy(
    session: aiohttp.ClientSession, aiohttp_server: Serve, status: int, text: str
) -> None:
    server = await aiohttp_server(answering_anything(status, text))
    report = await ask(session, server.make_url(""), busy=BUSY)
    assert (report.reachable, report.busy) == (True, False)
    assert report.detail.startswith("GET /busy: ")


async def test_a_busy_route_on_a_dead_port_leaves_the_rest_as_it_is(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    server = await aiohttp_server(answering(200, "{}"))
    report = await ask(
        session, server.make_url(""), health=HEALTH, busy={**BUSY, "port": free_port()}
    )
    assert (report.reachable, report.healthy, report.busy) == (True, True, False)
    assert report.detail == "GET /busy: connection refused: nothing listens there"


async def test_alone_it_tells_whether_anybody_is_there(session: aiohttp.ClientSession) -> None:
    report = await ask(session, URL(f"http://127.0.0.1:{free_port()}"), busy=BUSY)
    assert not report.reachable


METRICS = """\
# HELP vllm:running Requests
# TYPE vllm:running gauge
vllm:running{engine="0"} 0.0
vllm:running{engine="1"} 2.0
"""


@pytest.mark.parametrize(
    ("text", "when", "busy"),
    [
        (METRICS, '"vllm:running" == `2`', True),
        (METRICS, '"vllm:running" > `2`', False),
        (METRICS, '"vllm:waiting" > `0` || "vllm:running" > `1`', True),
        ("", '"vllm:running" > `0`', False),
    ],
)
async def test_of_metrics_the_sum_over_all_labels_counts(
    session: aiohttp.ClientSession, aiohttp_server: Serve, text: str, when: str, busy: bool
) -> None:
    server = await aiohttp_server(answering_anything(200, text))
    asked = {"path": "/metrics", "format": "prometheus", "when": when}
    report = await ask(session, server.make_url(""), busy=asked)
    assert (report.busy, report.detail) == (busy, "")


async def test_what_is_no_metrics_is_told(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    server = await aiohttp_server(answering_anything(200, "{oops"))
    asked = {"path": "/metrics", "format": "prometheus", "when": "a"}
    report = await ask(session, server.make_url(""), busy=asked)
    assert report.detail == "GET /metrics: the answer is not Prometheus metrics: {oops"


async def test_a_question_may_be_a_post_with_a_body_and_headers(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    seen: list[tuple[str, str, str | None, str | None]] = []

    async def answer(request: web.Request) -> web.Response:
        headers = request.headers
        seen.append(
            (request.method, await request.text(), headers.get("X-Key"), headers.get("X-More"))
        )
        return web.json_response({"loaded": True})

    app = web.Application()
    app.router.add_route("*", "/index", answer)
    server = await aiohttp_server(app)
    asked = {"path": "/index", "method": "POST", "body": {}, "when": "loaded"}
    report = await ask(
        session,
        server.make_url(""),
        headers={"X-Key": "consumer", "X-More": "yes"},
        resident={**asked, "headers": {"x-key": "own"}},
    )
    assert report.resident is True
    assert seen == [("POST", "{}", "own", "yes")]


@pytest.mark.parametrize(("status", "resident"), [(503, False), (200, True), (500, None)])
async def test_a_status_may_mean_that_it_is_not_resident(
    session: aiohttp.ClientSession, aiohttp_server: Serve, status: int, resident: bool | None
) -> None:
    server = await aiohttp_server(answering(status, '{"id": "m"}'))
    asked = {"path": "/status", "when": "id", "absent": [503]}
    report = await ask(session, server.make_url(""), resident=asked)
    assert (report.resident, report.healthy) == (resident, status != 500)


def answering_anything(status: int, text: str) -> web.Application:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return app
