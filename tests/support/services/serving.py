"""Servers of any model: Triton and TorchServe, which are controlled on ports of their own too."""

from __future__ import annotations

from typing import Any, ClassVar

from aiohttp import web

from tests.support.services.base import Service, empty, metrics, ok


class Triton(Service):
    preset = "triton"
    pages: ClassVar = {
        "/v2": {"name": "of its own", "extensions": ["classification", "model_repository"]},
    }
    parameters: ClassVar = {"model": "m"}
    routes: ClassVar = {
        "GET /v2/health/live": "live",
        "POST /v2/repository/index": "index",
        "POST /v2/repository/models/{model}/load": "load",
        "POST /v2/repository/models/{model}/unload": "unload",
        "GET /metrics": "metrics",
    }
    jobs = ("POST /v2/models/m/infer",)
    looks = ("POST /v2/repository/index", "GET /v2/health/ready")
    dangers = ("POST /v2/repository/models/m/unload",)

    async def live(self, _: web.Request) -> web.Response:
        return empty()

    async def index(self, _: web.Request) -> web.Response:
        ready = [{"name": name, "version": "1", "state": "READY"} for name in sorted(self.held)]
        gone = {"name": "other", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
        return ok([*ready, gone])

    async def load(self, request: web.Request) -> web.Response:
        self.held.add(request.match_info["model"])
        return empty()

    async def unload(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        self.later(lambda: self.held.discard(model))
        return empty()

    async def metrics(self, _: web.Request) -> web.Response:
        return metrics([("nv_inference_pending_request_count", self.computing)])


class TorchServe(Service):
    preset = "torchserve"
    parameters: ClassVar = {"model": "m"}
    routes: ClassVar = {
        "GET /ping": "ping",
        "GET /models/m": "describe",
        "PUT /models/m": "scale",
    }
    jobs = ("POST /predictions/m",)
    looks = ("GET /ping",)
    dangers = ("DELETE /models/m/1.0", "PUT /models/m")

    def __init__(self) -> None:
        super().__init__()
        self.least = 0

    async def ping(self, _: web.Request) -> web.Response:
        healthy = len(self.held) >= self.least
        return ok({"status": "Healthy" if healthy else "Unhealthy"}, 200 if healthy else 500)

    async def describe(self, _: web.Request) -> web.Response:
        workers: list[Any] = [{"id": "9000", "status": "READY"}] if self.held else []
        queue = {"pendingRequests": self.computing}
        return ok([{"modelName": "m", "workers": workers, "jobQueueStatus": queue}])

    async def scale(self, request: web.Request) -> web.Response:
        self.least = int(request.query["min_worker"])
        if int(request.query["max_worker"]):
            self.put_in()
        else:
            self.held.clear()
        return ok({"status": "Workers scaled"}, 200 if "synchronous" in request.query else 202)
