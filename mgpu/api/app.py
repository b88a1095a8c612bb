"""The aiohttp applications: every route of the broker and what stands before them.

Order matters: errors become answers outermost, then the guard decides whether the request may ask
anything, then a handler runs. Served by ``mgpu.api.server``.
"""

from __future__ import annotations

from aiohttp import web

from mgpu.api import admin, events, health, jobs, openai, openapi, page, queue
from mgpu.api.body import expect_nothing_yet
from mgpu.api.catalogue import CATALOGUE, keep_catalogue
from mgpu.api.deps import DEPS, Deps
from mgpu.api.forward import DISK, OWN_PORT
from mgpu.api.guard import finish_headers, make_guard
from mgpu.api.leaseholder import LEASEHOLDERS, Leaseholders, end_leaseholders
from mgpu.api.problems import problems_middleware
from mgpu.api.routes import ROUTES, Routes
from mgpu.api.spool import DiskBudget
from mgpu.api.unanswered import UNANSWERED, Unanswered, unanswered_middleware
from mgpu.config.model import Config
from mgpu.config.openai import PATHS


def reconfigure(app: web.Application, config: Config) -> None:
    """Route by this configuration from the next request on; those under way go on as they began.

    The consumers' own ports share the routes with ``app``.
    """
    app[ROUTES].configure(config)
    app[CATALOGUE].configure(config)
    app[DEPS].config = config


def make_app(deps: Deps) -> web.Application:
    """Build the application; what it is given stays the caller's to close."""
    app = web.Application(
        middlewares=[problems_middleware, unanswered_middleware, make_guard(deps)]
    )
    app[UNANSWERED] = Unanswered()
    app[DEPS] = deps
    app[ROUTES] = Routes(deps.config)
    app[DISK] = DiskBudget(deps.limits.spool_bytes)
    app[LEASEHOLDERS] = Leaseholders()
    app.on_cleanup.append(end_leaseholders)
    app.on_response_prepare.append(finish_headers)
    app.cleanup_ctx.append(keep_catalogue)
    for path in PATHS:
        app.router.add_post(path, openai.by_model, expect_handler=expect_nothing_yet)
    for method, path, handler in (
        ("GET", "/", page.page),
        ("GET", "/healthz", health.healthz),
        ("GET", "/readyz", health.readyz),
        ("GET", "/metrics", health.metrics),
        ("GET", "/openapi.json", openapi.openapi),
        ("GET", "/api/status", admin.status),
        ("GET", "/api/events", events.events),
        ("GET", "/api/jobs", queue.jobs),
        ("GET", "/api/jobs/{job}", queue.job),
        ("DELETE", "/api/jobs/{job}", queue.cancel),
        ("POST", "/api/consumers/{name}/load", admin.load),
        ("POST", "/api/consumers/{name}/unload", admin.unload),
        ("POST", "/api/consumers/{name}/pin", admin.pin),
        ("POST", "/api/consumers/{name}/unpin", admin.unpin),
        ("POST", "/api/consumers/{name}/restart", admin.restart),
        ("POST", "/api/pause", admin.pause),
        ("POST", "/api/resume", admin.resume),
        ("GET", "/v1/models", openai.models),
        ("GET", "/v1/models/{model:.+}", openai.model),
        ("*", "/consumers/{name}", jobs.consumer),
        ("*", "/consumers/{name}/{path:.*}", jobs.consumer),
        ("*", "/{path:.*}", jobs.routed),
    ):
        if method == "GET":
            app.router.add_get(path, handler)
        elif method == "POST":
            app.router.add_post(path, handler)
        elif method == "DELETE":
            app.router.add_delete(path, handler)
        else:
            app.router.add_route(method, path, handler, expect_handler=expect_nothing_yet)
    return app


def make_port_app(main: web.Application, consumer: str) -> web.Application:
    """Build the application of a consumer's own port, which shares everything with ``main``."""
    deps = main[DEPS]
    app = web.Application(
        middlewares=[
            problems_middleware,
            unanswered_middleware,
            make_guard(deps, own_port=True),
        ]
    )
    app[UNANSWERED] = main[UNANSWERED]
    app[DEPS] = deps
    app[DISK] = main[DISK]
    app[LEASEHOLDERS] = Leaseholders()
    app.on_cleanup.append(end_leaseholders)
    app[ROUTES] = main[ROUTES]
    app[OWN_PORT] = consumer
    app.on_response_prepare.append(finish_headers)
    app.router.add_route("*", "/{path:.*}", jobs.own_port, expect_handler=expect_nothing_yet)
    return app
