"""The language service: OpenAI's chat completions, whole or streamed token by token."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field

from mgpu.demo.http import Body, add_residency, new_app, read_body
from mgpu.demo.markov import tokens
from mgpu.demo.weights import Weights

MODEL = "demo-language"
_USUAL_TOKENS = 48


class Message(Body):
    """One turn of the conversation."""

    role: str
    content: str


class ChatBody(Body):
    """The part of OpenAI's request that is understood."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=200)]
    model: str = MODEL
    stream: bool = False
    max_tokens: Annotated[int, Field(ge=1, le=512)] = _USUAL_TOKENS
    seed: int = 0


class _Completion:
    """One answer and the envelope it is sent in."""

    def __init__(self, body: ChatBody) -> None:
        self._body = body
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self.words = list(tokens(body.messages[-1].content, body.seed, body.max_tokens))

    def _envelope(self, kind: str, choice: dict[str, Any], end: str | None) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._body.model,
            "choices": [{"index": 0, **choice, "finish_reason": end}],
        }

    @property
    def end(self) -> str:
        return "length" if len(self.words) >= self._body.max_tokens else "stop"

    def whole(self) -> dict[str, Any]:
        asked = sum(len(message.content.split()) for message in self._body.messages)
        message = {"role": "assistant", "content": "".join(self.words)}
        usage = {
            "prompt_tokens": asked,
            "completion_tokens": len(self.words),
            "total_tokens": asked + len(self.words),
        }
        return self._envelope("chat.completion", {"message": message}, self.end) | {"usage": usage}

    def chunk(self, delta: dict[str, str], end: str | None = None) -> bytes:
        envelope = self._envelope("chat.completion.chunk", {"delta": delta}, end)
        return b"data: " + json.dumps(envelope).encode() + b"\n\n"


async def _stream(
    request: web.Request, completion: _Completion, token_s: float
) -> web.StreamResponse:
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    await response.write(completion.chunk({"role": "assistant", "content": ""}))
    for word in completion.words:
        await asyncio.sleep(token_s)
        await response.write(completion.chunk({"content": word}))
    await response.write(completion.chunk({}, completion.end))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def build(weights: Weights) -> web.Application:
    """The service around its weights."""
    token_s = weights.profile.job_s / _USUAL_TOKENS

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await read_body(request, ChatBody)
        async with weights.job():
            completion = _Completion(body)
            if body.stream:
                return await _stream(request, completion, token_s)
            await asyncio.sleep(token_s * len(completion.words))
            return web.json_response(completion.whole())

    app = new_app()
    add_residency(app, weights)
    app.router.add_post("/v1/chat/completions", chat)
    return app
