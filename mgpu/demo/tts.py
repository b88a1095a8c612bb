"""The speech service: loads and unloads on request, and says what it is given."""

from __future__ import annotations

from typing import Annotated, Literal

from aiohttp import web
from pydantic import Field

from mgpu.demo.http import Body, add_residency, new_app, read_body
from mgpu.demo.speech.synthesis import RATE_HZ, VOICES, speak
from mgpu.demo.speech.wav import encode_wav
from mgpu.demo.weights import Weights


class SpeechBody(Body):
    """What to say, and in which of ``VOICES``."""

    text: Annotated[str, Field(min_length=1, max_length=2000)]
    voice: Literal["low", "high"] = "low"


def _say(body: SpeechBody) -> bytes:
    speech = speak(body.text, VOICES[body.voice])
    return encode_wav(speech.samples, RATE_HZ, body.text, speech.starts)


def build(weights: Weights) -> web.Application:
    """The service around its weights."""

    async def tts(request: web.Request) -> web.Response:
        body = await read_body(request, SpeechBody)
        wav = await weights.run(lambda: _say(body))
        return web.Response(body=wav, content_type="audio/wav")

    app = new_app()
    add_residency(app, weights)
    app.router.add_post("/tts", tts)
    return app
