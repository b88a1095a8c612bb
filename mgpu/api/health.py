"""For machines that watch: is it alive, is it ready, how is it doing."""

from __future__ import annotations

from aiohttp import hdrs, web
from prometheus_client.exposition import choose_encoder

from mgpu.api.deps import DEPS

_SERVICE_UNAVAILABLE = 503


async def healthz(_request: web.Request) -> web.Response:
    """Alive: the loop answers."""
    return web.json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """Ready for jobs; 503 with the reasons when not."""
    problems = request.app[DEPS].broker.ready_problems
    return web.json_response(
        {"ready": not problems, "problems": list(problems)},
        status=_SERVICE_UNAVAILABLE if problems else 200,
    )


async def metrics(request: web.Request) -> web.Response:
    """Everything measured, for Prometheus, in the format it asks for."""
    encode, content_type = choose_encoder(request.headers.get(hdrs.ACCEPT, ""))
    response = web.Response(body=encode(request.app[DEPS].registry))
    response.headers[hdrs.CONTENT_TYPE] = content_type
    return response
