"""The requests whose answer has not begun, so that a broker that ends can answer them first.

A job may run past the drain's deadline, and a person may wait for an unload that hangs. When the
server then closes, it can only break their connections, which tells a client nothing: not even
whether to come back. So they are told before, by ending their handlers with ``errors.Draining``.

An answer that has begun is left to the server, which breaks it off visibly.
"""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler

from mgpu.errors import Draining


class Unanswered:
    """The handlers that run now, by their task."""

    def __init__(self) -> None:
        self._requests: dict[asyncio.Task[object], web.Request] = {}
        self._told: set[asyncio.Task[object]] = set()

    def tell(self) -> None:
        """End every handler whose answer has not begun; it answers that the broker ends."""
        for task, request in self._requests.items():
            if request.writer.output_size == 0:
                self._told.add(task)
                task.cancel()

    async def run(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Run a handler to its end, or until it is told; raise ``errors.Draining`` then."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  a coroutine runs in a task
        self._requests[task] = request
        try:
            return await handler(request)
        except asyncio.CancelledError:
            if task not in self._told or task.uncancel():
                raise
            raise Draining from None
        finally:
            del self._requests[task]
            self._told.discard(task)


UNANSWERED = web.AppKey("unanswered", Unanswered)


@web.middleware
async def unanswered_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep the request among those that have no answer yet; below ``problems_middleware``."""
    return await request.app[UNANSWERED].run(request, handler)
