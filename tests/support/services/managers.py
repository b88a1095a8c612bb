"""Servers that load and unload several models, most of them with a process for each."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from aiohttp import web

from tests.support.services.base import BODY, LAG_S, Service, empty, listed, ok


class LlamaSwap(Service):
    preset = "llama-swap"
    # It lists its models as a router of llama.cpp's does.
    pages: ClassVar = {
        path: {"object": "list", "data": [{"id": "org/m", "status": {"value": "unloaded"}}]}
        for path in ("/models", "/v1/models")
    }
    models_told = ("org/m",)
    parameters: ClassVar = {"model": "org/m"}
    routes: ClassVar = {
        "GET /health": "health",
        "GET /running": "running",
        "GET /upstream/{model:.*}/health": "upstream",
        "POST /api/models/unload": "unload",
    }
    jobs = ("POST /v1/chat/completions", "GET /props", "GET /upstream/m/health")
    looks = (
        "GET /api/events",
        "GET /logs/stream",
        "GET /models",
        "GET /running",
        "GET /ui/x",
        "PUT /api/profiles/active",
    )
    dangers = ("GET /unload", "POST /api/models/unload/m")

    async def health(self, _: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def running(self, _: web.Request) -> web.Response:
        return ok({"running": [{"model": name, "state": "ready"} for name in self.held]})

    async def upstream(self, request: web.Request) -> web.Response:
        await asyncio.sleep(LAG_S)  # it answers when the model is there
        self.held.add(request.match_info["model"])
        return ok({"status": "ok"})

    async def unload(self, _: web.Request) -> web.Response:
        self.held.clear()
        return ok({"msg": "ok"})


class LocalAi(Service):
    preset = "localai"
    pages: ClassVar = {
        "/": "Ollama is running",
        "/v1/models": {"object": "list", "data": [{"id": "m", "object": "model"}]},
    }
    parameters: ClassVar = {"model": "m"}
    routes: ClassVar = {
        "GET /readyz": "readyz",
        "GET /system": "system",
        "POST /backend/load": "load",
        "POST /backend/shutdown": "shutdown",
    }
    jobs = (
        "POST /v1/chat/completions",
        "POST /v1/audio/speech",
        "POST /api/generate",
        "GET /v1/realtime",
        "GET /audio/transformations/stream",
    )
    looks = (
        "GET /system",
        "GET /v1/models",
        "GET /app/chat",
        "GET /assets/index.js",
        "GET /api/operations",
        "GET /ws/backend-logs/m",
        "PATCH /api/models/config-json/m",
        "POST /api/models/install/m",
        "POST /api/operations/1/cancel",
        "POST /api/settings",
        "POST /models/apply",
    )
    dangers = (
        "POST /backend/shutdown",
        "POST /v1/backend/shutdown",
        "POST /models/delete/m",
        "POST /api/models/delete/m",
        "POST /api/backends/delete/llama-cpp",
    )

    async def readyz(self, _: web.Request) -> web.Response:
        return empty()

    async def system(self, _: web.Request) -> web.Response:
        return ok({"backends": [], "loaded_models": [{"id": name} for name in sorted(self.held)]})

    async def load(self, request: web.Request) -> web.Response:
        self.held.add(request[BODY]["model"])
        return ok({"loaded": sorted(self.held), "message": ""})

    async def shutdown(self, request: web.Request) -> web.Response:
        model = request[BODY]["model"]
        if model not in self.held:
            return ok({"error": {"message": "model not loaded"}}, 404)
        self.held.discard(model)
        return empty()


class LmStudio(Service):
    preset = "lm-studio"
    pages: ClassVar = {"/v1/models": listed("m", "other", owner="organization_owner")}
    models_told = ("m", "other")
    parameters: ClassVar = {"model": "m"}
    routes: ClassVar = {
        "GET /api/v1/models": "models",
        "POST /api/v1/models/load": "load",
        "POST /api/v1/models/unload": "unload",
    }
    jobs = ("POST /v1/chat/completions",)
    looks = ("GET /v1/models", "GET /api/v1/models", "POST /api/v1/models/download")
    dangers = ("POST /api/v1/models/unload",)

    async def models(self, _: web.Request) -> web.Response:
        loaded = [{"id": f"{name}:2"} for name in sorted(self.held)]
        idle = {"key": "other", "loaded_instances": []}
        return ok({"models": [{"key": "m", "loaded_instances": loaded}, idle]})

    async def load(self, request: web.Request) -> web.Response:
        self.held.add(request[BODY]["model"])
        return ok({"instance_id": "m:2", "status": "loaded", "load_time_seconds": 1.0})

    async def unload(self, request: web.Request) -> web.Response:
        name, _, instance = request[BODY]["instance_id"].partition(":")
        if not instance:
            return ok({"error": "not an instance"}, 400)
        self.held.discard(name)
        return ok({"instance_id": f"{name}:2"})


class Lemonade(Service):
    preset = "lemonade"
    pages: ClassVar = {
        "/api/ps": {"models": []},
        "/api/v1/models": listed("m", "other", owner="lemonade"),
        "/api/version": {"version": "0.16.1"},
    }
    models_told = ("m", "other")
    parameters: ClassVar = {"model": "m"}
    routes: ClassVar = {
        "GET /live": "live",
        "GET /api/v1/health": "health",
        "POST /api/v1/load": "load",
        "POST /api/v1/unload": "unload",
    }
    jobs = ("POST /api/v1/chat/completions",)
    looks = ("GET /api/v1/health", "GET /v1/models", "POST /api/v1/pull")
    dangers = ("POST /api/v1/unload", "POST /v1/unload", "POST /internal/shutdown")

    def __init__(self) -> None:
        super().__init__()
        self.wedged = False

    async def live(self, _: web.Request) -> web.Response:
        return empty()

    async def health(self, _: web.Request) -> web.Response:
        busy = bool(self.computing)
        models = [{"model_name": name, "is_busy": busy} for name in sorted(self.held)]
        return ok({"status": "ok", "model_loaded": None, "all_models_loaded": models})

    async def load(self, request: web.Request) -> web.Response:
        self.held.add(request[BODY]["model_name"])
        return ok({"status": "success"})

    async def unload(self, request: web.Request) -> web.Response:
        name = (request[BODY] or {}).get("model_name")
        if name is None:
            self.held.clear()
        elif name not in self.held:
            return ok({"error": "not loaded"}, 404)
        elif not self.wedged:
            self.held.discard(name)
        return ok({"status": "success"})


class DockerModelRunner(Service):
    preset = "docker-model-runner"
    pages: ClassVar = {
        "/": "Docker Model Runner is running",
        "/api/version": {"version": "0.1.0"},
        "/engines/v1/models": listed("ai/smollm2", owner="docker"),
    }
    models_told = ("ai/smollm2",)
    routes: ClassVar = {"GET /engines/ps": "ps", "POST /engines/unload": "unload"}
    jobs = ("POST /engines/v1/chat/completions", "POST /v1/chat/completions", "POST /api/chat")
    looks = ("GET /engines/ps", "POST /models/create", "GET /metrics")
    dangers = ("POST /engines/unload", "DELETE /models/ai/smollm2")

    async def ps(self, _: web.Request) -> web.Response:
        in_use = {"in_use": True} if self.computing else {}
        return ok(
            [
                {"backend_name": "llama.cpp", "model_name": name, "mode": "completion", **in_use}
                for name in sorted(self.held)
            ]
        )

    async def unload(self, request: web.Request) -> web.Response:
        if not isinstance(request[BODY], dict):
            return web.Response(status=400, text="invalid request")
        before = len(self.held)
        if not self.computing:  # those in use are skipped without a word
            self.held.clear()
        return ok({"unloaded_runners": before - len(self.held)})


class Xinference(Service):
    preset = "xinference"
    pages: ClassVar = {"/v1/cluster/auth": {"auth": False}, "/status": {"127.0.0.1:1": {}}}
    parameters: ClassVar = {"model": "m", "engine": "vllm"}
    routes: ClassVar = {
        "GET /v1/models": "models",
        "POST /v1/models": "launch",
        "DELETE /v1/models/{model}": "terminate",
    }
    jobs = ("POST /v1/chat/completions", "POST /v1/rerank")
    looks = ("GET /v1/models", "GET /v1/cluster/info")
    dangers = ("POST /v1/models", "DELETE /v1/models/m")

    async def models(self, _: web.Request) -> web.Response:
        data = [{"id": name, "owned_by": "xinference"} for name in sorted(self.held)]
        return ok({"object": "list", "data": data})

    async def launch(self, request: web.Request) -> web.Response:
        body = request[BODY]
        if not body.get("model_engine"):
            return ok({"detail": "Invalid input. Please specify the `model_engine` field."}, 400)
        if body["model_uid"] in self.held:
            return ok({"detail": "Model is already in the model list, uid: m-0"}, 400)
        self.held.add(body["model_uid"])
        return ok({"model_uid": body["model_uid"]})

    async def terminate(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        if model not in self.held:
            return ok({"detail": f"Model not found in the model list, uid: {model}"}, 400)
        self.held.discard(model)
        return ok()
