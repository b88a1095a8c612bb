"""Language models: one process each, or a process for each model."""

from __future__ import annotations

import asyncio
import json
from typing import Any, ClassVar

from aiohttp import web

from tests.support.services.base import BODY, LAG_S, Service, empty, listed, metrics, ok

LLAMA_PAGE = (
    "GET /",
    "GET /_app/immutable/bundle.js",
    "GET /build.json",
    "GET /favicon.svg",
    "GET /manifest.webmanifest",
    "GET /tools",
    "POST /tools",
    "POST /v1/streams/lookup",
    "DELETE /v1/stream",
)
"""What llama-server's page asks for when it is opened, and when its stop button is pressed."""


class Ollama(Service):
    preset = "ollama"
    parameters: ClassVar = {"model": "qwen3:8b"}
    pages: ClassVar = {
        "/": "Ollama is running",
        "/v1/models": listed("qwen3:8b", "llava", owner="library"),
    }
    models_told = ("qwen3:8b", "llava")
    routes: ClassVar = {
        "GET /api/version": "version",
        "GET /api/ps": "ps",
        "GET /api/tags": "tags",
        "POST /api/chat": "chat",
        "POST /api/generate": "generate",
        "POST /api/pull": "pull",
    }
    jobs = ("POST /api/chat", "POST /v1/embeddings")
    looks = ("GET /api/tags", "GET /v1/models", "HEAD /", "HEAD /api/tags", "POST /api/me")
    dangers = (
        "DELETE /api/delete",
        "DELETE /api/user/keys/mine",
        "HEAD /api/blobs/sha256:1",
        "POST /api/copy",
        "POST /api/create",
        "POST /api/pull",
        "POST /api/push",
        "POST /api/signout",
    )

    async def version(self, _: web.Request) -> web.Response:
        return ok({"version": "0.12"})

    async def ps(self, _: web.Request) -> web.Response:
        return ok({"models": [{"name": name, "size_vram": 5000} for name in sorted(self.held)]})

    async def tags(self, _: web.Request) -> web.Response:
        names = [each["id"] for each in self.pages["/v1/models"]["data"]]
        details = {"format": "gguf", "family": "qwen3", "parameter_size": "8.2B"}
        rest = {"size": 5_200_000_000, "digest": "500a1f067a9f", "details": details}
        rest["modified_at"] = "2026-08-21T10:00:00Z"
        return ok({"models": [{"name": name, "model": name, **rest} for name in names]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        model = request[BODY]["model"]
        self.held.add(model)
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for word in ("the ", "cat ", ""):
            line: dict[str, Any] = {"model": model, "created_at": "2026-08-21T10:00:00Z"}
            line["message"] = {"role": "assistant", "content": word}
            line |= {"done": not word} | ({} if word else {"done_reason": "stop"})
            await response.write(json.dumps(line).encode() + b"\n")
        return response

    async def pull(self, _: web.Request) -> web.Response:
        said = [{"status": "pulling manifest"}, {"status": "success"}]
        return web.Response(text="".join(f"{json.dumps(each)}\n" for each in said))

    async def generate(self, request: web.Request) -> web.Response:
        body = request[BODY]
        if body["model"] == "gone":
            self.later(lambda: self.held.discard("gone"))
            return ok({"error": "model 'gone' not found"}, 404)
        if body.get("keep_alive") == 0 and "prompt" not in body:
            self.later(lambda: self.held.discard(body["model"]))
            return ok({"model": body["model"], "done": True, "done_reason": "unload"})
        if body["model"] == "embeds":
            return ok({"error": '"embeds" does not support generate'}, 400)
        await asyncio.sleep(LAG_S)  # it answers when the model is there
        self.held.add(body["model"])
        reason = "stop" if body.get("prompt") else "load"
        return ok({"model": body["model"], "done": True, "done_reason": reason})


class LlamaRouter(Service):
    preset = "llama-cpp-router"
    models_told = ("m", "other")
    pages: ClassVar = {
        # Settings of no model, so that its page finds what it looks for.
        "/props": {"role": "router", "default_generation_settings": {"params": None, "n_ctx": 0}},
    }
    parameters: ClassVar = {"model": "m"}
    routes: ClassVar = {
        "GET /health": "health",
        "GET /models": "models",
        "GET /v1/models": "models",
        "POST /models/load": "load",
        "POST /models/unload": "unload",
    }
    jobs = ("POST /v1/chat/completions", "GET /slots", "GET /metrics")
    looks = ("GET /health", "GET /v1/models", "GET /models/sse", "GET /props", *LLAMA_PAGE)
    dangers = ("DELETE /models/m", "DELETE /models")

    def __init__(self) -> None:
        super().__init__()
        self.known = {"m", "other"}
        """The models that it could load."""
        self.loading: set[str] = set()

    async def health(self, _: web.Request) -> web.Response:
        return ok({"status": "ok"})

    async def models(self, _: web.Request) -> web.Response:
        def status(name: str) -> str:
            return "loaded" if name in self.held else self._other(name)

        names = sorted(self.known | self.held)
        return ok({"data": [{"id": name, "status": {"value": status(name)}} for name in names]})

    def _other(self, name: str) -> str:
        return "loading" if name in self.loading else "unloaded"

    async def load(self, request: web.Request) -> web.Response:
        model = request[BODY]["model"]
        if model == "unknown":
            return ok({"error": {"message": "model not found"}}, 404)
        if model in self.held | self.loading:
            return ok({"error": {"message": "model is already running"}}, 400)
        self.loading.add(model)
        self.later(lambda: self._loaded(model))
        return ok({"success": True})

    def _loaded(self, model: str) -> None:
        self.loading.discard(model)
        self.held.add(model)

    async def unload(self, request: web.Request) -> web.Response:
        model = request[BODY]["model"]
        if model not in self.held | self.loading:
            return ok({"error": {"message": "model is not running"}}, 400)
        self.later(lambda: self.held.discard(model))
        return ok({"success": True})


class LlamaServer(Service):
    preset = "llama-cpp"
    pages: ClassVar = {"/v1/models": listed("m", owner="llamacpp")}
    begins_resident = True
    routes: ClassVar = {"GET /health": "health", "GET /props": "props", "GET /slots": "slots"}
    jobs = ("POST /v1/chat/completions", "GET /slots", "GET /metrics")
    looks = ("GET /health", "GET /props", *LLAMA_PAGE)
    dangers = ("DELETE /models/m",)

    async def health(self, _: web.Request) -> web.Response:
        return ok({"status": "ok"})

    async def props(self, _: web.Request) -> web.Response:
        return ok({"default_generation_settings": {}, "is_sleeping": not self.held})

    async def slots(self, _: web.Request) -> web.Response:
        self.put_in()  # it wakes a sleeper
        return ok([{"is_processing": False}])


class Vllm(Service):
    preset = "vllm"
    pages: ClassVar = {"/v1/models": listed("m", owner="vllm")}
    begins_resident = True
    routes: ClassVar = {
        "GET /health": "health",
        "GET /is_sleeping": "is_sleeping",
        "GET /metrics": "metrics",
        "POST /sleep": "sleep",
        "POST /wake_up": "wake_up",
    }
    jobs = ("POST /v1/chat/completions",)
    looks = ("GET /metrics", "GET /v1/models", "GET /is_paused", "POST /tokenize")
    dangers = (
        "POST /sleep",
        "POST /wake_up",
        "POST /collective_rpc",
        "POST /abort_requests",
        "POST /release_kv_cache_memory",
        "POST /scale_elastic_ep",
        "POST /update_weights",
        "POST /start_weight_update",
        "POST /finish_weight_update",
        "POST /inference/v1/abort_requests",
    )

    async def health(self, _: web.Request) -> web.Response:
        return empty()

    async def is_sleeping(self, _: web.Request) -> web.Response:
        return ok({"is_sleeping": not self.held})

    async def metrics(self, _: web.Request) -> web.Response:
        running = ("vllm:num_requests_running", self.computing)
        return metrics([running, ("vllm:num_requests_waiting", 0), running])

    async def sleep(self, request: web.Request) -> web.Response:
        if self.computing and request.query.get("mode", "abort") == "abort":
            self.broken = "it aborted what ran"
        self.held.clear()
        return ok({"status": "sleeping", "level": 1})

    async def wake_up(self, _: web.Request) -> web.Response:
        self.put_in()
        return ok({"status": "awake", "tags": None})


class SgLang(Service):
    preset = "sglang"
    pages: ClassVar = {"/": "Ollama is running", "/v1/models": listed("m", owner="sglang")}
    begins_resident = True
    routes: ClassVar = {
        "GET /model_info": "model_info",
        "GET /health": "health",
        "GET /v1/loads": "loads",
        "POST /release_memory_occupation": "release",
        "POST /resume_memory_occupation": "resume",
    }
    jobs = ("POST /v1/chat/completions", "GET /health")
    looks = ("GET /v1/loads", "GET /model_info")
    dangers = ("GET /release_memory_occupation", "POST /resume_memory_occupation")

    async def model_info(self, _: web.Request) -> web.Response:
        return ok({"model_path": "m", "tokenizer_path": "m", "is_generation": True})

    async def health(self, _: web.Request) -> web.Response:
        if not self.held:
            self.broken = "it generated a token on memory that was given back"
        return empty()

    async def loads(self, _: web.Request) -> web.Response:
        return ok({"loads": [{"num_running_reqs": self.computing, "num_waiting_reqs": 0}]})

    async def release(self, request: web.Request) -> web.Response:
        if self.computing or not self.held:
            self.broken = "AssertionError in the scheduler"
            return empty(500)
        if request[BODY] is None:
            return empty(422)
        self.held.clear()
        return ok()

    async def resume(self, request: web.Request) -> web.Response:
        if self.held:
            self.broken = "KeyError in the scheduler"
            return empty(500)
        self.put_in()
        return ok()


class TabbyApi(Service):
    preset = "tabbyapi"
    pages: ClassVar = {
        "/.well-known/serviceinfo": {"version": 0.1, "software": {"name": "TabbyAPI"}},
    }
    parameters: ClassVar = {"model": "m"}
    routes: ClassVar = {
        "GET /health": "health",
        "GET /props": "props",
        "GET /v1/model": "model",
        "GET /v1/models": "models",
        "POST /v1/model/load": "load",
        "POST /v1/model/unload": "unload",
    }
    jobs = ("POST /v1/chat/completions",)
    looks = ("GET /v1/model", "GET /v1/models")
    dangers = ("POST /v1/model/load",)

    async def health(self, _: web.Request) -> web.Response:
        return ok({"status": "unhealthy", "issues": ["once"]}, 503)  # sticky

    async def props(self, _: web.Request) -> web.Response:
        if self.held:
            return ok({"total_slots": 4, "default_generation_settings": {"n_ctx": 8192}})
        return ok({"detail": "No models are currently loaded."}, 503)

    async def model(self, _: web.Request) -> web.Response:
        if self.held:
            return ok({"id": "m", "object": "model"})
        return ok({"detail": "No models are currently loaded."}, 503)

    async def models(self, _: web.Request) -> web.Response:
        return ok(listed(*self.held, owner="tabbyAPI"))  # to who has no admin key

    async def load(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"status": "processing", "module": 1, "modules": 2}\n\n')
        await asyncio.sleep(LAG_S)
        if request[BODY]["model_name"] == "broken":
            await response.write(b'data: {"error": {"message": "CUDA out of memory"}}\n\n')
        else:
            self.put_in()
            await response.write(b'data: {"status": "finished"}\n\n')
        await response.write_eof()
        return response

    async def unload(self, _: web.Request) -> web.Response:
        if not self.held:
            return ok({"detail": "No models are currently loaded."}, 503)
        self.held.clear()
        return empty()


class KoboldCpp(Service):
    preset = "koboldcpp"
    begins_resident = True
    routes: ClassVar = {
        "GET /api/extra/version": "version",
        "GET /api/extra/perf": "perf",
        "GET /api/v1/model": "model",
        "GET /v1/models": "models",
        "POST /api/admin/reload_config": "reload",
    }
    # It answers routes of others, too.
    pages: ClassVar = {
        "/.well-known/serviceinfo": {"version": "0.2", "software": {"name": "KoboldCpp"}},
        "/api/ps": {"models": [{"name": "koboldcpp"}]},
        "/api/version": {"version": "0.7.0"},
        "/ping": {"status": "healthy"},
        "/props": {"total_slots": 1, "default_generation_settings": {"n_ctx": 8192}},
        "/sdapi/v1/options": {"samples_format": "png", "sd_model_checkpoint": "m"},
        "/speakers_list": ["kobo"],
        "/system_stats": {"system": {"comfyui_version": "v0.3.4"}, "devices": []},
    }
    models_told = ("koboldcpp/m",)
    jobs = ("GET /noscript", "POST /api/v1/generate", "POST /v1/chat/completions")
    looks = (
        "GET /api/extra/perf",
        "GET /api/extra/preloadstory",
        "GET /api/v1/model",
        "GET /lcpp/props",
        "GET /sdapi/v1/sd-models",
        "POST /api/extra/generate/check",
    )
    dangers = (
        "POST /api/admin/reload_config",
        "POST /api/extra/shutdown",
        "POST /x/api/admin/clear_state",
    )

    def __init__(self) -> None:
        super().__init__()
        self.restarts = 0
        self.password: str | None = None
        self.comes_back = True
        self._restarting: asyncio.Task[None] | None = None

    async def version(self, _: web.Request) -> web.Response:
        return ok({"result": "KoboldCpp", "version": "1.115"})

    async def perf(self, _: web.Request) -> web.Response:
        return ok({"queue": 0, "idle": 0 if self.computing else 1})

    async def model(self, _: web.Request) -> web.Response:
        return ok({"result": "koboldcpp/m" if self.held else "inactive"})

    async def models(self, _: web.Request) -> web.Response:
        return ok(listed("koboldcpp/m" if self.held else "inactive", owner="koboldcpp"))

    async def reload(self, request: web.Request) -> web.Response:
        key = request.headers.get("Authorization", "")
        if self.password is not None and key != f"Bearer {self.password}":
            return ok({"success": False})
        self._restarting = asyncio.create_task(self._restart(request[BODY]["filename"]))
        return ok({"success": True})

    async def _restart(self, config: str) -> None:
        await asyncio.sleep(LAG_S)
        await self.stop()
        self.held.clear()
        self.restarts += 1
        await asyncio.sleep(LAG_S)
        if config != "unload_model":
            self.put_in()
        if self.comes_back:
            await self.start()
        self.settled.set()


class TextGenerationWebUi(Service):
    preset = "text-generation-webui"
    parameters: ClassVar = {"model": "m"}
    routes: ClassVar = {
        "GET /v1/internal/health": "health",
        "GET /v1/internal/model/info": "info",
        "GET /v1/models": "models",
        "POST /v1/internal/model/load": "load",
        "POST /v1/internal/model/unload": "unload",
    }
    jobs = ("POST /v1/chat/completions",)
    looks = ("GET /v1/internal/health", "POST /v1/internal/stop-generation")
    dangers = ("POST /v1/internal/model/unload",)

    async def health(self, _: web.Request) -> web.Response:
        return ok({"status": "ok"})

    async def info(self, _: web.Request) -> web.Response:
        return ok({"model_name": "m" if self.held else "None", "lora_names": []})

    async def models(self, _: web.Request) -> web.Response:
        return ok(listed(*self.held))

    async def load(self, request: web.Request) -> web.Response:
        if request[BODY]["model_name"] == "broken":
            return web.Response(status=500, text="Internal Server Error")
        self.put_in()
        return ok("OK")

    async def unload(self, _: web.Request) -> web.Response:
        self.held.clear()
        return ok("OK")
