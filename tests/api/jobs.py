"""A job as these tests send it, consumers for it, and how it has ended."""

from __future__ import annotations

import asyncio

from aiohttp import web

from tests.api.conftest import Site

LEAVES_WITHIN_S = 1.0
HEAD = b"POST /v1/tts HTTP/1.1\r\nHost: localhost\r\n"


class Stuck:
    """A consumer that takes a request, says ``begun``, and does nothing more unless it ``may_end``.

    ``answer``: its answer has begun by then.
    """

    def __init__(self, *, answer: bool = False) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.cancelled = asyncio.Event()
        self._answer = answer

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        try:
            if self._answer:
                await response.prepare(request)
                await response.write(b"data: 1\n\n")
            self.begun.set()
            await self.may_end.wait()
            if self._answer:
                await response.write(b"data: 2\n\n")
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return response


async def answer(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="answer")


async def echo(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    if request.content_length is not None:
        response.content_length = request.content_length
    await response.prepare(request)
    async for chunk in request.content.iter_any():
        await response.write(chunk)
    return response


async def ended(site: Site, outcome: str = "cancelled") -> None:
    await site.broker.until(
        lambda broker: list(broker.outcomes.values()) == [outcome], LEAVES_WITHIN_S
    )
    assert not site.broker.waiting
    assert not site.broker.running
