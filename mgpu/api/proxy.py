"""One request to a consumer and its answer back, streamed both ways at the same time.

Bytes are passed as they come: nothing is decompressed, no redirect is followed, no cookie is
kept, no environment is asked for a proxy. An answer that is complete when its head arrives goes
out in one write; any other goes out chunk by chunk, each as soon as it is here, which is what
Server-Sent Events need. Trailers are dropped.

Errors of the two sides are kept apart by place, not by class, since aiohttp uses the same classes
for both: what fails while reading from the consumer is ``ConsumerFailed``, what fails while
writing to the client means that the client has left.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping

import aiohttp
import structlog
from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion10
from aiohttp.payload import AsyncIterablePayload
from yarl import URL

from mgpu.api import headers as fields
from mgpu.api.deps import DEPS
from mgpu.api.guard import UNASKED
from mgpu.errors import ConsumerFailed

READ_BUFSIZE_BYTES = 1 << 20
"""Of a consumer's answer, before its connection is paused."""
KEEPALIVE_S = 1.5
"""Common servers close idle connections after 2 s (gunicorn) or 5 s (uvicorn, Node): a POST sent
on a connection that closes at that moment is lost and may not be repeated."""

_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
"""A job takes as long as it takes; the broker ends it when that is too long."""
_UNASKED = (hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE, hdrs.USER_AGENT)
"""What aiohttp would add to a request that has none."""
UPSTREAM_ERRORS = (aiohttp.ClientError, OSError, TimeoutError)

log = structlog.get_logger(__name__)


class _Streamed(AsyncIterablePayload):
    """A body that is still coming: the head goes ahead, in case the consumer answers to it."""

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        writer.send_headers()
        await super().write_with_length(writer, content_length)


def make_session() -> aiohttp.ClientSession:
    """Make the session for requests to consumers, to be closed by the caller."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=_TIMEOUT,
        auto_decompress=False,
        trust_env=False,
    )


async def ask(
    request: web.Request,
    url: URL,
    *,
    consumer: str,
    headers: fields.Headers,
    data: bytes | AsyncIterator[bytes] | None,
) -> aiohttp.ClientResponse:
    """Send a request on; return when the answer's head is here. Raise ``ConsumerFailed``."""
    length = request.headers.get(hdrs.CONTENT_LENGTH)
    if data is not None and length is not None:
        headers = headers.copy()
        headers[hdrs.CONTENT_LENGTH] = length
    try:
        return await request.app[DEPS].session.request(
            request.method,
            url,
            headers=headers,
            data=data if data is None or isinstance(data, bytes) else _Streamed(data),
            chunked=True if data is not None and length is None else None,
            skip_auto_headers=[name for name in _UNASKED if name not in headers] or None,
            allow_redirects=False,
            auto_decompress=False,
            read_bufsize=READ_BUFSIZE_BYTES,
            timeout=_TIMEOUT,
        )
    except UPSTREAM_ERRORS as error:
        raise failed(consumer, error) from error


async def relay(
    request: web.Request,
    upstream: aiohttp.ClientResponse,
    *,
    consumer: str,
    headers: Mapping[str, str],
    origin: str | None = None,
) -> web.StreamResponse:
    """Send a consumer's answer to the client, with ``headers`` added, and return when it is sent.

    ``origin`` is the consumer's where the client sees a port of its own for it: then it is sent on
    to places on that port, not to the consumer.

    Raises ``ConsumerFailed`` when the answer ends early and ``asyncio.CancelledError`` when the
    client has left.
    """
    passed = fields.towards_client(upstream.headers)
    passed.extend(headers)
    if origin is not None:
        fields.stay_on_port(passed, origin)
    if upstream.content.is_eof():
        response = _whole(request, upstream, passed)
    else:
        response = _begun(request, upstream, passed)
    await start(request, response, consumer)
    try:
        while chunk := await upstream.content.readany():
            await _to_client(response, chunk)
    except UPSTREAM_ERRORS as error:
        raise failed(consumer, error) from error
    await _to_client(response, None)
    return response


def _whole(
    request: web.Request, upstream: aiohttp.ClientResponse, headers: fields.Headers
) -> web.StreamResponse:
    """An answer whose body is here: its head and body go out in one write."""
    response = web.Response(
        status=upstream.status,
        reason=upstream.reason,
        headers=headers,
        body=upstream.content.read_nowait() or None,
    )
    chunked = hdrs.TRANSFER_ENCODING in upstream.headers
    if chunked and request.method != hdrs.METH_HEAD and request.version > HttpVersion10:
        response.enable_chunked_encoding()
    return response


def _begun(
    request: web.Request, upstream: aiohttp.ClientResponse, headers: fields.Headers
) -> web.StreamResponse:
    response = web.StreamResponse(status=upstream.status, reason=upstream.reason, headers=headers)
    if request.version == HttpVersion10 and hdrs.CONTENT_LENGTH not in headers:
        response.force_close()  # its end is the connection's end
    return response


async def start(request: web.Request, response: web.StreamResponse, consumer: str) -> None:
    """Send the head of a consumer's answer, as it is."""
    response[UNASKED] = tuple(
        name for name in (hdrs.SERVER, hdrs.CONTENT_TYPE) if name not in response.headers
    )
    try:
        await response.prepare(request)
    except ConnectionError as error:
        raise asyncio.CancelledError("the client left") from error
    except ValueError as error:
        raise ConsumerFailed(f"{consumer} answered with a header that is not HTTP.") from error


async def _to_client(response: web.StreamResponse, chunk: bytes | None) -> None:
    """Write, or end the answer when there is no chunk.

    A client that has left shows as a cancellation or as an error here, whichever comes first; for
    all others it is a cancellation.
    """
    try:
        if chunk is None:
            await response.write_eof()
        else:
            await response.write(chunk)
    except ConnectionError as error:
        raise asyncio.CancelledError("the client left") from error


def _cause(error: OSError) -> str:
    # asyncio puts the address into strerror, and a name that does not resolve has no errno.
    return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else "no address"


def failed(consumer: str, error: BaseException) -> ConsumerFailed:
    """Say what happened, without quoting anything that was sent."""
    match error:
        case aiohttp.ClientConnectorError():
            what = f"cannot be reached: {_cause(error.os_error)}"
        case TimeoutError():
            what = "cannot be reached: no connection in time"
        case aiohttp.ClientPayloadError():
            what = "broke off in the middle of its answer"
        case aiohttp.ClientResponseError():
            what = "answered with something that is not HTTP"
        case _:
            what = "closed the connection before it answered"
    log.warning("consumer failed", consumer=consumer, what=what, error=type(error).__name__)
    return ConsumerFailed(f"{consumer} {what}.")
