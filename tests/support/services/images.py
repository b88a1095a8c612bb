"""Image services: ComfyUI, the AUTOMATIC1111 family, InvokeAI, SwarmUI."""

from __future__ import annotations

from typing import ClassVar

from aiohttp import web

from tests.support.services.base import BODY, Service, empty, ok

MIB = 1 << 20

CLICKS_IN_GRADIO_3 = ("GET /queue/join", "POST /run/predict", "POST /api/predict")
"""Of what is behind a click nothing can be told: it may be a picture."""
PAGE_OF_GRADIO = (
    "GET /",
    "HEAD /",
    "GET /app_id",
    "GET /assets/index.js",
    "GET /config",
    "GET /favicon.ico",
    "GET /file=/tmp/gradio/a.png",
    "HEAD /file=/tmp/gradio/a.png",
    "GET /info",
    "GET /queue/status",
    "GET /robots.txt",
    "GET /startup-events",
    "GET /static/img/logo.svg",
    "GET /theme.css",
    "GET /token",
    "GET /user",
    "POST /login",
    "POST /reset",
    "POST /upload",
)


def below_api(*requests: str) -> list[str]:
    """These, and the same below /api."""
    return [*requests, *(request.replace(" /", " /api/", 1) for request in requests)]


class ComfyUi(Service):
    preset = "comfyui"
    tells_resident = False
    routes: ClassVar = {
        "GET /system_stats": "stats",
        "GET /prompt": "count",
        "POST /prompt": "queue",
        "POST /free": "free",
    }
    jobs = ("POST /prompt", "POST /api/prompt", "POST /some-custom-node/infer")
    looks = (
        *below_api(
            "GET /",
            "GET /ws",
            "GET /queue",
            "GET /history/1",
            "GET /object_info",
            "GET /view",
            "POST /free",
            "POST /history",
            "POST /interrupt",
            "POST /models/download",
            "POST /queue",
            "POST /settings",
            "POST /settings/Comfy.Validation.Workflows",
            "POST /upload/image",
            "POST /upload/mask",
            "POST /userdata/workflows/a.json",
            "POST /userdata/workflows/a.json/move/workflows/b.json",
            "DELETE /userdata/workflows/a.json",
            "POST /users",
            "POST /customnode/install/git_url",
            "POST /manager/queue/start",
            "POST /snapshot/save",
            "POST /v2/manager/queue/task",
        ),
        "PATCH /internal/logs/subscribe",
        "POST /api/jobs/cancel",
        "POST /api/jobs/7/cancel",
        "HEAD /api/assets/hash/blake3:0",
        "POST /api/assets",
        "POST /api/assets/from-hash",
        "POST /api/assets/download",
        "PUT /api/assets/7",
        "DELETE /api/assets/7",
        "POST /api/assets/7/tags",
        "DELETE /api/tasks/7",
    )
    dangers = tuple(
        below_api(
            "GET /manager/reboot",
            "POST /manager/reboot",
            "GET /v2/manager/reboot",
            "POST /v2/manager/reboot",
        )
    )

    def __init__(self) -> None:
        super().__init__()
        self.flag = False

    async def stats(self, _: web.Request) -> web.Response:
        # DynamicVRAM: torch has next to nothing, whatever is in VRAM.
        return ok({"system": {}, "devices": [{"torch_vram_total": 0, "torch_vram_free": 0}]})

    async def count(self, _: web.Request) -> web.Response:
        return ok({"exec_info": {"queue_remaining": self.computing}})

    async def queue(self, _: web.Request) -> web.Response:
        self.computing += 1
        self.put_in()
        return ok({"prompt_id": "1", "number": 1, "node_errors": {}})

    async def free(self, request: web.Request) -> web.Response:
        if not isinstance(request[BODY], dict):
            return web.Response(status=500, text="500 Internal Server Error")
        self.flag = bool(request[BODY].get("free_memory"))
        if not self.computing:
            self.later(self._look_at_the_flag)
        return empty()

    def finish(self) -> None:
        self.computing -= 1
        self._look_at_the_flag()

    def _look_at_the_flag(self) -> None:
        if self.flag and not self.computing:
            self.held.clear()
            self.flag = False


