from __future__ import annotations

import asyncio
import math
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from mgpu.api.deps import Limits
from mgpu.api.forward import DISK
from tests.api.conftest import Site, Sites
from tests.api.fake_broker import Asked
from tests.api.raw import RawClient

LEAVES_WITHIN_S = 1.0
HEAD = b"POST /v1/tts HTTP/1.1\r\nHost: localhost\r\n"
WAYS_TO_LEAVE = ["leave", "reset", "half_close"]


class Stuck:
    """A consumer that takes a request, says ``begun``, and does nothing until it is cancelled."""

    def __init__(self, *, answer: bool = False) -> None:
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()
        self._answer = answer

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        try:
            if self._answer:
                await response.prepare(request)
                await response.write(b"data: 1\n\n")
            self.begun.set()
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        return response


async def answer(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="answer")


async def ended(site: Site, outcome: str = "cancelled") -> None:
    await site.broker.until(
        lambda broker: list(broker.outcomes.values()) == [outcome], LEAVES_WITHIN_S
    )
    assert not site.broker.waiting
    assert not site.broker.running


def leave(client: RawClient, way: str) -> None:
    getattr(client, way)()


@pytest.mark.parametrize("way", WAYS_TO_LEAVE)
@pytest.mark.parametrize(
    "request_bytes",
    [
        HEAD.replace(b"POST", b"GET") + b"\r\n",
        HEAD + b"Content-Length: 3\r\n\r\nabc",
        HEAD + b"Content-Length: 1000\r\n\r\nabc",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n",
    ],
    ids=["no body", "whole body", "half a body", "open chunks", "body not begun"],
)
async def test_a_client_that_leaves_while_its_job_waits_frees_its_place(
    sites: Sites, way: str, request_bytes: bytes
) -> None:
    site = await sites.broker(await sites.upstream(answer))
    await site.broker.hold()
    client = await site.raw()
    with capture_logs() as logs:
        await client.send(request_bytes)
        await site.broker.until(lambda broker: bool(broker.waiting))

        leave(client, way)
        await ended(site)
        await site.server.close()

    assert [(line["event"], line["log_level"]) for line in logs] == [("client left", "info")]
    assert "exc_info" not in logs[0]


@pytest.mark.parametrize("way", ["leave", "reset"])
async def test_a_long_body_that_nobody_takes_does_not_hide_that_its_client_left(
    sites: Sites, way: str
) -> None:
    site = await sites.broker(await sites.upstream(answer))
    await site.broker.hold()
    client = await site.raw()
    await client.send(HEAD + b"Content-Length: 200000000\r\n\r\n")
    await site.broker.until(lambda broker: bool(broker.waiting))
    client.writer.transport.set_write_buffer_limits(high=1 << 10)
    async with asyncio.timeout(5):
        for _ in range(24):
            await client.send(b"x" * (1 << 20))

    leave(client, way)

    await ended(site)


async def test_a_waiting_body_lies_on_disk_and_not_in_memory(sites: Sites) -> None:
    async def length(request: web.Request) -> web.StreamResponse:
        return web.Response(text=str(sum([len(c) async for c in request.content.iter_any()])))

    site = await sites.broker(await sites.upstream(length))
    await site.broker.hold()
    disk = site.app[DISK]
    before = disk.free_bytes
    size = 16 << 20
    client = await site.raw()
    async with asyncio.timeout(5):
        await client.send(HEAD + f"Content-Length: {size}\r\n\r\n".encode())
        await client.send(b"x" * size)
        client.writer.transport.set_write_buffer_limits(high=0)
        await client.writer.drain()
    assert disk.free_bytes < before

    site.broker.let_go()
    head = await client.head()

    assert await client.read(int(head.get("Content-Length") or 0)) == str(size).encode()
    await ended(site, "done")
    await site.server.close()
    assert disk.free_bytes == before


@pytest.mark.parametrize("way", WAYS_TO_LEAVE)
async def test_a_client_that_leaves_before_the_first_byte_ends_the_consumers_request(
    sites: Sites, way: str
) -> None:
    consumer = Stuck()
    site = await sites.broker(await sites.upstream(consumer))
    client = await site.raw()
    await client.send(HEAD + b"Content-Length: 3\r\n\r\nabc")
    await consumer.begun.wait()

    leave(client, way)

    async with asyncio.timeout(LEAVES_WITHIN_S):
        await consumer.cancelled.wait()
    await ended(site)


