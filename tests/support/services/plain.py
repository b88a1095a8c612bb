"""Services that no request unloads: they say who and how they are, and some what they do."""

from __future__ import annotations

from typing import Any, ClassVar

from aiohttp import web

from tests.support.services.base import Service, listed, ok


class Plain(Service):
    """Its ``pages`` are most of what is asked of it."""

    tells_resident = False
    routes: ClassVar[dict[str, str]] = {}


class AllTalk(Plain):
    preset = "alltalk"
    pages: ClassVar = {
        "/api/ready": "Ready",
        "/api/currentsettings": {
            "models_available": [{"name": "Coqui", "model_name": "XTTSv2 Local"}],
            "current_model_loaded": "XTTSv2 Local",
            "deepspeed_available": False,
            "low_vram_status": False,
        },
    }
    jobs = ("POST /api/tts-generate", "GET /api/tts-generate-streaming")
    looks = ("GET /api/voices", "GET /audiocache/x.wav", "PUT /api/stop-generation")
    dangers = ("POST /api/reload", "POST /api/lowvramsetting", "POST /api/deepspeed")


class ChatterboxApi(Plain):
    preset = "chatterbox-tts-api"
    tells_resident = True
    pages: ClassVar = {
        "/openapi.json": {"paths": {"/audio/speech": {}, "/audio/speech/long": {}}},
        "/languages": {"languages": [{"code": "en"}], "count": 1, "model_type": "standard"},
        "/ping": {"status": "ok", "message": "Server is running"},
        "/v1/models": listed("chatterbox-tts-1", owner="resemble-ai"),
    }
    models_told = ("chatterbox-tts-1",)
    routes: ClassVar = {"GET /health": "health", "GET /status/progress": "progress"}
    jobs = ("POST /v1/audio/speech", "POST /audio/speech/long")
    looks = ("GET /status", "GET /v1/audio/speech/long/1/sse", "GET /voices")

    async def health(self, _: web.Request) -> web.Response:
        return ok({"initialization_state": "ready", "model_loaded": bool(self.held)})

    async def progress(self, _: web.Request) -> web.Response:
        return ok({"is_processing": bool(self.computing), "status": "idle"})


class Frigate(Plain):
    preset = "frigate"
    pages: ClassVar = {"/api/version": "0.17", "/api/stats": {"detectors": {"onnx": {"pid": 1}}}}
    jobs = ("POST /api/events/x/regenerate_description",)
    looks = ("GET /api/stats", "GET /ws")
    dangers = ("POST /api/restart",)


class ImmichMl(Plain):
    preset = "immich-ml"
    pages: ClassVar = {"/": {"message": "Immich ML"}, "/ping": "pong"}
    jobs = ("POST /predict",)
    looks = ("GET /ping",)


class Infinity(Plain):
    preset = "infinity"
    pages: ClassVar = {"/health": {"unix": 1764288000.0}}
    routes: ClassVar = {"GET /models": "models"}
    jobs = ("POST /embeddings", "POST /rerank")
    looks = ("GET /models", "GET /health")

    async def models(self, _: web.Request) -> web.Response:
        stats: dict[str, Any] = {"queue_fraction": 0.0, "results_pending": 0, "batch_size": 32}
        stats["queue_absolute"] = self.computing
        return ok({"data": [{"id": "m", "owned_by": "infinity", "stats": stats}]})


class LlamaCppPython(Plain):
    preset = "llama-cpp-python"
    pages: ClassVar = {
        "/openapi.json": {"paths": {"/v1/completions": {}, "/extras/tokenize/count": {}}},
        "/v1/models": listed("m", owner="me"),
    }
    jobs = ("POST /v1/chat/completions",)
    looks = ("GET /v1/models", "POST /extras/tokenize")


class OpenedAiSpeech(Plain):
    preset = "openedai-speech"
    pages: ClassVar = {
        "/openapi.json": {
            "paths": {"/v1/dashboard/billing/usage": {}, "/v1/audio/speech": {}, "/health": {}}
        },
        "/health": {"status": "ok"},
        "/v1/models": listed("tts-1-hd", "tts-1"),
    }
    models_told = ("tts-1", "tts-1-hd")
    jobs = ("POST /v1/audio/speech",)
    looks = ("GET /v1/models/tts-1", "HEAD /")