class Automatic1111(Service):
    preset = "automatic1111"
    routes: ClassVar = {
        "GET /sdapi/v1/options": "options",
        "GET /sdapi/v1/progress": "progress",
        "GET /sdapi/v1/memory": "memory",
        "POST /sdapi/v1/unload-checkpoint": "unload",
        "POST /sdapi/v1/reload-checkpoint": "reload",
        "POST /sdapi/v1/txt2img": "txt2img",
    }
    jobs: ClassVar[tuple[str, ...]] = (
        "POST /sdapi/v1/txt2img",
        "POST /sdapi/v1/extra-single-image",
        "POST /sdapi/v1/options",
        *CLICKS_IN_GRADIO_3,
    )
    looks: ClassVar[tuple[str, ...]] = (
        "GET /sdapi/v1/progress",
        "GET /internal/ping",
        "GET /sd_extra_networks/thumb",
        "GET /webui-assets/css/sourcesanspro.css",
        "POST /internal/progress",
        "POST /sdapi/v1/interrupt",
        "POST /sdapi/v1/refresh-checkpoints",
        *PAGE_OF_GRADIO,
    )
    dangers = ("POST /sdapi/v1/server-kill", "POST /sdapi/v1/server-restart")

    async def options(self, _: web.Request) -> web.Response:
        return ok({})

    async def progress(self, request: web.Request) -> web.Response:
        preview = "A" * MIB if "skip_current_image" not in request.query else None
        job = "txt2img" if self.computing else ""
        # -1 is what it says right after its start.
        count = self.computing or -1
        return ok({"state": {"job": job, "job_count": count}, "current_image": preview})

    async def memory(self, _: web.Request) -> web.Response:
        current = 2048 * MIB if self.held else 40 * MIB
        return ok({"ram": {}, "cuda": {"allocated": {"current": current, "peak": 0}}})

    async def unload(self, _: web.Request) -> web.Response:
        if self.computing:
            self.broken = "Expected all tensors to be on the same device"
        self.held.clear()
        return ok({})

    async def reload(self, _: web.Request) -> web.Response:
        self.put_in()
        return ok({})

    async def txt2img(self, _: web.Request) -> web.Response:
        # After an unload it does not bring its weights back by itself.
        return ok({"images": []}) if self.held else ok({"error": "RuntimeError"}, 500)


class Forge(Automatic1111):
    preset = "forge"
    jobs: ClassVar[tuple[str, ...]] = (
        "POST /sdapi/v1/txt2img",
        "POST /queue/join",
        "GET /queue/data",
        "POST /run/predict",
        "POST /controlnet/detect",
    )
    looks: ClassVar[tuple[str, ...]] = (
        *Automatic1111.looks,
        "GET /heartbeat/f00",
        "GET /custom_component/1/component/index.js",
        "GET /upload_progress",
        "GET /controlnet/model_list",
        "POST /cancel",
    )

    async def options(self, _: web.Request) -> web.Response:
        # Its answer has the defaults of all options, saved or not.
        return ok({"forge_preset": "sd", "sd_model_checkpoint": "m"})

    async def reload(self, _: web.Request) -> web.Response:
        return ok({})

    async def txt2img(self, _: web.Request) -> web.Response:
        self.put_in()
        return ok({"images": []})


class SdNext(Service):
    preset = "sdnext"
    routes: ClassVar = {
        "GET /sdapi/v1/status": "status",
        "GET /sdapi/v1/memory": "memory",
        "GET /sdapi/v1/checkpoint": "checkpoint",
        "POST /sdapi/v1/unload-checkpoint": "unload",
        "POST /sdapi/v1/reload-checkpoint": "reload",
    }
    jobs = ("POST /sdapi/v1/txt2img", "POST /sdapi/v1/control", *CLICKS_IN_GRADIO_3)
    looks = (
        "GET /sdapi/v1/status",
        "GET /sdapi/v1/sd-models",
        "GET /sdapi/v1/browser/files",
        "GET /js",
        "POST /internal/progress",
        "POST /sdapi/v1/interrupt",
        *PAGE_OF_GRADIO,
    )
    dangers = ("POST /sdapi/v1/shutdown", "POST /sdapi/v1/restart")

    async def status(self, _: web.Request) -> web.Response:
        status = "running" if self.computing else "idle"
        return ok({"status": status, "task": "", "queued": 0})

    async def memory(self, _: web.Request) -> web.Response:
        return ok({"ram": {}, "cuda": {}})

    async def checkpoint(self, _: web.Request) -> web.Response:
        return ok({"type": "sd" if self.held else None, "class": None})

    async def unload(self, _: web.Request) -> web.Response:
        self.held.clear()
        return empty(204)

    async def reload(self, _: web.Request) -> web.Response:
        self.put_in()
        return empty(204)


