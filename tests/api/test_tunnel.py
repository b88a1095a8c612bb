from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from tests.api.conftest import Sites

HANDSHAKE = (
    b"GET /consumers/tts/ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def echo(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse(protocols=("v2", "v1"), max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            if message.data == "close":
                await socket.close(code=4001, message=b"as you wish")
            else:
                await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


@pytest.mark.parametrize("path", ["/consumers/tts/ws", "/v1/tts"])
@pytest.mark.parametrize("compress", [0, 15])
async def test_messages_pass_both_ways_as_a_job(sites: Sites, path: str, compress: int) -> None:
    site = await sites.broker(await sites.upstream(echo))

    async with asyncio.timeout(5):
        async with site.client.ws_connect(
            site.url(path), max_msg_size=0, compress=compress
        ) as client:
            for text in ("", "one", "ä" * 100_000):
                await client.send_str(text)
                assert await client.receive_str() == text
            data = bytes(range(256)) * 40_000
            await client.send_bytes(data)
            assert await client.receive_bytes() == data
            assert site.broker.running == ["job-1"]
        await site.broker.until(lambda broker: bool(broker.outcomes))
    assert not site.broker.running


async def test_the_consumer_chooses_the_protocol_and_the_extensions(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(echo))

    async with site.client.ws_connect(
        site.url("/consumers/tts/ws"), protocols=("v1", "other"), compress=15
    ) as client:
        assert client.protocol == "v1"
        assert client.compress
        assert client._response.headers["X-MGPU-Job"] == "job-1"


async def test_the_consumers_close_arrives_with_code_and_reason(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(echo))

    async with site.client.ws_connect(site.url("/consumers/tts/ws")) as client:
        await client.send_str("close")
        message = await client.receive()

    assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, 4001, "as you wish")
    await site.broker.until(lambda broker: broker.outcomes == {"job-1": "done"})


async def test_the_clients_close_reaches_the_consumer(sites: Sites) -> None:
    closed = asyncio.Queue[int | None]()

    async def note_close(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        closed.put_nowait(socket.close_code)
        return socket

    site = await sites.broker(await sites.upstream(note_close))

    async with asyncio.timeout(5):
        async with site.client.ws_connect(site.url("/consumers/tts/ws")) as client:
            await client.close(code=4002)
        assert await closed.get() == 4002
    await site.broker.until(lambda broker: bool(broker.outcomes))


async def test_pings_are_end_to_end(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(echo))

    async with (
        asyncio.timeout(5),
        site.client.ws_connect(site.url("/consumers/tts/ws"), autoping=False) as client,
    ):
        await client.ping(b"are you there")
        message = await client.receive()
        assert (message.type, message.data) == (WSMsgType.PONG, b"are you there")


async def test_a_socket_that_is_no_activity_takes_no_lease(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(echo), consumer={"not_activity": ["GET /ws"]})
    await site.broker.hold()

    async with site.client.ws_connect(site.url("/consumers/tts/ws?clientId=1")) as client:
        await client.send_str("one")
        assert await client.receive_str() == "one"
    assert not site.broker.asked


async def test_a_handshake_that_the_consumer_refuses_is_its_own_answer(sites: Sites) -> None:
    async def refuse(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=403, text="not you", headers={"X-Why": "own"})

    site = await sites.broker(await sites.upstream(refuse))
    client = await site.raw()

    await client.send(HANDSHAKE)
    head = await client.head()

    assert (head.status, head.get("X-Why")) == (403, "own")
    assert await client.read(7) == b"not you"


async def test_a_redirected_handshake_is_not_followed(sites: Sites) -> None:
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.Response(status=302, headers={"Location": "/other"})

    site = await sites.broker(await sites.upstream(elsewhere))
    client = await site.raw()

    await client.send(HANDSHAKE)

    assert (await client.head()).status == 302
    assert asked == ["/ws"]


async def test_a_consumer_that_dies_ends_the_clients_socket(sites: Sites) -> None:
    async def die(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("last words")
        assert request.transport is not None
        await socket.receive()
        request.transport.abort()
        return socket

    site = await sites.broker(await sites.upstream(die))

    async with site.client.ws_connect(site.url("/consumers/tts/ws")) as client:
        assert await client.receive_str() == "last words"
        await client.send_str("die")
        message = await client.receive(timeout=5)
    assert message.type in {WSMsgType.CLOSED, WSMsgType.ERROR, WSMsgType.CLOSE}
    await site.broker.until(lambda broker: bool(broker.outcomes))


async def test_a_client_that_leaves_ends_the_consumers_socket(sites: Sites) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def listen(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        begun.set()
        try:
            await socket.receive()
        finally:
            ended.set()
        return socket

    site = await sites.broker(await sites.upstream(listen))
    client = await site.raw()
    await client.send(HANDSHAKE)
    assert (await client.head()).status == 101
    await begun.wait()

    client.leave()

    async with asyncio.timeout(1):
        await ended.wait()
    await site.broker.until(lambda broker: broker.outcomes == {"job-1": "done"}, 1)


async def test_a_slow_end_holds_the_other_back(sites: Sites) -> None:
    sent = 0
    stuck = asyncio.Event()

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        while True:
            try:
                async with asyncio.timeout(0.2):
                    await socket.send_bytes(b"x" * (1 << 20))
                    sent += 1
            except TimeoutError:
                stuck.set()
                await asyncio.Event().wait()

    site = await sites.broker(await sites.upstream(flood))
    client = await site.raw()
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await client.send(HANDSHAKE)

    async with asyncio.timeout(5):
        await stuck.wait()

    assert sent < 64


async def test_bytes_sent_right_behind_the_handshake_are_not_lost(sites: Sites) -> None:
    site = await sites.broker(await sites.upstream(echo))
    client = await site.raw()
    masked_hi = bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi"

    await client.send(HANDSHAKE + masked_hi)

    assert (await client.head()).status == 101
    assert await client.read(4) == b"\x81\x02hi"


async def test_only_a_websocket_is_an_upgrade(sites: Sites) -> None:
    seen: list[str] = []

    async def look(request: web.Request) -> web.StreamResponse:
        seen.extend(request.headers)
        return web.Response()

    site = await sites.broker(await sites.upstream(look))
    client = await site.raw()

    await client.send(
        b"GET /v1/tts HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n"
    )

    assert (await client.head()).status == 200
    assert {"Upgrade", "Connection", "HTTP2-Settings"}.isdisjoint(seen)


async def test_a_consumer_that_cannot_be_reached_is_a_502(sites: Sites, unused_port: int) -> None:
    site = await sites.broker(f"http://127.0.0.1:{unused_port}")

    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await site.client.ws_connect(site.url("/consumers/tts/ws"))
    assert refused.value.status == 502