@pytest.mark.parametrize("way", WAYS_TO_LEAVE)
async def test_a_client_that_leaves_while_it_is_streamed_to_ends_the_consumers_request(
    sites: Sites, way: str
) -> None:
    consumer = Stuck(answer=True)
    site = await sites.broker(await sites.upstream(consumer))
    client = await site.raw()
    with capture_logs() as logs:
        await client.send(HEAD + b"Content-Length: 3\r\n\r\nabc")
        await client.head()
        assert await client.chunk() == b"data: 1\n\n"

        leave(client, way)

        async with asyncio.timeout(LEAVES_WITHIN_S):
            await consumer.cancelled.wait()
        await ended(site)
        await site.server.close()
    assert [(line["event"], line["log_level"]) for line in logs] == [("client left", "info")]


@pytest.mark.parametrize("way", WAYS_TO_LEAVE)
async def test_a_client_that_took_nothing_and_leaves_is_noticed(sites: Sites, way: str) -> None:
    full = asyncio.Event()

    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        block = b"x" * (1 << 20)
        while True:
            try:
                async with asyncio.timeout(0.2):
                    await response.write(block)
            except TimeoutError:
                full.set()

    site = await sites.broker(await sites.upstream(flood))
    client = await site.raw()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(HEAD + b"Content-Length: 0\r\n\r\n")
    async with asyncio.timeout(5):
        await full.wait()

    leave(client, way)

    await ended(site)


async def test_a_client_that_leaves_while_the_consumer_takes_none_of_its_body_is_noticed(
    sites: Sites,
) -> None:
    consumer = Stuck()
    site = await sites.broker(await sites.upstream(consumer))
    client = await site.raw()
    await client.send(HEAD + b"Content-Length: 200000000\r\n\r\n")
    await consumer.begun.wait()
    async with asyncio.timeout(5):
        for _ in range(24):
            await client.send(b"x" * (1 << 20))

    client.leave()

    await ended(site)


async def test_the_next_job_runs_when_the_one_before_it_was_left(sites: Sites) -> None:
    consumer = Stuck()
    site = await sites.broker(await sites.upstream(consumer))
    first = await site.raw()
    await first.send(HEAD + b"Content-Length: 0\r\n\r\n")
    await consumer.begun.wait()
    second = await site.raw()
    await second.send(HEAD + b"Content-Length: 0\r\n\r\n")
    await site.broker.until(lambda broker: broker.waiting == ["job-2"])

    first.leave()

    await site.broker.until(lambda broker: broker.running == ["job-2"], LEAVES_WITHIN_S)


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 1000\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"],
)
async def test_a_body_that_stalls_while_its_job_waits_is_given_up(
    sites: Sites, framing: bytes
) -> None:
    site = await sites.broker(await sites.upstream(answer), limits=Limits(body_idle_s=0.05))
    await site.broker.hold()
    client = await site.raw()

    await client.send(HEAD + framing)

    status, problem = await client.problem()
    assert (status, problem["type"]) == (408, "urn:mgpu:request-timeout")
    await ended(site)
    assert await client.rest() == b""


async def test_a_body_that_stalls_while_the_consumer_reads_is_given_up(sites: Sites) -> None:
    gone = asyncio.Event()

    async def reading(request: web.Request) -> web.StreamResponse:
        try:
            await request.read()
        finally:
            gone.set()
        return web.Response()

    site = await sites.broker(await sites.upstream(reading), limits=Limits(body_idle_s=0.05))
    client = await site.raw()

    await client.send(HEAD + b"Content-Length: 1000\r\n\r\nabc")

    status, _ = await client.problem()
    assert status == 408
    async with asyncio.timeout(LEAVES_WITHIN_S):
        await gone.wait()
    await ended(site)


async def test_a_body_that_waits_for_the_gpu_does_not_count_as_stalled(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(answer), limits=Limits(body_idle_s=0.01))
    await site.broker.hold()
    client = await site.raw()
    await client.send(HEAD + b"Content-Length: 6\r\n\r\nabc")
    await client.send(b"def")
    await site.broker.until(lambda broker: bool(broker.waiting))
    await asyncio.wait([asyncio.create_task(client.reader.read(1))], timeout=0.05)

    site.broker.let_go()

    await ended(site, "done")


@pytest.mark.parametrize("held", [True, False])
async def test_a_body_whose_chunks_break_is_refused_at_once(sites: Sites, held: bool) -> None:
    async def reading(request: web.Request) -> web.StreamResponse:
        await request.read()
        return web.Response()

    site = await sites.broker(await sites.upstream(reading))
    if held:
        await site.broker.hold()
    client = await site.raw()
    await client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await site.broker.until(lambda broker: bool(broker.waiting or broker.running))

    await client.send(b"zz\r\nabc\r\n")

    status, problem = await client.problem()
    assert (status, problem["type"]) == (400, "urn:mgpu:bad-request")
    await ended(site)


