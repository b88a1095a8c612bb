"""The body of a request on its way to a consumer: counted, given a deadline, never held whole.

It is read from the moment the request arrives, not when the consumer takes it: only then a client
that leaves, stalls or sends too much is noticed while its job still waits, and only then a stall
is known to be the client's. What the consumer has not taken yet lies in a ``Spool``.

A body that breaks ends its job wherever that is: the task inside the ``async with`` is cancelled,
and the context raises what was wrong with the body, in the manner of ``asyncio.timeout``.

When something in the body decides where it goes, a ``Finder`` is shown every piece as it comes in;
until it is content, everything is kept.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Protocol, Self

from aiohttp import StreamReader, hdrs, web
from aiohttp.http import HttpVersion10
from aiohttp.web_protocol import RequestPayloadError

from mgpu.api.deps import Limits
from mgpu.api.spool import DiskBudget, Spool
from mgpu.errors import BadRequest, BodyTooLarge, MgpuError

MAX_SIMPLE_BODY_BYTES = 8 << 20
"""Of a request that is read whole, and held while its job waits."""
_LOOK_AT_BYTES = 1 << 14
"""At a time: a body made to be slow to look through holds up nobody else for long."""


class Finder(Protocol):
    """Looks for something in a body."""

    @property
    def satisfied(self) -> bool:
        """Whether it has been found."""

    def feed(self, piece: bytes) -> None:
        """Look at the next piece, an empty one at the end; raise ``errors.MgpuError``."""


class RequestBody:
    """An ``async with`` that receives a request's body while its job goes on.

    ``data`` is what to send: None without a body, bytes when all of it is here already, else an
    iterator. Raises ``errors.BodyTooLarge`` beyond ``max_bytes``, ``errors.BadRequest`` for a
    broken encoding, and aiohttp's 408 when nothing comes for ``limits.body_idle_s``; with a
    ``finder`` what that raises, too, and ``errors.StorageFull`` when it has not found anything and
    no more can be kept.
    """

    def __init__(
        self,
        request: web.Request,
        *,
        max_bytes: int,
        limits: Limits,
        budget: DiskBudget,
        finder: Finder | None = None,
    ) -> None:
        self._request = request
        self._max_bytes = max_bytes
        self._idle_s = limits.body_idle_s
        self._finder = finder
        self._spool = Spool(limits.body_memory_bytes, budget)
        self._receiving: asyncio.Task[None] | None = None
        self._owner: asyncio.Task[object] | None = None
        self._cancels_before = 0
        self._error: MgpuError | web.HTTPException | None = None
        self.data: bytes | AsyncIterator[bytes] | None = None

    @property
    def length_bytes(self) -> int | None:
        """What the client says; None when it sends chunks."""
        return self._request.content_length

    async def __aenter__(self) -> Self:
        if (self.length_bytes or 0) > self._max_bytes:
            raise BodyTooLarge
        content = self._request.content
        if not self._request.body_exists:
            await self._look_at(b"")
            return self
        if content.is_eof():
            self.data = content.read_nowait()
            self._check_size(len(self.data))
            await self._look_at(self.data)
            await self._look_at(b"")
            return self
        await _continue(self._request)
        self._owner = asyncio.current_task()
        assert self._owner is not None  # noqa: S101  a coroutine runs in a task
        self._cancels_before = self._owner.cancelling()
        self._receiving = asyncio.create_task(self._receive(content), name="receive a body")
        self.data = self._chunks()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._receiving is None or self._owner is None:
            return
        self._receiving.cancel()
        broken_off = kind is not None and issubclass(kind, asyncio.CancelledError)
        try:
            await asyncio.wait((self._receiving,))
        except asyncio.CancelledError:
            broken_off = True
            if self._error is None:
                raise
        finally:
            self._spool.close()
        if self._error is None:
            return
        cancelled_by_others = self._owner.uncancel() > self._cancels_before
        if broken_off and not cancelled_by_others:
            raise self._error from error

    async def _receive(self, content: StreamReader) -> None:
        """Take in the whole body; what is wrong with it ends the task that wants it."""
        assert self._owner is not None  # noqa: S101  set before this task
        try:
            await self._receive_all(content)
        except TimeoutError:
            self._error = web.HTTPRequestTimeout()
        except MgpuError as error:
            self._error = error
        except RequestPayloadError:
            self._error = BadRequest("The request's body is not framed as its header says.")
        except OSError:
            self._owner.cancel()  # the client left
        if self._error is not None:
            self._owner.cancel()

    async def _receive_all(self, content: StreamReader) -> None:
        received_bytes = 0
        while True:
            async with asyncio.timeout(self._idle_s):
                chunk = await content.readany()
            await self._look_at(chunk)
            if not chunk:
                self._spool.end()
                return
            received_bytes += len(chunk)
            self._check_size(received_bytes)
            await self._spool.put(chunk, taken=self._finder is None or self._finder.satisfied)

    async def _chunks(self) -> AsyncIterator[bytes]:
        while chunk := await self._spool.get():
            yield chunk

    async def _look_at(self, chunk: bytes) -> None:
        if self._finder is None:
            return
        for start in range(0, len(chunk) or 1, _LOOK_AT_BYTES):
            self._finder.feed(chunk[start : start + _LOOK_AT_BYTES])
            await asyncio.sleep(0)

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            raise BodyTooLarge


async def _continue(request: web.Request) -> None:
    """Tell a client that waits for it (RFC 9110, 10.1.1) to send its body."""
    expected = request.headers.get(hdrs.EXPECT, "").lower()
    if expected == "100-continue" and request.version > HttpVersion10:
        try:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        except ConnectionError as error:
            raise asyncio.CancelledError("the client left") from error
        request.writer.output_size = 0  # the answer itself has not begun


async def expect_nothing_yet(_request: web.Request) -> None:
    """An ``expect_handler``: 100 Continue is sent when a handler wants the body, not before."""


async def json_object(body: RequestBody) -> dict[str, Any]:
    """Take in a whole body that must be a JSON object of 8 MiB at most; raise ``RequestError``."""
    received = await short(body)
    if received is None:
        raise BodyTooLarge(f"The body must have {MAX_SIMPLE_BODY_BYTES} bytes at most.")
    try:
        document = parsed(received)
    except ValueError as error:
        raise BadRequest("The body must be JSON.") from error
    if not isinstance(document, dict):
        raise BadRequest("The body must be a JSON object.")
    return document


async def short(body: RequestBody) -> bytes | None:
    """Take in a whole body of 8 MiB at most; None for a longer one.

    ``body.data`` gives all of it either way.
    """
    chunks = _chunks(body)
    received = bytearray()
    async for chunk in chunks:
        received += chunk
        if len(received) > MAX_SIMPLE_BODY_BYTES:
            body.data = _after(bytes(received), chunks)
            return None
    if body.data is not None:
        body.data = bytes(received)
    return bytes(received)


def parsed(content: bytes) -> Any:
    """What a body holds as JSON; raise ``ValueError``."""
    try:
        return json.loads(content, parse_constant=_not_json)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


async def _chunks(body: RequestBody) -> AsyncIterator[bytes]:
    if isinstance(body.data, bytes):
        yield body.data
    elif body.data is not None:
        async for chunk in body.data:
            yield chunk


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


def _not_json(constant: str) -> None:
    raise ValueError(constant)
