"""Speech: speaches, Kokoro-FastAPI, Chatterbox."""

from __future__ import annotations

from typing import ClassVar

from aiohttp import web

from tests.support.services.base import Service, empty, listed, ok


class Speaches(Service):
    preset = "speaches"
    pages: ClassVar = {
        "/openapi.json": {
            "paths": {"/api/ps/{model_id}": {"delete": {"responses": {"200": {}, "409": {}}}}}
        },
        "/v1/models": listed("Systran/faster-whisper-small", "speaches-ai/Kokoro-82M-v1.0-ONNX"),
    }
    models_told = ("Systran/faster-whisper-small", "speaches-ai/Kokoro-82M-v1.0-ONNX")
    parameters: ClassVar = {"model": "Systran/faster-whisper-small"}
    routes: ClassVar = {
        "GET /health": "health",
        "GET /api/ps": "ps",
        "POST /api/ps/{model:.+}": "load",
        "DELETE /api/ps/{model:.+}": "unload",
    }
    jobs = (
        *("POST /v1/audio/transcriptions", "POST /v1/audio/speech", "GET /v1/realtime"),
        *("POST /gradio_api/queue/join", "GET /gradio_api/queue/data"),
    )
    looks = (
        *("GET /api/ps", "GET /v1/models/a/b", "POST /v1/models/a/b", "GET /v1/realtime/"),
        *("GET /", "GET /assets/index-B.js", "GET /config", "GET /theme.css", "GET /docs"),
        *("GET /gradio_api/heartbeat/s", "GET /gradio_api/file=/tmp/a.wav"),
        *("POST /gradio_api/upload", "GET /gradio_api/upload_progress"),
    )
    dangers = ("DELETE /v1/models/Systran/faster-whisper-small", "DELETE /api/ps/a/b")

    def __init__(self) -> None:
        super().__init__()
        self.listed: set[str] = set()
        self.in_vain: set[str] = set()
        """Listed, although their load failed."""

    def put_in(self) -> None:
        self.held |= {"Systran/faster-whisper-small", "silero_vad_v5"}
        self.listed |= self.held

    def fail_to_load(self) -> None:
        """What a job leaves whose model is not to be loaded."""
        self.in_vain.add("Systran/faster-whisper-large-v3")
        self.listed |= self.in_vain

    def let_go(self) -> None:
        """After STT_MODEL_TTL: what looks for speech stays."""
        self.held &= {"silero_vad_v5"}
        self.listed &= {"silero_vad_v5"}

    async def health(self, _: web.Request) -> web.Response:
        return web.Response(text="OK")

    async def ps(self, _: web.Request) -> web.Response:
        return ok({"models": sorted(self.listed)})

    async def load(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        if model in self.listed:
            return ok({"detail": "already loaded"}, 409)
        self.listed.add(model)
        self.held.add(model)
        return ok(status=201)

    async def unload(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        if model not in self.listed:
            return ok({"detail": "not found"}, 404)
        self.listed.discard(model)
        if self.computing or model in self.in_vain:  # off the list, and as it was
            self.in_vain.discard(model)
            return ok({"message": "in use, or not loaded"}, 409)
        self.held.discard(model)
        return ok()


class Kokoro(Service):
    preset = "kokoro-fastapi"
    pages: ClassVar = {
        "/openapi.json": {"paths": {"/dev/captioned_speech": {}, "/dev/unload": {}}},
        "/v1/models": listed("tts-1", "tts-1-hd", "kokoro", "gpt-4o-mini-tts", owner="kokoro"),
    }
    models_told = ("tts-1", "tts-1-hd", "kokoro", "gpt-4o-mini-tts")
    tells_resident = False
    routes: ClassVar = {"GET /health": "health", "POST /dev/unload": "unload"}
    jobs = ("POST /v1/audio/speech",)
    looks = ("GET /v1/audio/voices", "GET /health")
    dangers = ("POST /dev/unload",)

    def __init__(self) -> None:
        super().__init__()
        self.allowed = True

    async def health(self, _: web.Request) -> web.Response:
        return ok({"status": "healthy"})

    async def unload(self, _: web.Request) -> web.Response:
        if not self.allowed:
            return ok({"detail": {"error": "The /dev/unload endpoint is disabled"}}, 403)
        self.held.clear()
        return ok({"status": "unloaded"})


class ChatterboxServer(Service):
    preset = "chatterbox-tts-server"
    begins_resident = True
    routes: ClassVar = {
        "GET /api/model-info": "info",
        "POST /api/unload": "unload",
        "POST /restart_server": "restart",
        "POST /tts": "tts",
    }
    jobs = ("POST /tts", "POST /v1/audio/speech")
    looks = ("GET /api/model-info", "GET /", "GET /get_predefined_voices")
    dangers = ("POST /restart_server",)

    async def info(self, _: web.Request) -> web.Response:
        return ok({"loaded": bool(self.held), "type": None, "class_name": None})

    async def unload(self, _: web.Request) -> web.Response:
        self.held.clear()
        return ok({"status": "unloaded"})

    async def restart(self, _: web.Request) -> web.Response:
        self.put_in()
        return ok({"message": "Model hot-swap successful.", "restart_needed": False})

    async def tts(self, _: web.Request) -> web.Response:
        return empty() if self.held else empty(503)
