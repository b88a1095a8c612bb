"""A GPU service that answers in OpenAI's shape, as ollama, speaches and their kin do."""

from __future__ import annotations

import base64
import json
from typing import Any

from aiohttp import web

from tests.support.standin_consumer import StandinConsumer

PICTURE = b"\x89PNG not really"
SOUND = b"RIFF" + bytes(range(256)) * 2000


class OpenAiService(StandinConsumer):
    """Serves every model it is asked for, and tells of those in ``models``."""

    models: tuple[str, ...] = ()

    def add_routes(self, app: web.Application) -> None:
        """OpenAI's."""
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_post("/v1/images/generations", self._image)
        app.router.add_post("/v1/images/edits", self._edit)
        app.router.add_post("/v1/audio/speech", self._speech)
        app.router.add_post("/v1/audio/transcriptions", self._transcription)

    async def _models(self, _request: web.Request) -> web.Response:
        data = [{"id": name, "object": "model"} for name in self.models]
        return web.json_response({"object": "list", "data": data})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        async with self.computing():
            await self.job_gate.passes()
            words = ["You", " said ", body["messages"][-1]["content"]]
            if body.get("stream"):
                return await self._streamed(request, body["model"], words)
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(words)},
                "finish_reason": "stop",
            }
            return web.json_response(_completion(body["model"], "chat.completion", choice))

    async def _streamed(
        self, request: web.Request, model: str, words: list[str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in words:
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            event = _completion(model, "chat.completion.chunk", choice)
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await self.stream_gate.passes()
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _embeddings(self, request: web.Request) -> web.Response:
        body = await request.json()
        async with self.computing():
            texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
            data = [
                {"object": "embedding", "index": n, "embedding": [float(len(text)), 0.5]}
                for n, text in enumerate(texts)
            ]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            return web.json_response(
                {"object": "list", "model": body["model"], "data": data, "usage": usage}
            )

    async def _image(self, request: web.Request) -> web.Response:
        await request.json()
        return await self._painted()

    async def _edit(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert isinstance(form["image"], web.FileField)
        return await self._painted()

    async def _painted(self) -> web.Response:
        async with self.computing():
            picture = base64.b64encode(PICTURE).decode()
            return web.json_response({"created": 1, "data": [{"b64_json": picture}]})

    async def _speech(self, request: web.Request) -> web.StreamResponse:
        await request.json()
        async with self.computing():
            response = web.StreamResponse(headers={"Content-Type": "audio/wav"})
            await response.prepare(request)
            for start in range(0, len(SOUND), 50_000):
                await response.write(SOUND[start : start + 50_000])
            return response

    async def _transcription(self, request: web.Request) -> web.Response:
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        async with self.computing():
            heard = len(file.file.read())
            text = f"{file.filename} of {heard} bytes in {form.get('language')!s}"
            return web.json_response({"text": text})


def _completion(model: str, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": model, "choices": [choice]}