class SdServer(Plain):
    """A job of its own waits until ``computing`` is set to 0."""

    preset = "stable-diffusion-cpp"
    pages: ClassVar = {
        "/sdcpp/v1/capabilities": {"model": {"name": "m"}, "supported_modes": ["img_gen"]},
        "/v1/models": {"data": [{"id": "sd-cpp-local", "object": "model", "owned_by": "local"}]},
        "/sdapi/v1/options": {"samples_format": "png", "sd_model_checkpoint": "m"},
    }
    models_told = ("sd-cpp-local",)
    routes: ClassVar = {
        "POST /sdcpp/v1/img_gen": "generate",
        "GET /sdcpp/v1/jobs/{id}": "job",
        "POST /sdcpp/v1/jobs/{id}/cancel": "cancel",
    }
    jobs = ("POST /sdapi/v1/txt2img", "POST /sdcpp/v1/img_gen")
    looks = ("GET /sdcpp/v1/jobs/job_1", "POST /sdcpp/v1/jobs/job_1/cancel")

    async def generate(self, _: web.Request) -> web.Response:
        self.computing = 1
        job = {"id": "job_1", "kind": "img_gen", "status": "queued", "created": 1}
        return ok({**job, "poll_url": "/sdcpp/v1/jobs/job_1"}, 202)

    async def job(self, request: web.Request) -> web.Response:
        if request.match_info["id"] != "job_1":
            return ok({"error": "job not found"}, 404)
        if self.computing:
            return ok({"id": "job_1", "status": "generating", "result": None, "error": None})
        images = [{"index": 0, "b64_json": "iVBORw0KGgo="}]
        result = {"output_format": "png", "images": images}
        return ok({"id": "job_1", "status": "completed", "result": result, "error": None})

    async def cancel(self, _: web.Request) -> web.Response:
        if self.computing:
            return ok({"error": "job is currently generating and cannot be interrupted yet"}, 409)
        return ok({"id": "job_1", "status": "completed"})


class Tei(Plain):
    preset = "tei"
    pages: ClassVar = {
        "/health": "",
        "/info": {
            "model_id": "/data/gte-base",
            "served_model_name": "thenlper/gte-base",
            "model_type": {"embedding": {"pooling": "cls"}},
            "max_client_batch_size": 32,
            "tokenization_workers": 4,
        },
    }
    models_told = ("thenlper/gte-base",)
    routes: ClassVar = {"GET /metrics": "metrics"}
    jobs = ("POST /embed", "POST /v1/embeddings", "POST /")
    looks = ("GET /info", "GET /", "POST /tokenize")

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=f"# TYPE te_queue_size gauge\nte_queue_size {self.computing}\n")


class Tgi(Plain):
    preset = "text-generation-inference"
    pages: ClassVar = {
        "/health": "",
        "/info": {
            "model_id": "bigscience/blomm-560m",
            "max_total_tokens": 2048,
            "validation_workers": 2,
            "max_client_batch_size": 32,
            "router": "text-generation-router",
        },
        "/v1/models": listed("bigscience/blomm-560m", owner="bigscience/blomm-560m"),
    }
    models_told = ("bigscience/blomm-560m",)
    routes: ClassVar = {"GET /metrics": "metrics"}
    jobs = ("POST /generate_stream", "POST /v1/chat/completions")
    looks = ("GET /info", "GET /v1/models", "POST /tokenize")

    async def metrics(self, _: web.Request) -> web.Response:
        text = f"tgi_queue_size 0\ntgi_batch_current_size {self.computing}\n"
        return web.Response(text=text)


class WhisperAsr(Plain):
    preset = "whisper-asr-webservice"
    pages: ClassVar = {
        "/openapi.json": {
            "info": {"title": "Whisper Asr Webservice", "version": "1.9.1"},
            "paths": {"/asr": {}, "/detect-language": {}},
        }
    }
    jobs = ("POST /asr", "POST /detect-language")
    looks = ("GET /docs",)


class WhisperCpp(Plain):
    preset = "whisper-cpp"
    pages: ClassVar = {
        "/": "<html><head><title>Whisper.cpp Server</title></head></html>",
        "/health": {"status": "ok"},
    }
    jobs = ("POST /inference",)
    looks = ("GET /health",)
    dangers = ("POST /load",)


class XttsApi(Plain):
    preset = "xtts-api-server"
    pages: ClassVar = {
        "/languages": {"languages": {"English": "en"}},
        "/get_folders": {"speaker_folder": "s", "output_folder": "o", "model_folder": "m"},
    }
    jobs = ("POST /tts_to_audio/", "GET /tts_stream")
    looks = ("GET /speakers_list", "GET /sample/x.wav")
    dangers = ("POST /switch_model",)
