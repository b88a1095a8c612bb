"""whisper.cpp's server by its preset, with a model that says the same words whatever it hears."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.real_services.behind import Setup, behind
from tests.real_services.tiny_whisper import SAID, write_tiny_whisper
from tests.support.installed import WHISPER_SERVER, needs_whisper_server
from tests.support.real_program import real_program
from tests.support.recognition import recognised
from tests.support.servers import free_port
from tests.support.sounds import silence

SLOWLY = {"logprob_thold": "1", "temperature_inc": "0.01"}
"""It is never sure enough of what it heard and tries again, a hundred times: for half a minute."""
SILENCE = silence(1)

pytestmark = [pytest.mark.real_services, pytest.mark.timeout(180), needs_whisper_server]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whisper") / "tiny.bin"
    write_tiny_whisper(path)
    return path


def command(model: Path, port: int) -> list[str]:
    options = f"--host 127.0.0.1 --port {port} --model {model} --threads 1 --no-gpu"
    return [str(WHISPER_SERVER), *options.split()]


@pytest.fixture
async def setup(model: Path, tmp_path: Path) -> AsyncIterator[Setup]:
    port = free_port()
    async with behind(
        tmp_path,
        "whisper",
        f"http://127.0.0.1:{port}",
        models={"whisper-1": "whisper"},
        preset="whisper-cpp",
        command=command(model, port),
    ) as setup:
        yield setup


@pytest.fixture
def service(model: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of one that no broker stands before."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with real_program(command(model, port), up=f"{url}/health", log=tmp_path / "log", cwd=tmp_path):
        yield url


async def post(url: str, sound: bytes = SILENCE, /, **fields: str) -> tuple[int, str]:
    """Its status and text."""
    form = aiohttp.FormData({"response_format": "text", **fields})
    form.add_field("file", sound, filename="a.wav", content_type="audio/wav")
    async with aiohttp.ClientSession() as session, session.post(url, data=form) as response:
        return response.status, (await response.text()).strip()


async def status_of(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status


async def test_it_is_started_for_openais_route_stopped_and_started_again(setup: Setup) -> None:
    broker, _, _ = setup
    openais = f"{broker.url}/v1/audio/transcriptions"
    assert (await broker.consumer("whisper"))["state"] == "absent"
    assert await post(openais, model="whisper-1") == (200, SAID)
    assert (await broker.consumer("whisper"))["state"] == "resident"

    await broker.unload("whisper")

    assert (await broker.consumer("whisper"))["state"] == "absent"
    assert await post(openais, model="whisper-1") == (200, SAID)
    assert (await broker.status())["loads"] == 2


async def test_looks_at_its_port_start_nothing_and_a_transcription_there_does(setup: Setup) -> None:
    broker, own_port, _ = setup
    assert [await status_of(own_port + path) for path in ("/", "/health")] == [502, 502]
    assert (await broker.status())["loads"] == 0

    assert await post(f"{own_port}/inference") == (200, SAID)

    assert [await status_of(own_port + path) for path in ("/", "/health")] == [200, 200]
    assert (await broker.status())["loads"] == 1


async def test_a_client_that_leaves_stops_it_and_the_next_one_need_not_wait(setup: Setup) -> None:
    broker, own_port, _ = setup
    leaving = asyncio.create_task(post(f"{own_port}/inference", SILENCE, **SLOWLY))
    await broker.until("c['whisper']['running'] == 1", within_s=30)
    waiting = asyncio.create_task(post(f"{own_port}/inference"))
    await broker.until("c['whisper']['queued'] == 1")
    assert await status_of(f"{own_port}/health") == 200, "it answers while it computes"

    leaving.cancel()

    async with asyncio.timeout(10):
        assert await waiting == (200, SAID)
    assert "client disconnected, aborted processing" in broker.log


async def test_what_is_no_sound_gets_its_own_answer(setup: Setup) -> None:
    assert await post(f"{setup.own_port}/inference", b"words") == (400, "Invalid request")


async def test_another_model_may_not_be_loaded_through_the_broker(setup: Setup) -> None:
    assert (await post(f"{setup.own_port}/load", model="/nowhere"))[0] == 403


async def test_after_a_load_that_names_no_model_it_says_it_is_ill_and_works(service: str) -> None:
    assert await post(f"{service}/load", model="/nowhere") == (400, "Invalid request")
    assert await status_of(f"{service}/health") == 404
    assert await post(f"{service}/inference") == (200, SAID)


async def test_it_is_recognised(service: str) -> None:
    assert await recognised(service) == ["whisper-cpp"]
