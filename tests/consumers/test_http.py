"""Loading and unloading over HTTP: what counts as done, what is repeated, and when it ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from mgpu.config.model import ConsumerConfig
from mgpu.consumers import http
from mgpu.consumers.http import HttpController
from mgpu.errors import LoadFailed, LoadNotBegun, MgpuError, UnloadFailed
from mgpu.ports import Placement
from tests.support.servers import BadServer, free_port, serving

Serve = Callable[[web.Application], Awaitable[TestServer]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
NOWHERE = Placement()
OK_HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


def controller(session: aiohttp.ClientSession, url: str, **config: Any) -> HttpController:
    return HttpController("tts", ConsumerConfig(url=url, **config), session)


def route(**call: Any) -> dict[str, Any]:
    return {"path": "/do", "timeout_s": 0.3, **call}


def app(**handlers: Handler) -> web.Application:
    """An application with each handler at the path of its name, for any method."""
    made = web.Application()
    for name, handler in handlers.items():
        made.router.add_route("*", f"/{name}", handler)
    return made


async def elapsed(work: Awaitable[None], failure: type[MgpuError]) -> tuple[float, str]:
    began = time.monotonic()
    with pytest.raises(failure) as caught:
        await work
    return time.monotonic() - began, caught.value.detail


async def nothing(_: web.Request) -> web.Response:
    return web.Response()


STATUSES = [200, 201, 202, 204, 301, 302, 307, 400, 401, 404, 409, 429, 500, 502, 503]
OKS = [(200, 202, 204), (204,), (200, 400, 404)]


async def answer_what_is_asked_for(request: web.Request) -> web.Response:
    return web.Response(status=int(request.query["status"]), reason="x")


@pytest.mark.parametrize("ok", OKS)
async def test_a_load_is_done_exactly_when_its_status_is_among_the_ok_ones(
    session: aiohttp.ClientSession, aiohttp_server: Serve, ok: tuple[int, ...]
) -> None:
    server = await aiohttp_server(app(do=answer_what_is_asked_for))
    for status in STATUSES:
        call = route(path=f"/do?status={status}", ok=ok)
        load = controller(session, str(server.make_url("")), load=call).load(NOWHERE)
        if status in ok:
            await load
        else:
            with pytest.raises(LoadFailed, match=f"^consumer tts: POST /do answered {status}"):
                await load


@pytest.mark.parametrize("ok", OKS)
async def test_an_unload_is_accepted_exactly_when_its_status_is_among_the_ok_ones(
    session: aiohttp.ClientSession, aiohttp_server: Serve, ok: tuple[int, ...]
) -> None:
    server = await aiohttp_server(app(do=answer_what_is_asked_for))
    for status in STATUSES:
        call = route(method="DELETE", path=f"/do?status={status}", ok=ok)
        unload = controller(session, str(server.make_url("")), unload=call).unload()
        if status in ok:
            await unload
        else:
            with pytest.raises(UnloadFailed, match=f"^consumer tts: DELETE /do answered {status}"):
                await unload


@pytest.mark.parametrize(
    ("body", "sent", "content_type"),
    [
        (None, b"", None),
        ({}, b"{}", "application/json"),
        ({"model": "m", "keep_alive": 0}, None, "application/json"),
    ],
)
async def test_the_configured_request_is_what_arrives(
    session: aiohttp.ClientSession,
    aiohttp_server: Serve,
    body: Any,
    sent: bytes | None,
    content_type: str | None,
) -> None:
    seen: list[tuple[str, str, bytes, Any]] = []

    async def do(request: web.Request) -> web.Response:
        seen.append((request.method, request.path_qs, await request.read(), request.headers))
        return web.Response()

    server = await aiohttp_server(app(do=do))
    call = route(method="PUT", path="/do?min_worker=1", body=body, headers={"X-Key": "k"})
    await controller(session, str(server.make_url("")), load=call).load(NOWHERE)

    [(method, path, arrived, headers)] = seen
    assert (method, path) == ("PUT", "/do?min_worker=1")
    assert arrived == (json.dumps(body).encode() if sent is None else sent)
    assert headers["X-Key"] == "k"
    assert headers["Content-Length"] == str(len(arrived))
    assert headers.get("Content-Type", content_type) == content_type or body is None
    assert "Cookie" not in headers


async def test_a_body_that_a_load_is_given_takes_the_place_of_the_configured_one(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    heard: list[Any] = []

    async def do(request: web.Request) -> web.Response:
        heard.append(await request.json())
        return web.Response()

    server = await aiohttp_server(app(do=do))
    call = route(body={"ctx": 1})
    consumer = controller(session, str(server.make_url("")), load=call)
    await consumer.load(Placement((1,), ("GPU-b",)), {"ctx": 2, "gpus": ["{gpu_index}"]})
    await consumer.load(NOWHERE)

    assert heard == [{"ctx": 2, "gpus": [1]}, {"ctx": 1}]


async def test_a_configured_content_type_replaces_that_of_json(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    seen: list[str] = []

    async def do(request: web.Request) -> web.Response:
        seen.extend(request.headers.getall("Content-Type"))
        return web.Response()

    server = await aiohttp_server(app(do=do))
    call = route(body={}, headers={"content-type": "application/vnd.x+json"})
    await controller(session, str(server.make_url("")), unload=call).unload()
    assert seen == ["application/vnd.x+json"]


async def test_without_routes_loading_and_unloading_return_at_once_and_ask_nobody(
    session: aiohttp.ClientSession,
) -> None:
    lazy = controller(session, f"http://127.0.0.1:{free_port()}", health={"path": "/health"})
    await lazy.load(NOWHERE)
    await lazy.unload()


async def test_there_is_no_harder_way_than_the_endpoint(session: aiohttp.ClientSession) -> None:
    with pytest.raises(UnloadFailed, match="consumer tts: it has no unit"):
        await controller(session, "http://tts", unload=route()).escalate()


async def test_a_redirect_is_never_followed(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    visited: list[str] = []

    async def do(_: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": "/trap"})

    async def trap(request: web.Request) -> web.Response:
        visited.append(request.path)
        return web.Response()

    server = await aiohttp_server(app(do=do, trap=trap))
    redirected = controller(session, str(server.make_url("")), load=route(), unload=route())
    with pytest.raises(LoadFailed, match="answered 307"):
        await redirected.load(NOWHERE)
    with pytest.raises(UnloadFailed, match="answered 307"):
        await redirected.unload()
    assert visited == []


async def test_an_error_quotes_the_body_in_one_short_line_and_no_query_or_header(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    async def do(_: web.Request) -> web.Response:
        return web.Response(status=500, text="out of\r\n\x1b[31mmemory " + 10_000 * "x")

    server = await aiohttp_server(app(do=do))
    call = route(path="/do?key=hunter2", headers={"Authorization": "Bearer hunter3"})
    with pytest.raises(LoadFailed) as caught:
        await controller(session, str(server.make_url("")), load=call).load(NOWHERE)
    assert caught.value.detail.startswith(
        "consumer tts: POST /do answered 500 out of [31mmemory xxx"
    )
    assert len(caught.value.detail) < 260
    assert "hunter" not in caught.value.detail


@pytest.mark.parametrize(
    ("prefix", "drip"),
    [(b"", b""), (OK_HEAD, b""), (OK_HEAD, b"x"), (b"HTTP/1.1 200 OK\r\n", b"X-Slow: 1\r\n")],
    ids=["no answer", "no body", "dripping body", "dripping head"],
)
async def test_a_server_that_never_ends_its_answer_is_left_at_the_deadline(
    session: aiohttp.ClientSession, prefix: bytes, drip: bytes
) -> None:
    async with serving(BadServer(prefix, drip)) as server:
        stuck = controller(session, server.url, load=route())
        took_s, detail = await elapsed(stuck.load(NOWHERE), LoadFailed)
        assert 0.3 <= took_s < 0.6
        assert detail == "consumer tts: POST /do did not end within 0.3 s"

        stuck = controller(session, server.url, unload=route())
        took_s, detail = await elapsed(stuck.unload(), UnloadFailed)
        assert 0.3 <= took_s < 0.6
        assert detail == "consumer tts: POST /do did not end within 0.3 s"


async def test_a_load_that_may_have_been_acted_on_is_not_sent_twice(
    session: aiohttp.ClientSession,
) -> None:
    async with serving(BadServer(hang_up=True)) as server:
        with pytest.raises(LoadFailed, match="POST /do: it closed the connection"):
            await controller(session, server.url, load=route(timeout_s=2)).load(NOWHERE)
        with pytest.raises(UnloadFailed, match="POST /do: it closed the connection"):
            await controller(session, server.url, unload=route(timeout_s=2)).unload()
        assert server.requests == 2


async def test_a_load_waits_for_a_service_that_is_just_starting() -> None:
    refused = asyncio.Event()

    async def note(*_: Any) -> None:
        refused.set()

    trace = aiohttp.TraceConfig()
    trace.on_request_exception.append(note)
    port = free_port()
    async with aiohttp.ClientSession(trace_configs=[trace]) as session, asyncio.timeout(10):
        starting = controller(session, f"http://127.0.0.1:{port}", load=route(timeout_s=5))
        loading = asyncio.create_task(starting.load(NOWHERE))
        await refused.wait()
        assert not loading.done()
        async with TestServer(app(do=nothing), port=port):
            await loading


async def test_a_load_gives_up_on_a_service_that_is_down_before_its_deadline(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "_REFUSED_GRACE_S", 0.2)
    down = controller(session, f"http://127.0.0.1:{free_port()}", load=route(timeout_s=60))
    took_s, detail = await elapsed(down.load(NOWHERE), LoadNotBegun)
    assert 0.2 <= took_s < 5
    assert detail == "consumer tts: POST /do: connection refused: nothing listens there"


@pytest.mark.parametrize(
    ("status", "failure"),
    [(401, LoadNotBegun), (404, LoadNotBegun), (400, LoadFailed), (503, LoadFailed)],
)
async def test_a_load_that_is_turned_away_has_not_begun(
    session: aiohttp.ClientSession, status: int, failure: type[LoadFailed]
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text="no")

    async with TestServer(app(do=answer)) as server:
        with pytest.raises(LoadFailed, match=f"POST /do answered {status} no") as caught:
            await controller(session, str(server.make_url("/")), load=route()).load(NOWHERE)
    assert type(caught.value) is failure


async def test_a_refused_unload_is_done_since_nothing_runs(session: aiohttp.ClientSession) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    await controller(session, url, unload=route(timeout_s=5)).unload()


async def test_a_load_with_a_resident_probe_returns_when_the_weights_are_in(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    answers = iter([{"status": "loading"}, {"status": "loading"}, {"status": "loaded"}])
    asked: list[str] = []

    async def status(_: web.Request) -> web.Response:
        answer = next(answers)
        asked.append(answer["status"])
        return web.json_response(answer)

    server = await aiohttp_server(app(do=nothing, status=status))
    resident = {"path": "/status", "when": "status == 'loaded'"}
    await controller(
        session, str(server.make_url("")), load=route(timeout_s=5), resident=resident
    ).load(NOWHERE)
    assert asked == ["loading", "loading", "loaded"]


async def test_a_load_without_a_resident_probe_returns_when_the_service_is_healthy(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    statuses = iter([503, 503, 200])

    async def health(_: web.Request) -> web.Response:
        return web.Response(status=next(statuses))

    server = await aiohttp_server(app(do=nothing, health=health))
    await controller(
        session, str(server.make_url("")), load=route(timeout_s=5), health={"path": "/health"}
    ).load(NOWHERE)
    assert next(statuses, None) is None


async def test_a_load_that_is_never_confirmed_fails_at_its_deadline_and_is_unloaded(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    unloaded: list[str] = []

    async def status(_: web.Request) -> web.Response:
        return web.json_response({"loaded": False})

    async def free(request: web.Request) -> web.Response:
        unloaded.append(request.method)
        return web.Response()

    server = await aiohttp_server(app(do=nothing, status=status, free=free))
    never = controller(
        session,
        str(server.make_url("")),
        load=route(),
        unload=route(path="/free"),
        resident={"path": "/status", "when": "loaded"},
    )
    took_s, detail = await elapsed(never.load(NOWHERE), LoadFailed)
    assert 0.3 <= took_s < 0.8
    assert "POST /do answered 200, but the consumer was not resident after 0.3 s" in detail
    assert unloaded == ["POST"]


async def test_a_failed_clean_up_is_logged_and_the_loads_own_failure_is_raised(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    async def broken(_: web.Request) -> web.Response:
        return web.Response(status=500)

    server = await aiohttp_server(app(do=broken, free=broken))
    both = controller(session, str(server.make_url("")), load=route(), unload=route(path="/free"))
    with capture_logs() as logs, pytest.raises(LoadFailed, match="POST /do answered 500"):
        await both.load(NOWHERE)
    [line] = logs
    assert (line["event"], line["consumer"]) == ("clean_up_failed", "tts")
    assert line["error"] == "consumer tts: POST /free answered 500"


async def test_a_cancelled_load_leaves_no_task_and_no_connection(
    session: aiohttp.ClientSession,
) -> None:
    async with serving(BadServer()) as server:
        before = asyncio.all_tasks()
        loading = asyncio.create_task(
            controller(session, server.url, load=route(timeout_s=60)).load(NOWHERE)
        )
        async with asyncio.timeout(5):
            await server.asked.wait()
            loading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await loading
            await server.left.wait()
        assert asyncio.all_tasks() - before - _server_tasks() == set()


def _server_tasks() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if "BadServer" in repr(task.get_coro())}


# More than one fixed call


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"success": true}', None),
        ('{"success": false}', 'answered 200 {"success": false}'),
        ("<html>", "answered 200: the answer is not JSON: <html>"),
        ("x" * (1 << 16) + "y", "answered 200: the answer is longer than"),
    ],
)
async def test_a_success_may_be_told_by_the_answer(
    session: aiohttp.ClientSession, aiohttp_server: Serve, text: str, problem: str | None
) -> None:
    async def do(_: web.Request) -> web.Response:
        return web.Response(text=text)

    server = await aiohttp_server(app(do=do))
    call = route(when="success", timeout_s=5)
    made = controller(session, str(server.make_url("")), load=call, unload=call)
    if problem is None:
        await made.load(NOWHERE)
        await made.unload()
        return
    with pytest.raises(LoadFailed, match=problem):
        await made.load(NOWHERE)
    with pytest.raises(UnloadFailed, match=problem):
        await made.unload()


async def test_an_unload_that_is_answered_early_is_over_when_the_consumer_says_so(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    answers = iter([True, True, False])

    async def status(_: web.Request) -> web.Response:
        return web.json_response({"loaded": next(answers)})

    server = await aiohttp_server(app(do=nothing, status=status))
    await controller(
        session,
        str(server.make_url("")),
        unload=route(until_absent=True, timeout_s=5),
        resident={"path": "/status", "when": "loaded"},
    ).unload()
    assert next(answers, None) is None


async def test_one_that_never_says_so_has_failed_to_unload(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    async def status(_: web.Request) -> web.Response:
        return web.json_response({"loaded": True})

    server = await aiohttp_server(app(do=nothing, status=status))
    stuck = controller(
        session,
        str(server.make_url("")),
        unload=route(until_absent=True),
        resident={"path": "/status", "when": "loaded"},
    )
    took_s, detail = await elapsed(stuck.unload(), UnloadFailed)
    assert 0.3 <= took_s < 0.8
    assert "POST /do was accepted, but the consumer was still resident after 0." in detail


async def asked_once(aiohttp_server: Serve) -> tuple[ConsumerConfig, list[str]]:
    """A service that cannot be asked and must not be asked twice, and what it was asked for."""
    sent: list[str] = []

    async def note(request: web.Request) -> web.Response:
        sent.append(request.path)
        return web.Response()

    server = await aiohttp_server(app(load=note, unload=note, health=nothing))
    once = {"repeatable": False, "timeout_s": 5}
    config = {
        "url": str(server.make_url("")),
        "load": {"path": "/load", **once},
        "unload": {"path": "/unload", **once},
        "health": {"path": "/health"},
    }
    return ConsumerConfig.model_validate(config), sent


async def test_what_must_not_be_repeated_is_remembered_until_its_process_ends(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    config, sent = await asked_once(aiohttp_server)
    made = HttpController("tts", config, session)
    await made.load(NOWHERE)
    assert (await made.probe()).resident is True
    await made.unload()
    await made.unload()
    assert (await made.probe()).resident is False
    await made.load(NOWHERE)
    assert sent == ["/unload", "/load"]

    await made.unload()
    made.forget()
    assert (await made.probe()).resident is True
    await made.unload()
    assert sent == ["/unload", "/load", "/unload", "/unload"]


@pytest.mark.parametrize(
    ("before", "after", "known"),
    [
        ("run 1", "run 1", True),
        ("run 1", "run 2", False),
        ("run 1", "", True),
        ("", "run 2", True),
        ("", "", True),
    ],
    ids=["the same", "another", "hidden now", "hidden then", "hidden always"],
)
async def test_what_was_sent_last_outlives_the_broker_and_not_the_process(
    session: aiohttp.ClientSession,
    aiohttp_server: Serve,
    before: str,
    after: str,
    known: bool,
) -> None:
    config, sent = await asked_once(aiohttp_server)
    unloaded: dict[str, str] = {}
    await HttpController("tts", config, session, unloaded, lambda: before).unload()

    made = HttpController("tts", config, session, unloaded, lambda: after)
    assert (await made.probe()).resident is not known
    await made.load(NOWHERE)
    assert sent == (["/unload", "/load"] if known else ["/unload"])
    assert (await HttpController("tts", config, session, unloaded).probe()).resident is True


@pytest.mark.parametrize(
    "keys",
    [
        {"unload": route()},
        {"unload": route(repeatable=False), "resident": {"path": "/do", "when": "loaded"}},
    ],
    ids=["may be asked twice", "can be asked"],
)
async def test_of_others_nothing_is_kept(
    session: aiohttp.ClientSession, aiohttp_server: Serve, keys: dict[str, Any]
) -> None:
    server = await aiohttp_server(app(do=nothing))
    config = ConsumerConfig(url=str(server.make_url("")), **keys)
    unloaded: dict[str, str] = {}
    await HttpController("tts", config, session, unloaded).unload()
    assert unloaded == {}


@pytest.mark.parametrize(
    ("resident", "body", "sent"),
    [(True, None, []), (False, None, [None]), (True, {"model": "big"}, [{"model": "big"}])],
)
async def test_a_load_that_must_not_be_repeated_is_sent_to_one_that_holds_nothing_or_something_else(
    session: aiohttp.ClientSession,
    aiohttp_server: Serve,
    resident: bool,
    body: Any,
    sent: list[Any],
) -> None:
    loads: list[Any] = []

    async def load(request: web.Request) -> web.Response:
        loads.append(await request.json() if request.can_read_body else None)
        return web.Response()

    async def status(_: web.Request) -> web.Response:
        return web.json_response({"loaded": resident or bool(loads)})

    server = await aiohttp_server(app(load=load, status=status))
    await controller(
        session,
        str(server.make_url("")),
        load={"path": "/load", "repeatable": False, "timeout_s": 5},
        resident={"path": "/status", "when": "loaded"},
    ).load(NOWHERE, body)
    assert loads == sent


async def test_a_busy_consumer_that_does_not_answer_any_more_is_asked_to_unload(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    async def broken(_: web.Request) -> web.Response:
        raise web.HTTPInternalServerError

    sent: list[str] = []

    async def do(request: web.Request) -> web.Response:
        sent.append(request.path)
        return web.Response()

    server = await aiohttp_server(app(do=do, busy=broken))
    await controller(
        session,
        str(server.make_url("")),
        unload=route(timeout_s=5),
        busy={"path": "/busy", "when": "@"},
    ).unload()
    assert sent == ["/do"]
