"""WebSockets: once both ends have switched protocols, their bytes are passed and not looked at.

So frames, extensions, pings and close codes are end to end, there is no limit on a message, and a
handshake that the consumer refuses is an answer like any other. Each direction holds one bounded
buffer (aiohttp's ``StreamReader``), which pauses its connection while the other end is slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import aiohttp
from aiohttp import StreamReader, hdrs, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpVersion11, StreamWriter
from multidict import CIMultiDict

from mgpu.api import headers as fields
from mgpu.api.connection import client_left
from mgpu.api.proxy import start

SWITCHING_PROTOCOLS = 101
_BUFFER_BYTES = 1 << 16


def is_upgrade(request: web.Request) -> bool:
    """Whether the client asks for a WebSocket (RFC 6455, 4.1)."""
    return (
        request.method == hdrs.METH_GET
        and request.version == HttpVersion11
        and "upgrade" in fields.tokens(request.headers, hdrs.CONNECTION)
        and "websocket" in fields.tokens(request.headers, hdrs.UPGRADE)
    )


def upgrade_headers(headers: fields.Headers) -> CIMultiDict[str]:
    """The same fields with the two that ask for a WebSocket, which are per connection."""
    asking = headers.copy()
    asking[hdrs.CONNECTION] = "Upgrade"
    asking[hdrs.UPGRADE] = "websocket"
    return asking


async def splice(
    request: web.Request,
    upstream: aiohttp.ClientResponse,
    *,
    consumer: str,
    headers: Mapping[str, str],
) -> web.StreamResponse:
    """Switch the client's side too, then pass bytes until one end closes.

    ``upstream`` has answered 101.
    """
    passed = upgrade_headers(fields.towards_client(upstream.headers))
    passed.extend(headers)
    response = web.StreamResponse(
        status=SWITCHING_PROTOCOLS, reason=upstream.reason, headers=passed
    )
    response.force_close()
    connection = upstream.connection
    if connection is None or connection.protocol is None:
        return response
    from_consumer = _Reader(connection.protocol)
    connection.protocol.set_parser(from_consumer, from_consumer.stream)
    await start(request, response, consumer)
    from_client = _Reader(request.protocol)
    request.protocol.set_parser(from_client)  # type: ignore[arg-type]
    try:
        async with asyncio.TaskGroup() as directions:
            down = directions.create_task(_pass(from_consumer.stream, request.protocol))
            up = directions.create_task(_pass(from_client.stream, connection.protocol))
            down.add_done_callback(lambda _: up.cancel())
            up.add_done_callback(lambda _: down.cancel())
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or not client_left(request):
            raise
        task.uncancel()  # the client has closed, which is how a WebSocket ends
    return response


class _Reader:
    """What aiohttp's protocols want of a WebSocket parser, parsing nothing."""

    def __init__(self, protocol: BaseProtocol) -> None:
        self.stream = StreamReader(protocol, _BUFFER_BYTES, loop=asyncio.get_running_loop())

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.stream.feed_data(data)
        return False, b""

    def feed_eof(self) -> None:
        self.stream.feed_eof()


async def _pass(source: StreamReader, sink: BaseProtocol) -> None:
    """Pass bytes until there are no more, or nobody to take them."""
    writer = StreamWriter(sink, asyncio.get_running_loop())
    try:
        while chunk := await source.readany():
            await writer.write(chunk)
    except ConnectionError:
        return
