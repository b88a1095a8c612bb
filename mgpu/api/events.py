"""``GET /api/events``: what happens, pushed to whoever listens, as Server-Sent Events.

The first event, ``status``, is the whole of ``/api/status``; then every change is an event of its
own kind, and ``queue`` brings positions and estimates whenever somebody came, began or went. A
reader that falls behind gets another ``status`` instead of what it missed.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import hdrs, web

from mgpu.api.admin import status_document
from mgpu.api.deps import DEPS
from mgpu.api.problems import reset

PAUSE_S = 0.1
"""Between two pieces of news for one reader: what happens meanwhile is told together."""
QUIET_S = 15.0
"""After so long without news there is a sign of life, with fresh estimates if anybody waits."""
WRITE_S = 30.0
"""A reader that takes nothing for so long has gone."""

_OF_THE_QUEUE = ("queue", "paused", "draining")


async def events(request: web.Request) -> web.StreamResponse:
    """Everything that happens, until the client or the broker goes."""
    deps = request.app[DEPS]
    with deps.feed.follow() as reader:
        response = web.StreamResponse()
        response.headers[hdrs.CONTENT_TYPE] = "text/event-stream"
        response.headers[hdrs.CACHE_CONTROL] = "no-store"
        await response.prepare(request)
        if request.method == hdrs.METH_HEAD:
            return response
        while (news := await reader.news(QUIET_S)) is not None:
            parts = [_event(each.kind, each.data) for each in news.happenings]
            if news.anew or news.queue or not parts:
                document = status_document(deps.broker.snapshot())
                if news.anew:
                    parts.append(_event("status", document))
                elif news.queue or document["queue"]:
                    parts.append(_event("queue", {key: document[key] for key in _OF_THE_QUEUE}))
                else:
                    parts.append(b": nothing new\n\n")
            try:
                async with asyncio.timeout(WRITE_S):
                    await response.write(b"".join(parts))
            except TimeoutError:
                reset(request)
                break
            await asyncio.sleep(PAUSE_S)
    return response


def _event(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()
