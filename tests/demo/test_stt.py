import io
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mgpu.demo.catalogue import Kind
from mgpu.demo.speech.synthesis import RATE_HZ, speak
from mgpu.demo.speech.wav import encode_wav
from tests.support.demo_service import DemoService, demo_service

TEXT = "Wait your turn, small ship: \u201cthe berth is taken\u201d."
ROUTE = "/v1/audio/transcriptions"


@pytest.fixture
async def stt(tmp_path: Path) -> AsyncIterator[DemoService]:
    async with demo_service(Kind.STT, tmp_path) as service:
        yield service


@pytest.fixture(scope="module")
def spoken() -> bytes:
    speech = speak(TEXT)
    return encode_wav(speech.samples, RATE_HZ, TEXT, speech.starts)


def silence(seconds: float) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(8_000)
        writer.writeframes(bytes(int(seconds * 8_000) * 4))
    return file.getvalue()


async def hear(stt: DemoService, data: bytes | aiohttp.FormData) -> dict[str, Any]:
    async with stt.http.post(ROUTE, data=data) as answer:
        assert answer.status == 200
        return dict(await answer.json())


async def test_it_is_resident_for_as_long_as_its_process_lives_and_cannot_be_unloaded(
    stt: DemoService,
) -> None:
    assert stt.held_mib() == stt.profile.footprint_mib
    (await stt.http.get("/health")).raise_for_status()
    for path in ("/load", "/unload"):
        assert (await stt.http.post(path)).status == 404
    assert stt.held_mib() == stt.profile.footprint_mib
    stt.process.terminate()
    assert await stt.process.wait() == 0
    assert stt.held_mib() == 0


async def test_it_hears_again_exactly_what_the_demos_voice_said_as_a_body_or_in_a_form(
    stt: DemoService, spoken: bytes
) -> None:
    heard = await hear(stt, spoken)
    assert heard["text"] == TEXT
    words = " ".join(word["word"] for word in heard["words"])
    assert words == "wait your turn small ship the berth is taken"
    starts = [word["start"] for word in heard["words"]]
    assert starts == sorted(set(starts))
    assert starts[-1] < heard["seconds"]
    assert -40 < heard["loudness_dbfs"] < 0
    form = aiohttp.FormData()
    form.add_field("model", "demo-stt")
    form.add_field("file", spoken, filename="speech.wav", content_type="audio/wav")
    assert (await hear(stt, form))["text"] == TEXT


async def test_of_another_recording_it_tells_the_length_and_claims_no_words(
    stt: DemoService,
) -> None:
    assert await hear(stt, silence(1.5)) == {
        "text": "",
        "seconds": 1.5,
        "loudness_dbfs": None,
        "words": [],
    }


async def test_what_is_no_recording_is_refused(stt: DemoService) -> None:
    form = aiohttp.FormData()
    form.add_field("model", "demo-stt", content_type="text/plain")
    for data in (b"no sound at all", b"", form):
        async with stt.http.post(ROUTE, data=data) as answer:
            assert answer.status == 400
            assert "file" in (await answer.json())["error"]