class InvokeAi(Service):
    preset = "invokeai"
    tells_resident = False
    routes: ClassVar = {
        "GET /api/v1/app/version": "version",
        "GET /api/v1/queue/default/status": "status",
        "POST /api/v2/models/empty_model_cache": "empty_cache",
        "POST /api/v1/queue/default/enqueue_batch": "enqueue",
        "GET /api/v1/queue/default/b/{id}/status": "batch",
        "PUT /api/v1/queue/default/cancel_by_batch_ids": "cancel",
    }
    jobs = (
        "POST /api/v1/queue/default/enqueue_batch",
        "PUT /api/v1/queue/default/retry_items_by_id",
        "POST /api/v1/utilities/expand-prompt",
        "PUT /api/v2/models/convert/1",
    )
    # What its page asks for while it is open, and some of its buttons.
    looks = (
        "GET /api/v1/queue/default/status",
        "GET /ws/socket.io/",
        "POST /ws/socket.io/",
        "POST /api/v1/client_state/default/set_by_key",
        "POST /api/v1/images/images_by_names",
        "POST /api/v1/model_relationships/batch",
        "POST /api/v1/queue/default/item_summaries_by_ids",
        "POST /api/v1/queue/default/items_by_ids",
        "POST /api/v1/utilities/dynamicprompts",
        "PATCH /api/v1/images/i/1.png",
        "DELETE /api/v1/queue/default/i/1",
        "PUT /api/v1/queue/default/i/1/cancel",
        "PUT /api/v1/queue/default/clear",
        "PUT /api/v1/queue/default/processor/resume",
        "POST /api/v2/models/install",
    )

    def __init__(self) -> None:
        super().__init__()
        self.pending = 0
        self.paused = False
        self.cancelled = False

    async def version(self, _: web.Request) -> web.Response:
        return ok({"version": "6.14.2"})

    async def status(self, _: web.Request) -> web.Response:
        in_progress = 0 if self.cancelled else self.computing
        queue = {"in_progress": in_progress, "pending": self.pending, "waiting": 0}
        processor = {"is_processing": bool(self.computing), "is_started": not self.paused}
        return ok({"queue": queue, "processor": processor})

    async def enqueue(self, _: web.Request) -> web.Response:
        self.computing = 1
        return ok({"queue_id": "default", "enqueued": 1, "batch": {"batch_id": "b"}})

    async def batch(self, request: web.Request) -> web.Response:
        waiting = 0 if self.cancelled else self.computing
        counts = {"pending": 0, "in_progress": 0, "waiting": waiting, "failed": 0}
        return ok({"batch_id": request.match_info["id"], "total": 1, **counts})

    async def cancel(self, _: web.Request) -> web.Response:
        self.cancelled = True  # and the node that runs just then goes on
        return ok({"canceled": 1})

    async def empty_cache(self, _: web.Request) -> web.Response:
        if not self.computing:  # models in use are skipped without a word
            self.held.clear()
        return ok()


class SwarmUi(Service):
    preset = "swarmui"
    pages: ClassVar = {"/Text2Image": "<title>Page is loading... - SwarmUI - Local</title>"}
    tells_resident = False
    routes: ClassVar = {
        "GET /": "to_its_page",
        "GET /ComfyBackendDirect/prompt": "count",
        "POST /API/GetNewSession": "session",
        "POST /API/FreeBackendMemory": "free",
    }
    jobs = (
        "POST /API/GenerateText2Image",
        "GET /API/GenerateText2ImageWS",
        "GET /API/GridGenRun",
        "GET /API/SelectModelWS",
        "POST /API/SelectModel",
        "POST /ComfyBackendDirect/prompt",
    )
    looks = (
        "POST /API/GetNewSession",
        "POST /API/ListLoadedModels",
        "POST /API/TriggerRefresh",
        "POST /API/ToggleImageStarred",
        "POST /API/AddImageToHistory",
        "POST /API/ComfySaveWorkflow",
        "POST /API/GridGenSaveData",
        "GET /API/DoModelDownloadWS",
        "GET /Text2Image",
        "GET /ComfyBackendDirect/ws",
    )
    dangers = ("POST /api/shutdownserver", "POST /API/DeleteModel")

    def __init__(self) -> None:
        super().__init__()
        self.sessions: set[str] = set()
        self.has_comfyui = True

    async def to_its_page(self, _: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "Text2Image"})

    async def count(self, _: web.Request) -> web.Response:
        if not self.has_comfyui:
            return web.Response(status=400, text="No ComfyUI backend available, loading failed.")
        return ok({"exec_info": {"queue_remaining": self.computing}})

    async def session(self, request: web.Request) -> web.Response:
        if not request.content_length or request.content_type != "application/json":
            return empty(411)
        self.sessions.add(f"S{len(self.sessions)}/=")
        return ok({"session_id": max(self.sessions), "user_id": "local"})

    async def free(self, request: web.Request) -> web.Response:
        if request.headers.get("X-Session-ID") not in self.sessions:
            error = "Invalid session ID. You may need to refresh the page."
            return ok({"error": error, "error_id": "invalid_session_id"}, 401)
        if not request.content_length:
            return ok({"error": "bad content length", "error_id": "basic_api"}, 400)
        self.later(self.held.clear)  # it asks the ComfyUI behind it
        return ok({"result": True, "count": 1})
