"""Clients that leave, noticed in every phase of their job."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from mgpu.api.forward import DISK
from tests.api.conftest import Sites
from tests.api.jobs import HEAD, LEAVES_WITHIN_S, Stuck, answer, ended
from tests.api.raw import RawClient

WAYS_TO_LEAVE = ["leave", "reset", "half_close"]


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
