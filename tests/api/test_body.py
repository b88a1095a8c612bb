"""Bodies of requests: how long they may stall, and how large they may be."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from mgpu.api.deps import Limits
from tests.api.conftest import Sites
from tests.api.jobs import HEAD, LEAVES_WITHIN_S, answer, ended


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