async def test_a_body_that_says_it_is_too_long_is_refused_unheard(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(answer), server={"max_body_mib": 1})
    client = await site.raw()

    await client.send(
        HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % ((1 << 20) + 1)
    )

    status, problem = await client.problem()
    assert (status, problem["type"]) == (413, "urn:mgpu:body-too-large")
    assert not site.broker.waiting


@pytest.mark.parametrize("held", [True, False])
async def test_a_chunked_body_is_counted(sites: Sites, held: bool) -> None:
    async def reading(request: web.Request) -> web.StreamResponse:
        async for _ in request.content.iter_any():
            pass
        return web.Response()

    site = await sites.broker(await sites.upstream(reading), server={"max_body_mib": 1})
    if held:
        await site.broker.hold()
    client = await site.raw()
    await client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    chunk = b"%x\r\n%b\r\n" % (1 << 16, b"x" * (1 << 16))

    await client.send(chunk * 16 + b"1\r\nx\r\n")

    status, problem = await client.problem()
    assert (status, problem["type"]) == (413, "urn:mgpu:body-too-large")
    await ended(site)


@pytest.mark.parametrize("held", [True, False])
async def test_a_body_of_exactly_the_limit_passes(sites: Sites, held: bool) -> None:
    async def length(request: web.Request) -> web.StreamResponse:
        return web.Response(text=str(sum([len(c) async for c in request.content.iter_any()])))

    site = await sites.broker(await sites.upstream(length), server={"max_body_mib": 1})
    if held:
        await site.broker.hold()
    client = await site.raw()
    chunk = b"%x\r\n%b\r\n" % (1 << 16, b"x" * (1 << 16))
    await client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 16 + b"0\r\n\r\n")
    if held:
        await site.broker.until(lambda broker: bool(broker.waiting))
        site.broker.let_go()

    head = await client.head()

    assert await client.read(int(head.get("Content-Length") or 0)) == b"1048576"


async def test_a_small_bomb_is_not_unpacked(sites: Sites) -> None:
    async def length(request: web.Request) -> web.StreamResponse:
        return web.Response(text=str(len(await request.read())))

    site = await sites.broker(await sites.upstream(length), server={"max_body_mib": 1})

    async with site.client.post(
        site.url("/v1/tts"),
        data=b"\x1f\x8b not really gzip",
        headers={"Content-Encoding": "gzip"},
    ) as response:
        assert await response.text() == "18"


async def test_continue_is_said_when_the_body_is_wanted(sites: Sites) -> None:
    async def length(request: web.Request) -> web.StreamResponse:
        assert "Expect" not in request.headers
        return web.Response(text=str(len(await request.read())))

    site = await sites.broker(await sites.upstream(length))
    client = await site.raw()

    await client.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    assert (await client.head()).status == 100
    await client.send(b"abc")

    head = await client.head()
    assert head.status == 200
    assert await client.read(1) == b"3"


