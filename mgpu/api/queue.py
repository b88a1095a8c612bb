"""The jobs that have not ended: who runs, who waits and for how long yet, and taking one out."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from mgpu.api.deps import DEPS
from mgpu.core.views import JobView


async def jobs(request: web.Request) -> web.Response:
    """Every job that runs, then those that wait, in the order in which they will be served."""
    views = request.app[DEPS].broker.jobs()
    return web.json_response({"jobs": [_document(view) for view in views]})


async def job(request: web.Request) -> web.Response:
    """One job: where it stands, and when it can expect to begin."""
    view = request.app[DEPS].broker.job(request.match_info["job"])
    return web.json_response(_document(view))


async def cancel(request: web.Request) -> web.Response:
    """Take a job out of the queue, or stop it; answers with how it stood."""
    broker = request.app[DEPS].broker
    view = broker.job(request.match_info["job"])
    broker.cancel(view.job)
    return web.json_response(_document(view))


def _document(view: JobView) -> dict[str, Any]:
    return {
        "job": view.job,
        "consumer": view.consumer,
        "state": "queued" if view.ran_s is None else "running",
        "priority": view.priority,
        "position": view.position,
        "waited_s": round(view.waited_s, 3),
        "eta_s": None if view.eta_s is None else round(view.eta_s, 3),
        "ran_s": None if view.ran_s is None else round(view.ran_s, 3),
    }
