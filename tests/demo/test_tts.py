import io
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mgpu.demo.catalogue import Kind
from tests.support.demo_service import DemoService, demo_service


@pytest.fixture
async def tts(tmp_path: Path) -> AsyncIterator[DemoService]:
    async with demo_service(Kind.TTS, tmp_path) as service:
        yield service


async def loaded(tts: DemoService) -> bool:
    async with tts.http.get("/status") as answer:
        body = await answer.json()
    assert set(body) == {"loaded"}
    return bool(body["loaded"])


async def say(tts: DemoService, text: str, voice: str = "low") -> wave.Wave_read:
    async with tts.http.post("/tts", json={"text": text, "voice": voice}) as answer:
        assert answer.status == 200
        assert answer.content_type == "audio/wav"
        return wave.Wave_read(io.BytesIO(await answer.read()))


async def test_it_loads_and_unloads_on_request(tts: DemoService) -> None:
    assert not await loaded(tts)
    assert tts.held_mib() == 0
    (await tts.http.post("/load")).raise_for_status()
    assert await loaded(tts)
    assert tts.held_mib() == tts.profile.footprint_mib
    (await tts.http.post("/unload")).raise_for_status()
    assert not await loaded(tts)
    await tts.holds(tts.profile.residual_mib)


async def test_what_it_says_is_audible_longer_for_longer_texts_and_other_in_another_voice(
    tts: DemoService,
) -> None:
    await tts.http.post("/load")
    short, long = await say(tts, "Hello."), await say(tts, "Hello, here is a longer sentence.")
    assert short.getparams()[:3] == (1, 2, 22_050)
    assert 0.3 < short.getnframes() / short.getframerate() < 1.5
    assert long.getnframes() > 2 * short.getnframes()
    assert (await say(tts, "Hello.", "high")).readframes(9_000) != short.readframes(9_000)
    short.rewind()
    samples = memoryview(short.readframes(short.getnframes())).cast("h")
    assert max(samples) > 8_000


BAD = [(b"{", "body"), (b'{"text": ""}', "text"), (b'{"text": "a", "voice": "x"}', "voice")]


async def test_neither_questions_nor_refused_jobs_load_it(tts: DemoService) -> None:
    for path in ("/status", "/health"):
        (await tts.http.get(path)).raise_for_status()
    for body, named in BAD:
        async with tts.http.post("/tts", data=body) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"].startswith(f"{named}: ")
    async with tts.http.post("/tts", json={"text": "hello"}) as answer:
        assert answer.status == 503
        assert "not loaded" in (await answer.json())["error"]
    assert tts.held_mib() == 0
