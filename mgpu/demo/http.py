"""What the demo's services have in common over HTTP: bodies checked, refusals said in JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from mgpu.demo.weights import NotLoadedError, Weights

MAX_BODY_BYTES = 32 * 1024 * 1024


class Body(BaseModel):
    """A JSON request body; keys that are not known are let through, as real services do."""

    model_config = ConfigDict(extra="ignore", frozen=True)


B = TypeVar("B", bound=Body)


async def read_body(request: web.Request, kind: type[B]) -> B:
    """The request's JSON as ``kind``; a 400 that names what is wrong otherwise."""
    try:
        return kind.model_validate_json(await request.read())
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'body'}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise web.HTTPBadRequest(text="; ".join(problems)) from error


@web.middleware
async def say_errors_in_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turn refusals into ``{"error": …}``."""
    try:
        return await handler(request)
    except NotLoadedError:
        error = "the weights are not loaded: POST /load first"
        return web.json_response({"error": error}, status=503)
    except web.HTTPError as refusal:
        return web.json_response({"error": refusal.text}, status=refusal.status)


def new_app() -> web.Application:
    """An application with the parts that every service has."""
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[say_errors_in_json])
    app.router.add_get("/health", _health)
    return app


async def _health(_: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


def add_residency(app: web.Application, weights: Weights) -> None:
    """Add ``POST /load``, ``POST /unload`` and ``GET /status``."""

    async def load(_: web.Request) -> web.Response:
        await weights.load()
        return await status(_)

    async def unload(_: web.Request) -> web.Response:
        await weights.unload()
        return await status(_)

    async def status(_: web.Request) -> web.Response:
        return web.json_response({"loaded": weights.loaded})

    app.router.add_post("/load", load)
    app.router.add_post("/unload", unload)
    app.router.add_get("/status", status)