async def test_continue_is_not_said_to_a_client_without_a_key(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(answer), api_keys=("k",))
    client = await site.raw()

    await client.send(HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")

    assert (await client.head()).status == 401


async def test_a_job_that_runs_too_long_is_a_504(sites: Sites) -> None:
    consumer = Stuck()
    site = await sites.broker(await sites.upstream(consumer))
    site.broker.job_timeout_s = 0.05

    with capture_logs() as logs:
        async with site.client.post(site.url("/v1/tts"), data=b"x") as response:
            assert response.status == 504
            document = await response.json(content_type="application/problem+json")
            assert document["type"] == "urn:mgpu:job-timeout"
    await consumer.cancelled.wait()
    assert not [line for line in logs if line["event"] == "client left"]


async def test_a_job_that_runs_too_long_while_it_streams_is_broken_off(sites: Sites) -> None:
    consumer = Stuck(answer=True)
    site = await sites.broker(await sites.upstream(consumer))
    site.broker.job_timeout_s = 0.05

    async with site.client.post(site.url("/v1/tts"), data=b"x") as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    await consumer.cancelled.wait()


async def test_an_answer_tells_its_job_and_consumer(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(answer))

    async with site.client.get(site.url("/v1/tts")) as response:
        assert response.headers["X-MGPU-Job"] == "job-1"
        assert response.headers["X-MGPU-Consumer"] == "tts"
    assert site.broker.outcomes == {"job-1": "done"}


@pytest.mark.parametrize(
    ("headers", "priority", "max_wait_s"),
    [
        ({}, None, None),
        ({"X-MGPU-Priority": "100"}, 100, None),
        ({"X-MGPU-Priority": "-100"}, -100, None),
        ({"X-MGPU-Priority": "+7"}, 7, None),
        ({"X-MGPU-Max-Wait": "0.5"}, None, 0.5),
        ({"X-MGPU-Max-Wait": "30"}, None, 30.0),
        ({"X-MGPU-Max-Wait": "999999"}, None, 60.0),
    ],
)
async def test_a_job_may_ask_for_priority_and_a_shorter_wait(
    sites: Sites, headers: dict[str, str], priority: int | None, max_wait_s: float | None
) -> None:
    async def check(request: web.Request) -> web.StreamResponse:
        assert not [name for name in request.headers if name.startswith("X-MGPU")]
        return web.Response()

    site = await sites.broker(await sites.upstream(check), scheduler={"max_wait_s": 60})

    async with site.client.get(site.url("/v1/tts"), headers=headers) as response:
        assert response.status == 200
    assert site.broker.asked == {"job-1": Asked("tts", priority, max_wait_s)}


@pytest.mark.parametrize(
    ("wish", "seconds"),
    [
        ("0", 0.0),
        ("90", 90.0),
        ("0.5", 0.5),
        ("-1", math.inf),
        ("-0.5", math.inf),
        ("never", math.inf),
        ("Never", math.inf),
    ],
)
async def test_a_job_may_say_how_long_its_consumer_may_be_idle(
    sites: Sites, wish: str, seconds: float
) -> None:
    async def check(request: web.Request) -> web.StreamResponse:
        assert not [name for name in request.headers if name.startswith("X-MGPU")]
        return web.Response()

    site = await sites.broker(await sites.upstream(check))

    headers = {"X-MGPU-Idle-Unload": wish}
    async with site.client.get(site.url("/v1/tts"), headers=headers) as response:
        assert response.status == 200
    assert site.broker.asked["job-1"].idle_unload_s == seconds


@pytest.mark.parametrize(
    "headers",
    [
        {"X-MGPU-Idle-Unload": ""},
        {"X-MGPU-Idle-Unload": "always"},
        {"X-MGPU-Idle-Unload": "--1"},
        {"X-MGPU-Idle-Unload": "1e3"},
        {"X-MGPU-Idle-Unload": "inf"},
        {"X-MGPU-Idle-Unload": "nan"},
        {"X-MGPU-Priority": "101"},
        {"X-MGPU-Priority": "-101"},
        {"X-MGPU-Priority": "1.5"},
        {"X-MGPU-Priority": "high"},
        {"X-MGPU-Priority": ""},
        {"X-MGPU-Priority": "٣"},
        {"X-MGPU-Max-Wait": "0"},
        {"X-MGPU-Max-Wait": "-1"},
        {"X-MGPU-Max-Wait": "nan"},
        {"X-MGPU-Max-Wait": "inf"},
        {"X-MGPU-Max-Wait": "1e3"},
        {"X-MGPU-Max-Wait": "soon"},
        {"X-MGPU-Max-Wait": "0.0"},
    ],
)
async def test_a_wish_that_makes_no_sense_is_refused_by_name(
    sites: Sites, headers: dict[str, str]
) -> None:
    site = await sites.broker(await sites.upstream(answer))

    async with site.client.get(site.url("/v1/tts"), headers=headers) as response:
        assert response.status == 400
        document = await response.json(content_type="application/problem+json")
        assert next(iter(headers)) in document["detail"]
    assert not site.broker.asked


@pytest.mark.parametrize("api_keys", [(), ("key",)])
async def test_authorization_reaches_a_consumer_unless_it_is_the_brokers(
    sites: Sites, api_keys: tuple[str, ...]
) -> None:
    seen: list[str | None] = []

    async def look(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.Response()

    site = await sites.broker(await sites.upstream(look), api_keys=api_keys)

    async with site.client.get(
        site.url("/v1/tts"), headers={"Authorization": "Bearer key"}
    ) as response:
        assert response.status == 200
    assert seen == [None if api_keys else "Bearer key"]


async def test_an_origin_does_not_reach_a_consumer(sites: Sites) -> None:
    seen: list[str] = []

    async def look(request: web.Request) -> web.StreamResponse:
        seen.extend(request.headers)
        return web.Response()

    site = await sites.broker(await sites.upstream(look))
    headers: dict[str, Any] = {
        "Origin": f"http://127.0.0.1:{site.port}",
        "Sec-Fetch-Site": "same-origin",
        "Sec-Fetch-Mode": "cors",
    }

    async with site.client.get(site.url("/consumers/tts/"), headers=headers) as response:
        assert response.status == 200
    assert not [name for name in seen if name == "Origin" or name.startswith("Sec-")]
