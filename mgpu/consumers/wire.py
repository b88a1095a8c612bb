"""What every HTTP call to a consumer has in common: the session, the answer, the words for errors.

Nothing said here quotes a header or a query string: either may hold a key.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from mgpu.config.model import ConsumerConfig, RequestConfig

UNBOUNDED = aiohttp.ClientTimeout(total=None, sock_connect=None)
"""The caller's ``asyncio.timeout`` is the deadline: aiohttp's own are rounded up above 5 s."""
READ_BYTES = 1 << 16
_QUOTED_CHARS = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """A consumer's answer. ``complete`` is False when ``body`` is only the beginning of it."""

    status: int
    body: bytes
    complete: bool
    headers: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return f"{self.status} {quote(self.body)}".rstrip()


def control_session() -> aiohttp.ClientSession:
    """Make a session for control calls, to be closed by the caller.

    No proxy from the environment, no cookies, and a connection for each call, since a kept one may
    be closed by the other side just as a POST goes out on it.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(force_close=True, limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=UNBOUNDED,
        trust_env=False,
    )


def url_of(origin: str, path: str, port: int | None = None) -> URL:
    """The URL of a path (with its query) at a consumer, or at another port of the same host."""
    base = URL(origin)
    return URL(str(base.with_port(port) if port else base).rstrip("/") + path)


def request(
    session: aiohttp.ClientSession,
    consumer: ConsumerConfig,
    wanted: RequestConfig,
    timeout: aiohttp.ClientTimeout,
) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
    """Send a configured request to the consumer itself; a redirect is an answer like any other."""
    headers = CIMultiDict({"Accept-Encoding": "identity", **consumer.headers})
    headers.update(wanted.headers)
    data = None
    if wanted.body is not None:
        data = json.dumps(wanted.body).encode()
        headers.setdefault("Content-Type", "application/json")
    return session.request(
        wanted.method,
        url_of(consumer.url, wanted.path, wanted.port),
        data=data,
        headers=headers,
        allow_redirects=False,
        timeout=timeout,
    )


def is_refused(error: BaseException) -> bool:
    """Whether nothing listens at the address, so that the request reached nobody."""
    return isinstance(error, OSError) and error.errno == errno.ECONNREFUSED


def reason(error: Exception) -> str:
    """Say why a call brought no answer."""
    if is_refused(error):
        return "connection refused: nothing listens there"
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "it closed the connection without an answer"
    return str(error) or type(error).__name__


def bare(path: str) -> str:
    """Cut off the query."""
    return path.partition("?")[0]


def quote(body: bytes) -> str:
    """Make one printable line of the beginning of a body, 200 characters at most."""
    text = body[: 4 * _QUOTED_CHARS].decode(errors="replace")
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split())[:_QUOTED_CHARS]
