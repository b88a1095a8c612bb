"""Whether work is over that goes on after its answer: what a consumer says, and what not."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mgpu.config.model import CompletionConfig
from mgpu.consumers import completion as completing
from mgpu.consumers.completion import MAX_FAILURES, Completion, Ending
from mgpu.errors import ConsumerFailed
from tests.support.servers import BadServer, serving

Serve = Callable[[web.Application], Awaitable[TestServer]]
BODY: dict[str, Any] = {
    "requests": ["POST /jobs"],
    "id": "job.id",
    "poll": {
        "path": "/jobs/{id}",
        "interval_s": 0.01,
        "until": "state == 'done' || state == 'failed'",
        "failed": "state == 'failed'",
        "error": "problem",
    },
}
LISTED: dict[str, Any] = {"listed": {"path": "/jobs", "ids": "[].id"}}
CANCEL: dict[str, Any] = {"cancel": [{"method": "DELETE", "path": "/jobs/{id}"}]}
KEY = {"Authorization": "Bearer secret"}
DEADLINE_S = 10.0


class Service:
    """Answers polls with one after the other of ``answers``, the last one for ever.

    It lets nobody in who has not the ``KEY``.
    """

    def __init__(self, *answers: Any, listed: Any = ()) -> None:
        self._answers = [*answers[:-1]]
        self._last = answers[-1]
        self.listed = listed
        self.asked: list[str] = []
        self.cancels = asyncio.Event()
        self.asked_often = asyncio.Event()

    async def start(self, serve: Serve) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        server = await serve(app)
        return str(server.make_url("")).rstrip("/")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.raw_path}")
        if request.headers.get("Authorization") != KEY["Authorization"]:
            return web.Response(status=401)
        if len(self.asked) > MAX_FAILURES:
            self.asked_often.set()
        if request.method == "DELETE":
            self.cancels.set()
            return web.Response(status=204)
        if request.path == "/jobs":
            return web.json_response(self.listed)
        answer = self._answers.pop(0) if self._answers else self._last
        if isinstance(answer, int):
            return web.Response(status=answer, text="an error")
        if isinstance(answer, bytes):
            return web.Response(body=answer)
        return web.json_response(answer)


async def ended(
    session: aiohttp.ClientSession,
    url: str,
    *,
    unwanted: asyncio.Event | None = None,
    **config: Any,
) -> Ending:
    declared = CompletionConfig.model_validate({**BODY, **config})
    completion = Completion("sd", url, declared, session, headers=KEY)
    async with asyncio.timeout(DEADLINE_S):
        return await completion.ended("7", unwanted or asyncio.Event())


@pytest.mark.parametrize(
    ("answer", "work"),
    [
        (b'{"job": {"id": "a-1"}}', "a-1"),
        (b'{"job": {"id": 7}}', "7"),
        (b'{"job": {"id": null}}', None),
        (b'{"job": {"id": true}}', None),
        (b'{"job": {"id": ""}}', None),
        (b'{"job": {"id": ".."}}', None),
        (b'{"job": 1}', None),
        (b"accepted", None),
        (b"", None),
    ],
)
async def test_work_has_an_id_or_there_is_none(
    session: aiohttp.ClientSession, answer: bytes, work: str | None
) -> None:
    declared = CompletionConfig.model_validate(BODY)
    completion = Completion("sd", "http://x", declared, session, headers={})
    assert completion.work_in(answer) == work


async def test_it_is_asked_until_it_is_over(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    service = Service({"state": "queued"}, {"state": "running"}, {"state": "done"})

    ending = await ended(session, await service.start(aiohttp_server))

    assert ending == Ending("7", b'{"state": "done"}')
    assert service.asked == ["GET /jobs/7"] * 3


async def test_a_failure_comes_with_the_consumers_own_words(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    service = Service({"state": "failed", "problem": {"what": "no memory"}})

    ending = await ended(session, await service.start(aiohttp_server))

    assert ending.failed
    assert ending.error == {"what": "no memory"}


@pytest.mark.parametrize("bad", [500, 401, b"<html>", b"[[["])
async def test_a_few_failed_polls_are_nothing(
    session: aiohttp.ClientSession, aiohttp_server: Serve, bad: Any
) -> None:
    few = [bad] * (MAX_FAILURES - 1)
    service = Service(*few, {"state": "running"}, *few, {"state": "done"})

    assert not (await ended(session, await service.start(aiohttp_server))).failed


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (500, "GET /jobs/7 answered 500 an error"),
        (b"<html>", "GET /jobs/7 answered what is no JSON"),
        (b"x" * (1 << 20), "GET /jobs/7 answered what is no JSON"),
    ],
)
async def test_many_in_a_row_are_a_dead_consumer(
    session: aiohttp.ClientSession, aiohttp_server: Serve, bad: Any, what: str
) -> None:
    service = Service(bad)

    with pytest.raises(ConsumerFailed) as raised:
        await ended(session, await service.start(aiohttp_server))

    assert raised.value.detail == f"sd fell silent at work: {what}."
    assert len(service.asked) == MAX_FAILURES


async def test_a_consumer_that_hangs_is_dead_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completing, "POLL_TIMEOUT_S", 0.05)
    # Counted here: on a busy machine a request may not reach the service before it is given up.
    asked: list[str] = []
    trace = aiohttp.TraceConfig()

    async def note(_: Any, __: Any, request: aiohttp.TraceRequestStartParams) -> None:
        asked.append(f"{request.method} {request.url.path}")

    trace.on_request_start.append(note)
    async with (
        serving(BadServer()) as server,
        aiohttp.ClientSession(trace_configs=[trace]) as session,
    ):
        with pytest.raises(ConsumerFailed, match="no answer in time"):
            await ended(session, server.url)
    assert asked == ["GET /jobs/7"] * MAX_FAILURES


async def test_an_answer_without_an_end_is_cut(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completing, "MAX_ANSWER_BYTES", 1000)
    async with serving(BadServer(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 500)) as server:
        with pytest.raises(ConsumerFailed, match="what is no JSON"):
            await ended(session, server.url)


async def test_not_found_is_not_known_yet(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    service = Service(*[404] * (MAX_FAILURES + 2), {"state": "done"})
    assert not (await ended(session, await service.start(aiohttp_server))).failed


async def test_work_that_nobody_knows_is_waited_for_until_the_caller_gives_up(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    service = Service(404)
    waiting = asyncio.create_task(ended(session, await service.start(aiohttp_server)))
    async with asyncio.timeout(DEADLINE_S):
        await service.asked_often.wait()
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_work_that_is_in_no_list_was_dropped(
    session: aiohttp.ClientSession, aiohttp_server: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completing, "LISTED_EVERY_S", 0.05)
    service = Service(404, listed=[{"id": 7}])
    url = await service.start(aiohttp_server)
    waiting = asyncio.create_task(ended(session, url, **LISTED))
    async with asyncio.timeout(DEADLINE_S):
        for _ in itertools.count():
            if service.asked.count("GET /jobs") > 2:
                break
            await asyncio.sleep(0.01)
    assert not waiting.done()

    service.listed = [{"id": 8}]

    ending = await waiting
    assert (ending.failed, ending.dropped) == (True, True)


async def test_work_that_ends_while_the_list_is_read_was_not_dropped(
    session: aiohttp.ClientSession, aiohttp_server: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completing, "LISTED_EVERY_S", 0.0)
    service = Service(404, {"state": "done"})

    ending = await ended(session, await service.start(aiohttp_server), **LISTED)

    assert not ending.dropped
    assert service.asked == ["GET /jobs/7", "GET /jobs", "GET /jobs/7"]


async def test_a_list_that_is_none_is_a_failed_poll(
    session: aiohttp.ClientSession, aiohttp_server: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completing, "LISTED_EVERY_S", 0.0)
    service = Service(404, listed={"nothing": 1})
    url = await service.start(aiohttp_server)
    with pytest.raises(ConsumerFailed, match="GET /jobs gave no list"):
        await ended(session, url, **LISTED)


async def test_a_list_too_long_to_read_tells_nothing(
    session: aiohttp.ClientSession, aiohttp_server: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completing, "LISTED_EVERY_S", 0.0)
    monkeypatch.setattr(completing, "MAX_ANSWER_BYTES", 1000)
    service = Service(*[404] * (MAX_FAILURES + 1), {"state": "done"}, listed=["x" * 2000])
    assert not (await ended(session, await service.start(aiohttp_server), **LISTED)).dropped


async def test_unwanted_work_is_cancelled_and_waited_for(
    session: aiohttp.ClientSession, aiohttp_server: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completing, "CANCEL_EVERY_S", math.inf)
    service = Service({"state": "running"}, {"state": "running"}, {"state": "failed"})
    unwanted = asyncio.Event()
    unwanted.set()

    ending = await ended(session, await service.start(aiohttp_server), unwanted=unwanted, **CANCEL)

    assert ending.failed
    assert service.asked == ["DELETE /jobs/7", *["GET /jobs/7"] * 3]


async def test_a_cancel_is_said_again_until_it_is_heard(
    session: aiohttp.ClientSession, aiohttp_server: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(completing, "CANCEL_EVERY_S", 0.02)
    service = Service(*[{"state": "running"}] * 20, {"state": "failed"})
    unwanted = asyncio.Event()
    unwanted.set()

    await ended(session, await service.start(aiohttp_server), unwanted=unwanted, **CANCEL)

    assert service.asked.count("DELETE /jobs/7") > 1


async def test_becoming_unwanted_ends_the_pause(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    service = Service({"state": "running"}, {"state": "failed"})
    url = await service.start(aiohttp_server)
    unwanted = asyncio.Event()
    slow = {"poll": {**BODY["poll"], "interval_s": 10 * DEADLINE_S}}
    waiting = asyncio.create_task(ended(session, url, unwanted=unwanted, **slow, **CANCEL))
    async with asyncio.timeout(DEADLINE_S):
        for _ in itertools.count():
            if service.asked:
                break
            await asyncio.sleep(0.01)

    unwanted.set()

    async with asyncio.timeout(DEADLINE_S):
        await service.cancels.wait()
    assert (await waiting).failed


@pytest.mark.parametrize(
    ("results", "document", "files"),
    [
        ({"path": "/jobs/{id}/file"}, {}, ("/jobs/7/file",)),
        ({"path": "/f/{name}", "files": "out"}, {"out": [{"name": "a/b"}]}, ("/f/a%2Fb",)),
        ({"path": "/f/{name}", "files": "out"}, {"out": []}, ()),
        ({"path": "/f/{name}", "files": "out"}, {"out": "no list"}, ()),
        ({"path": "/f/{name}", "files": "out"}, {"out": ["no object"]}, ()),
    ],
)
async def test_results_are_paths_of_the_same_consumer(
    session: aiohttp.ClientSession,
    aiohttp_server: Serve,
    results: dict[str, Any],
    document: dict[str, Any],
    files: tuple[str, ...],
) -> None:
    service = Service({"state": "done", **document})
    ending = await ended(session, await service.start(aiohttp_server), results=results)
    assert ending.files == files


async def test_a_result_that_cannot_be_asked_for_is_the_consumers_failure(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    service = Service({"state": "done", "out": [{"name": ".."}]})
    url = await service.start(aiohttp_server)
    with pytest.raises(ConsumerFailed, match="dot segment"):
        await ended(session, url, results={"path": "/f/{name}", "files": "out"})
