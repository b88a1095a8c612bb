"""Bodies through the proxy: byte for byte, both ways at once, and as they come."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from tests.api.conftest import Sites
from tests.api.jobs import echo

MIB = 1 << 20
SIZES = [0, 1, 1000, 64 * 1024 - 1, 256 * 1024 + 1, 3 * MIB]


def noise(size: int) -> bytes:
    block = os.urandom(MIB)
    return (block * (size // MIB + 1))[:size]


async def in_chunks(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_are_the_same_byte_for_byte_both_ways(
    sites: Sites, size: int, chunked: bool
) -> None:
    site = await sites.broker(await sites.upstream(echo))
    sent = noise(size)

    async with site.client.post(
        site.url("/v1/tts"), data=in_chunks(sent, 50_000) if chunked else io.BytesIO(sent)
    ) as response:
        assert await response.read() == sent
        assert response.headers.get("Content-Length") == (None if chunked else str(size))
        assert response.headers.get("Transfer-Encoding") == ("chunked" if chunked else None)


async def test_64_mib_go_up(sites: Sites) -> None:
    async def digest(request: web.Request) -> web.StreamResponse:
        sha = hashlib.sha256()
        async for chunk in request.content.iter_any():
            sha.update(chunk)
        return web.Response(text=sha.hexdigest())

    site = await sites.broker(await sites.upstream(digest))
    sent = noise(64 * MIB)

    async with site.client.post(site.url("/v1/tts"), data=in_chunks(sent, MIB)) as response:
        assert await response.text() == hashlib.sha256(sent).hexdigest()


async def test_64_mib_come_down(sites: Sites) -> None:
    sent = noise(64 * MIB)

    async def big(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=sent)

    site = await sites.broker(await sites.upstream(big))
    sha = hashlib.sha256()

    async with site.client.get(site.url("/v1/tts")) as response:
        assert response.content_length == 64 * MIB
        async for chunk in response.content.iter_any():
            sha.update(chunk)

    assert sha.hexdigest() == hashlib.sha256(sent).hexdigest()


async def test_both_directions_stream_at_the_same_time(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(echo))
    heard = asyncio.Queue[bytes]()

    async def talk() -> AsyncIterator[bytes]:
        for word in (b"one", b"two", b"three"):
            yield word
            assert await heard.get() == word

    async with (
        asyncio.timeout(5),
        site.client.post(site.url("/v1/tts"), data=talk()) as response,
    ):
        async for chunk in response.content.iter_any():
            heard.put_nowait(chunk)


async def test_the_head_of_a_request_does_not_wait_for_its_body(sites: Sites) -> None:
    async def greet(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"go on")
        await response.write(await request.read())
        return response

    site = await sites.broker(await sites.upstream(greet))
    client = await site.raw()

    await client.send(b"POST /v1/tts HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n")
    await client.head()
    assert await client.chunk() == b"go on"
    await client.send(b"abc")

    assert await client.chunk() == b"abc"
    assert await client.chunk() == b""


async def test_gzip_passes_untouched_both_ways(sites: Sites) -> None:
    packed = gzip.compress(b"0" * 10 * MIB)

    async def check(request: web.Request) -> web.StreamResponse:
        assert request.headers["Content-Encoding"] == "gzip"
        assert request.headers["Accept-Encoding"] == "gzip, x"
        body = await request.read()
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    site = await sites.broker(await sites.upstream(check))

    async with site.client.post(
        site.url("/v1/tts"),
        data=packed,
        headers={"Content-Encoding": "gzip", "Accept-Encoding": "gzip, x"},
    ) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert await response.read() == packed


async def test_each_event_arrives_before_the_next_is_sent(sites: Sites) -> None:
    arrived = [asyncio.Event() for _ in range(5)]

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number, event in enumerate(arrived):
            await response.write(f"data: {number}\n\n".encode())
            await event.wait()
        return response

    site = await sites.broker(await sites.upstream(events))

    async with asyncio.timeout(5), site.client.get(site.url("/v1/tts")) as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        for number, event in enumerate(arrived):
            assert await response.content.readany() == f"data: {number}\n\n".encode()
            event.set()
        assert await response.content.read() == b""


async def test_the_head_arrives_before_any_of_the_body(sites: Sites) -> None:
    seen = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await seen.wait()
        await response.write(b"late")
        return response

    site = await sites.broker(await sites.upstream(slow))

    async with asyncio.timeout(5), site.client.get(site.url("/v1/tts")) as response:
        seen.set()
        assert await response.read() == b"late"
