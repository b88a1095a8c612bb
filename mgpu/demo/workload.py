"""The demo's client: a mixed workload through the broker's own routes, and what came of it.

Requests arrive in waves, as when people come and go, and every wave wants an image and an answer,
which do not fit into memory together. Images and speech are kept as files; what was
spoken is then sent to be transcribed, so that real audio goes both ways.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from mgpu.core.model import Outcome
from mgpu.demo.catalogue import Kind
from mgpu.demo.summary import JobRecord

WAVE = 8
"""Requests that arrive together."""

WAVE_INTERVAL_S = 4.5
"""About as long as it takes to serve one wave, so that each finds the end of the last."""

REQUEST_TIMEOUT_S = 120.0
MIX = {Kind.IMAGE: 2, Kind.TTS: 4, Kind.STT: 2, Kind.LANGUAGE: 4}
"""Weights of what is asked for. A transcription needs speech, so it asks for that first."""

PROMPTS = (
    "a quiet harbour at dawn",
    "snow on the mountains under a full moon",
    "a forest in autumn, golden light",
    "the desert at sunset",
    "a city skyline at night, neon",
    "a green valley with a river in spring",
    "storm over the open sea",
    "northern lights above a frozen lake",
)
SENTENCES = (
    "One graphics card is enough for all of us.",
    "Please wait a moment while I make room.",
    "The oldest model leaves first.",
    "Your picture is ready.",
    "Good morning, this is the broker speaking.",
    "Nothing is loaded before the memory is free.",
)
QUESTIONS = (
    "Who has the GPU now?",
    "Why was the image model unloaded?",
    "How much memory is free?",
    "What happens when two jobs come at once?",
)


@dataclass(frozen=True, slots=True)
class Request:
    """One thing a client wants: text to draw, to speak, to speak and transcribe, or to answer."""

    number: int
    kind: Kind
    text: str
    seed: int
    after_s: float


def plan(jobs: int, seed: int) -> Iterator[Request]:
    """``jobs`` requests; the same seed gives the same ones. A wave begins with one of each kind."""
    source = random.Random(seed)  # noqa: S311 - a workload, not a secret
    texts = {Kind.IMAGE: PROMPTS, Kind.LANGUAGE: QUESTIONS}
    kinds = list(Kind)
    for index in range(jobs):
        wave, place = divmod(index, WAVE)
        drawn = source.choices(list(MIX), weights=list(MIX.values()))[0]
        kind = kinds[place] if place < len(kinds) else drawn
        text = source.choice(texts.get(kind, SENTENCES))
        yield Request(index + 1, kind, text, source.randrange(1 << 16), wave * WAVE_INTERVAL_S)


class Client:
    """Sends requests to a broker at ``url`` and keeps what it gets in ``output``.

    ``ended`` is called with every job's record.
    """

    def __init__(self, url: str, output: Path, ended: Callable[[JobRecord], None]) -> None:
        self._url = url
        self._output = output
        self._ended = ended

    async def run(self, jobs: int, seed: int) -> None:
        """Play the whole workload and return when the last job has ended."""
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(self._url, timeout=timeout, connector=connector) as session,
            asyncio.TaskGroup() as group,
        ):
            for request in plan(jobs, seed):
                group.create_task(self._play(session, request))

    async def _play(self, session: aiohttp.ClientSession, request: Request) -> None:
        await asyncio.sleep(request.after_s)  # the time of its arrival
        number, text = request.number, request.text
        match request.kind:
            case Kind.IMAGE:
                body: dict[str, Any] = {"prompt": text, "seed": request.seed}
                await self._send(session, Kind.IMAGE, "/v1/image", f"image-{number}.png", json=body)
            case Kind.TTS:
                name = f"speech-{number}.wav"
                await self._send(session, Kind.TTS, "/v1/tts", name, json={"text": text})
            case Kind.STT:
                name = f"speech-{number}.wav"
                wav = await self._send(session, Kind.TTS, "/v1/tts", name, json={"text": text})
                if wav is not None:
                    name = f"transcript-{number}.json"
                    await self._send(session, Kind.STT, "/v1/transcribe", name, data=wav)
            case Kind.LANGUAGE:
                message = {"role": "user", "content": text}
                body = {"messages": [message], "stream": True, "seed": request.seed}
                name = f"answer-{number}.txt"
                await self._send(session, Kind.LANGUAGE, "/v1/chat", name, json=body)

    async def _send(
        self, session: aiohttp.ClientSession, kind: Kind, path: str, name: str, **content: Any
    ) -> bytes | None:
        """Send one job; its answer, or None when it was refused or broke off."""
        try:
            async with session.post(path, **content) as response:
                answer = await response.read()
                wait_s = _wait_s(response.headers.get("Server-Timing", ""))
                outcome = _outcome(response.status)
        except (aiohttp.ClientError, TimeoutError):
            self._ended(JobRecord(kind, Outcome.FAILED, 0.0))
            return None
        if outcome is not Outcome.DONE:
            self._ended(JobRecord(kind, outcome, wait_s))
            return None
        file = self._output / name
        file.write_bytes(_tokens(answer) if kind is Kind.LANGUAGE else answer)
        self._ended(JobRecord(kind, outcome, wait_s, file))
        return answer


def _outcome(status: int) -> Outcome:
    match status:
        case 200:
            return Outcome.DONE
        case 504:
            return Outcome.EXPIRED
        case 429 | 503 | 507:
            return Outcome.REJECTED
        case _:
            return Outcome.FAILED


def _wait_s(server_timing: str) -> float:
    """Everything before the consumer's own time, from a ``Server-Timing`` header."""
    entries = dict(entry.strip().split(";dur=") for entry in server_timing.split(",") if entry)
    return sum(float(entries.get(phase, 0)) for phase in ("queue", "evict", "load")) / 1000


def _tokens(stream: bytes) -> bytes:
    """The text of a streamed chat completion."""
    events = [line[6:] for line in stream.splitlines() if line.startswith(b"data: {")]
    choices = [json.loads(event)["choices"][0] for event in events]
    return "".join(choice["delta"].get("content", "") for choice in choices).encode()
