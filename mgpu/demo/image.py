"""The image service: it cannot be told to load, only to free, like ComfyUI.

``POST /prompt`` loads on demand and answers with a PNG; ``POST /free`` answers at once and lets go
of the memory after the running prompt. The pictures are ``mgpu.demo.painting``'s.
"""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import Field

from mgpu.demo.http import Body, new_app, read_body
from mgpu.demo.painting import paint
from mgpu.demo.weights import Weights

_Side = Annotated[int, Field(ge=64, le=1024)]


class PromptBody(Body):
    """What to paint; sizes in pixels."""

    prompt: Annotated[str, Field(max_length=2000)]
    width: _Side = 512
    height: _Side = 384
    seed: int = 0


class FreeBody(Body):
    """What to let go of; freeing the memory includes the models."""

    unload_models: bool = False
    free_memory: bool = False


class _ImageService:
    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._prompts: list[str] = []

    async def prompt(self, request: web.Request) -> web.Response:
        body = await read_body(request, PromptBody)
        self._prompts.append(body.prompt)
        try:
            png = await self._weights.run(
                lambda: paint(body.prompt, body.width, body.height, body.seed)
            )
        finally:
            self._prompts.remove(body.prompt)
        return web.Response(body=png, content_type="image/png")

    async def free(self, request: web.Request) -> web.Response:
        body = await read_body(request, FreeBody)
        if body.unload_models or body.free_memory:
            self._weights.unload_when_idle()
        return web.Response()

    async def queue(self, _: web.Request) -> web.Response:
        return web.json_response(
            {"queue_running": self._prompts[:1], "queue_pending": self._prompts[1:]}
        )

    async def system_stats(self, _: web.Request) -> web.Response:
        device = {
            "name": "cuda:0 simulated",
            "type": "cuda",
            "index": 0,
            "torch_vram_total": self._weights.held_mib * 1024 * 1024,
        }
        return web.json_response({"system": {"argv": []}, "devices": [device]})


def build(weights: Weights) -> web.Application:
    """The service around its weights, which ought to be lazy."""
    service = _ImageService(weights)
    app = new_app()
    app.router.add_post("/prompt", service.prompt)
    app.router.add_post("/free", service.free)
    app.router.add_get("/queue", service.queue)
    app.router.add_get("/system_stats", service.system_stats)
    return app
