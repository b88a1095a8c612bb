"""What people and their tools ask of the broker itself.

How things are; load this, unload, restart, pin that; pause and go on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

from aiohttp import hdrs, web

from mgpu.api.catalogue import CATALOGUE
from mgpu.api.deps import DEPS
from mgpu.api.routes import ROUTES
from mgpu.core.model import ConsumerState
from mgpu.core.views import ConsumerView, GpuView, Snapshot
from mgpu.errors import BadRequest, BodyTooLarge, UnsupportedMediaType

MAX_BODY_BYTES = 1 << 16
_OF_FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
"""What a page may send to another site without asking (Fetch standard, CORS-safelisted)."""


async def status(request: web.Request) -> web.Response:
    """GPUs, consumers, queue and lock. Asking changes nothing and wakes nobody."""
    broker = request.app[DEPS].broker
    snapshot = broker.snapshot()
    catalogued = request.app[CATALOGUE].problems()
    problems = [*broker.ready_problems, *snapshot.warnings, *catalogued]
    return web.json_response({**status_document(snapshot), "problems": problems})


async def load(request: web.Request) -> web.Response:
    """Make a consumer resident, with ``{"body": {...}}`` with these options; answers when it is."""
    upstream = request.app[ROUTES].upstream(request.match_info["name"])
    body = await _load_body(request)
    try:
        wanted = upstream.with_load_body(body)
    except ValueError as error:
        raise BadRequest(f"{upstream.name} takes no such load options: {error}.") from error
    broker = request.app[DEPS].broker
    await broker.load(upstream.name, wanted.load_key)
    return web.json_response(_consumer_document(broker.snapshot().consumers[upstream.name]))


async def unload(request: web.Request) -> web.Response:
    """Make a consumer absent; answers when it is."""
    name = await _consumer(request)
    broker = request.app[DEPS].broker
    await broker.unload(name)
    return web.json_response(_consumer_document(broker.snapshot().consumers[name]))


async def restart(request: web.Request) -> web.Response:
    """Stop a consumer and its jobs, and load it again; answers when it is resident."""
    name = await _consumer(request)
    broker = request.app[DEPS].broker
    await broker.restart(name)
    return web.json_response(_consumer_document(broker.snapshot().consumers[name]))


async def pin(request: web.Request) -> web.Response:
    """Keep a consumer in VRAM; answers at once, while it may still have to load."""
    return await _pin(request, pinned=True)


async def unpin(request: web.Request) -> web.Response:
    """Let a consumer be evicted again."""
    return await _pin(request, pinned=False)


async def pause(request: web.Request) -> web.Response:
    """Hold the queue; answers when everybody who can leave VRAM has left, with who has not."""
    await _no_options(request)
    broker = request.app[DEPS].broker
    await broker.pause()
    snapshot = broker.snapshot()
    resident = [
        name
        for name, consumer in snapshot.consumers.items()
        if consumer.state is ConsumerState.RESIDENT
    ]
    return web.json_response({"paused": snapshot.paused, "resident": resident})


async def resume(request: web.Request) -> web.Response:
    """Go on."""
    await _no_options(request)
    broker = request.app[DEPS].broker
    await broker.resume()
    return web.json_response({"paused": broker.snapshot().paused})


def status_document(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as JSON, in the names that tools rely on."""
    return {
        "gpus": [_gpu_document(gpu) for gpu in snapshot.gpus],
        "consumers": {
            name: _consumer_document(consumer) for name, consumer in snapshot.consumers.items()
        },
        "queue": [
            {
                "job": waiter.job,
                "consumer": waiter.consumer,
                "position": waiter.position,
                "waited_s": round(waiter.waited_s, 3),
                "eta_s": None if waiter.eta_s is None else round(waiter.eta_s, 3),
            }
            for waiter in snapshot.queue
        ],
        "paused": snapshot.paused,
        "paused_s": None if snapshot.paused_s is None else round(snapshot.paused_s, 3),
        "pause_kept": snapshot.pause_kept,
        "draining": snapshot.draining,
        "evictions": snapshot.evictions,
        "loads": snapshot.loads,
    }


def _gpu_document(gpu: GpuView) -> dict[str, Any]:
    document = dataclasses.asdict(gpu)
    consumer, jobs = document.pop("lock_consumer"), document.pop("lock_jobs")
    return {**document, "lock": {"consumer": consumer, "jobs": list(jobs)}}


def _consumer_document(consumer: ConsumerView) -> dict[str, Any]:
    document = dataclasses.asdict(consumer)
    del document["name"]
    return document


async def _pin(request: web.Request, *, pinned: bool) -> web.Response:
    name = await _consumer(request)
    broker = request.app[DEPS].broker
    await broker.pin(name, pinned=pinned)
    return web.json_response(_consumer_document(broker.snapshot().consumers[name]))


async def _consumer(request: web.Request) -> str:
    """The consumer that is meant."""
    name = request.app[ROUTES].upstream(request.match_info["name"]).name
    await _no_options(request)
    return name


async def _load_body(request: web.Request) -> dict[str, Any] | None:
    """The load options of a request; None: there are none."""
    options = await _options(request)
    if options == {}:
        return None
    body = options.get("body") if isinstance(options, dict) else None
    if not isinstance(body, dict) or len(options) > 1:
        raise BadRequest('The body must be empty, {} or {"body": {…}}, with an object in it.')
    return body


async def _no_options(request: web.Request) -> None:
    """Refuse a request that wants something special."""
    if await _options(request) != {}:
        raise BadRequest("The body must be empty or {}: this takes no options.")


async def _options(request: web.Request) -> Any:
    """The JSON of a request, ``{}`` without any; refuse what a page's form can send.

    A browser sends forms and plain text to any site without asking; JSON it does not.
    """
    given = hdrs.CONTENT_TYPE in request.headers
    is_json = given and request.content_type == "application/json"
    if (request.can_read_body and not is_json) or (given and request.content_type in _OF_FORMS):
        raise UnsupportedMediaType("The body must be application/json, or empty.")
    body = await _read(request)
    try:
        return json.loads(body, parse_constant=_no_number) if body.strip() else {}
    except (ValueError, RecursionError) as error:
        raise BadRequest("The body is not JSON.") from error


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


async def _read(request: web.Request) -> bytes:
    body = b""
    try:
        async with asyncio.timeout(request.app[DEPS].limits.body_idle_s):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise BodyTooLarge(f"The body may have {MAX_BODY_BYTES} bytes.")
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    return body
