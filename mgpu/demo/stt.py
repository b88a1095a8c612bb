"""The transcription service: its weights stay for as long as its process lives.

It can be loaded and unloaded by starting and stopping it alone, like a whisper server under
systemd. It measures any WAV file honestly, but recognises nothing: the words are those that the
demo's speech service wrote into the file (``speech.wav``), a stand-in for what weights would hear.
Of any other recording it says that it hears no words.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from mgpu.demo.http import new_app
from mgpu.demo.speech.letters import spoken_words
from mgpu.demo.speech.wav import NotAWavError, Recording, decode_wav
from mgpu.demo.weights import Weights


def transcribe(recording: Recording) -> dict[str, Any]:
    """Text, length in seconds, loudness in dB below full scale, and words with their starts."""
    words = [word for word, _ in spoken_words(recording.text or "")]
    return {
        "text": recording.text or "",
        "seconds": round(recording.seconds, 3),
        "loudness_dbfs": _loudness_dbfs(recording),
        "words": [
            {"word": word, "start": round(cue / recording.rate_hz, 3)}
            for word, cue in zip(words, recording.cues, strict=False)
        ],
    }


def _loudness_dbfs(recording: Recording) -> float | None:
    """The root mean square level; None for silence, which has none."""
    power = sum(value * value for value in recording.samples) / max(1, len(recording.samples))
    return round(10.0 * math.log10(power / 32768.0**2), 1) if power else None


async def _read_wav(request: web.Request) -> bytes:
    """The body itself, or its part called ``file``."""
    if not request.content_type.startswith("multipart/"):
        return await request.read()
    try:
        part = (await request.post()).get("file")
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"not a multipart body: {error}") from error
    if not isinstance(part, web.FileField):
        raise web.HTTPBadRequest(text="file: no file of this name in the form")
    return part.file.read()


def build(weights: Weights) -> web.Application:
    """The service around its weights, which it loads before it listens."""

    async def transcriptions(request: web.Request) -> web.Response:
        content = await _read_wav(request)
        try:
            result = await weights.run(lambda: transcribe(decode_wav(content)))
        except NotAWavError as error:
            raise web.HTTPBadRequest(text=f"file: {error}") from error
        return web.json_response(result)

    async def resident(_: web.Application) -> AsyncIterator[None]:
        await weights.load()
        yield

    app = new_app()
    app.cleanup_ctx.append(resident)
    app.router.add_post("/v1/audio/transcriptions", transcriptions)
    return app
