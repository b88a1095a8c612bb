"""Requests that go to a consumer: by a path of ``routes``, ``/consumers/NAME/…`` or a port."""

from __future__ import annotations

from aiohttp import web
from yarl import URL

from mgpu.api import forward, lasting
from mgpu.api.routes import ROUTES, TARGET, Upstream, did_you_mean
from mgpu.config.workflow import Workflow
from mgpu.errors import UnknownRoute

ANYTHING_ELSE = "/{path}"
_BELOW_NAME = 2  # /consumers/NAME


async def consumer(request: web.Request) -> web.StreamResponse:
    """The consumer's own HTTP, any path of it: a job, unless the configuration knows better."""
    target, routes = request[TARGET], request.app[ROUTES]
    upstream = routes.upstream(target.segments[1])
    return await _pass_on(request, upstream, _BELOW_NAME)


async def own_port(request: web.Request) -> web.StreamResponse:
    """The same on the consumer's own port, where the whole path is its own."""
    upstream = request.app[ROUTES].upstream(request.app[forward.OWN_PORT])
    return await _pass_on(request, upstream, 0)


async def _pass_on(request: web.Request, upstream: Upstream, depth: int) -> web.StreamResponse:
    target = request[TARGET]
    url = upstream.url(target.raw_below(depth) or "/", target.query)
    path = target.below(depth) or "/"
    if upstream.outlasts_its_answer(request.method, path):
        if forward.wants_result(request):
            return await lasting.answered_with_result(request, upstream, url, None)
        return await lasting.answered_at_once(request, upstream, url)
    if upstream.is_activity(request.method, path):
        return await forward.as_job(request, upstream, url)
    return await forward.plainly(request, upstream, url)


async def routed(request: web.Request) -> web.StreamResponse:
    """Whatever no other handler takes: a job when ``routes`` has the path, else an error."""
    job = request.app[ROUTES].job(request[TARGET])
    if job is not None:
        return await run_routed(request, *job)
    methods = await _methods_elsewhere(request)
    if methods:
        raise web.HTTPMethodNotAllowed(request.method, methods)
    path = request[TARGET].below(0)
    raise UnknownRoute(f"There is no route {path!r}.{did_you_mean(path, known_paths(request.app))}")


async def run_routed(
    request: web.Request, upstream: Upstream, url: URL, workflow: Workflow | None
) -> web.StreamResponse:
    """A job by a path of ``routes``: the client gets what comes of it."""
    if upstream.outlasts_its_answer(request.method, url.path):
        return await lasting.answered_with_result(request, upstream, url, workflow)
    return await forward.as_job(request, upstream, url)


def known_paths(app: web.Application) -> list[str]:
    """Every path of this application: its own in OpenAPI's notation, and those of ``routes``."""
    own = (resource.canonical for resource in app.router.resources())
    named = (path for path in own if path != ANYTHING_ELSE)
    return [*dict.fromkeys(named), *app[ROUTES].job_paths]


async def _methods_elsewhere(request: web.Request) -> set[str]:
    """The methods by which other handlers take this path."""
    methods: set[str] = set()
    for resource in request.app.router.resources():
        if resource.canonical != ANYTHING_ELSE:
            methods |= (await resource.resolve(request))[1]
    return methods
