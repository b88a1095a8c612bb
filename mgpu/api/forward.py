"""From a request to a consumer's answer: the path that jobs and plain forwarding share.

``as_job`` waits for the lease and holds it until the last byte has gone out; ``plainly`` does
without, for requests that are no work (``not_activity``).

A client that leaves is a client whose connection has closed or that has ended its sending half:
like nginx, the broker takes a half-closed connection for a gone client, since nobody can tell the
two apart while there is nothing to send. aiohttp then cancels the handler
(``handler_cancellation``), wherever it is: waiting for the lease, waiting for the consumer,
streaming. The queue place, the lease and the consumer's connection go with it.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

import structlog
from aiohttp import web
from yarl import URL

from mgpu.api import headers as fields
from mgpu.api import problems, proxy, tunnel
from mgpu.api.body import Finder, RequestBody
from mgpu.api.connection import client_left
from mgpu.api.deps import DEPS, Lease
from mgpu.api.routes import Upstream
from mgpu.api.spool import DiskBudget
from mgpu.errors import BadRequest

PRIORITY_LIMIT = 100
_PRIORITY = re.compile(r"[+-]?[0-9]{1,3}")
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_IDLE_SECONDS = re.compile(rf"-?{_SECONDS.pattern}")
_NEVER = "never"
_RESULT = "result"
_MIB = 1 << 20
_SERVER_ERROR = 500

OWN_PORT = web.AppKey("own_port", str)
"""The consumer's name, on the application of its own port."""
DISK = web.AppKey("disk", DiskBudget)

log = structlog.get_logger(__name__)


async def as_job(request: web.Request, upstream: Upstream, url: URL) -> web.StreamResponse:
    """Run a request as a job: wait for the GPU, then ask the consumer under the lease."""
    async with receive(request) as body:
        return await run(request, upstream, url, body)


async def run(
    request: web.Request, upstream: Upstream, url: URL, body: RequestBody
) -> web.StreamResponse:
    """The same for a request whose body is being received."""
    upstream.check_allowed(request.method, url.path)
    job = request.app[DEPS].broker.new_job_id()
    try:
        async with lease_for(request, upstream, job) as lease:
            response = await _exchange(request, upstream, url, body, lease)
            lease.failed = response.status >= _SERVER_ERROR
            return response
    except asyncio.CancelledError:
        if client_left(request):
            log.info("client left", job=job, consumer=upstream.name)
        raise


def lease_for(
    request: web.Request, upstream: Upstream, job: str
) -> AbstractAsyncContextManager[Lease]:
    """The lease that a request asks for, with what its header says; not waited for yet.

    Raises ``BadRequest`` for a header that makes no sense.
    """
    deps = request.app[DEPS]
    request[problems.OF_JOB] = {fields.JOB: job, fields.CONSUMER: upstream.name}
    return deps.broker.lease(
        job,
        upstream.name,
        priority=_priority(request),
        max_wait_s=_max_wait_s(request, deps.config.scheduler.max_wait_s),
        idle_unload_s=_idle_unload_s(request),
        load_key=upstream.load_key,
    )


async def plainly(request: web.Request, upstream: Upstream, url: URL) -> web.StreamResponse:
    """Ask the consumer without a lease."""
    upstream.check_allowed(request.method, url.path)
    async with receive(request) as body:
        return await _exchange(request, upstream, url, body, None)


def receive(request: web.Request, finder: Finder | None = None) -> RequestBody:
    """The request's body, to be entered; ``finder`` looks for something in it."""
    deps = request.app[DEPS]
    return RequestBody(
        request,
        max_bytes=deps.config.server.max_body_mib * _MIB,
        limits=deps.limits,
        budget=request.app[DISK],
        finder=finder,
    )


async def _exchange(
    request: web.Request, upstream: Upstream, url: URL, body: RequestBody, lease: Lease | None
) -> web.StreamResponse:
    deps = request.app[DEPS]
    name = upstream.name
    upgrade = tunnel.is_upgrade(request)
    towards = fields.towards_consumer(
        request.headers, keep_authorization=not deps.api_keys, drop=upstream.drop_headers
    )
    own_port = OWN_PORT in request.app
    if own_port:
        fields.add_forwarded(towards, request)
    started = time.perf_counter()
    answer = await proxy.ask(
        request,
        url,
        consumer=name,
        headers=tunnel.upgrade_headers(towards) if upgrade else towards,
        data=body.data,
    )
    try:
        added = added_headers(name, lease, time.perf_counter() - started)
        if upgrade and answer.status == tunnel.SWITCHING_PROTOCOLS:
            return await tunnel.splice(request, answer, consumer=name, headers=added)
        return await proxy.relay(
            request,
            answer,
            consumer=name,
            headers=added,
            origin=upstream.origin if own_port else None,
        )
    finally:
        answer.close()


def added_headers(consumer: str, lease: Lease | None, upstream_s: float) -> Mapping[str, str]:
    """What the broker tells about the job; ``upstream`` is the time to the answer's head."""
    added = {fields.CONSUMER: consumer}
    if lease is not None:
        phases = lease.phases
        added[fields.JOB] = lease.job
        added[fields.SERVER_TIMING] = (
            f"queue;dur={phases.queue_s * 1e3:.3f}, evict;dur={phases.evict_s * 1e3:.3f}, "
            f"load;dur={phases.load_s * 1e3:.3f}, upstream;dur={upstream_s * 1e3:.3f}"
        )
    return added


def wants_result(request: web.Request) -> bool:
    """Whether the client wants what comes of the work, where the answer itself comes before that.

    Raises ``BadRequest`` for a header that makes no sense.
    """
    text = _single(request, fields.ANSWER)
    if text is None:
        return False
    if text.lower() != _RESULT:
        raise BadRequest(f"{fields.ANSWER} must be {_RESULT}, or be left out.")
    return True


def _priority(request: web.Request) -> int | None:
    text = _single(request, fields.PRIORITY)
    if text is None:
        return None
    if not _PRIORITY.fullmatch(text) or abs(int(text)) > PRIORITY_LIMIT:
        raise BadRequest(
            f"{fields.PRIORITY} must be a whole number from {-PRIORITY_LIMIT} to {PRIORITY_LIMIT}."
        )
    return int(text)


def _max_wait_s(request: web.Request, limit_s: float) -> float | None:
    text = _single(request, fields.MAX_WAIT)
    if text is None:
        return None
    if not _SECONDS.fullmatch(text) or float(text) <= 0:
        raise BadRequest(f"{fields.MAX_WAIT} must be a number of seconds above 0.")
    return min(float(text), limit_s)


def _idle_unload_s(request: web.Request) -> float | None:
    """How long the consumer may be idle after the job; infinity: for ever."""
    text = _single(request, fields.IDLE_UNLOAD)
    if text is None:
        return None
    if text.lower() == _NEVER:
        return math.inf
    if not _IDLE_SECONDS.fullmatch(text):
        raise BadRequest(f"{fields.IDLE_UNLOAD} must be a number of seconds, or {_NEVER}.")
    return math.inf if text.startswith("-") else float(text)


def _single(request: web.Request, name: str) -> str | None:
    values = request.headers.getall(name, ())
    if len(values) > 1:
        raise BadRequest(f"{name} is given more than once.")
    return values[0] if values else None
