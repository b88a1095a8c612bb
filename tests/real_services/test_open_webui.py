"""Open WebUI, the real one: in front of the broker as its client, and behind a port of its own.

The services are stand-ins, so that it is seen what reaches them. Open WebUI takes half a minute to
start: there is one for all tests, which finds each test's broker and services at the same ports.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.broker_process import BrokerProcess, serving
from tests.support.browser import needs_chromium, page
from tests.support.comfyui import StandinComfyUI, completion, picture, png
from tests.support.installed import OPEN_WEBUI, needs_open_webui
from tests.support.openai_service import SOUND, OpenAiService
from tests.support.real_program import real_program
from tests.support.servers import free_port
from tests.support.services.language import Ollama
from tests.support.standin_consumer import Referee

LOOKS = (
    "/api/models",
    "/api/version",
    "/ollama/api/ps",
    "/ollama/api/tags",
    "/ollama/api/version",
    "/ollama/v1/models",
    "/openai/models",
)
MODELS = {"chatter", "painter", "speaker", "hearer", "qwen3:8b", "llava"}
"""The models that it is to find."""

pytestmark = [pytest.mark.real_services, pytest.mark.timeout(300), needs_open_webui]


@dataclass(frozen=True)
class Ports:
    """Where everything is in every test."""

    broker: int
    ollama: int
    comfyui: int
    own: int
    """Open WebUI's at the broker."""
    web: int
    """Open WebUI itself."""


@dataclass
class Setup:
    """A broker, the services behind it, and who asks Open WebUI."""

    broker: BrokerProcess
    ollama: Ollama
    openai: OpenAiService
    comfyui: StandinComfyUI
    web: aiohttp.ClientSession
    ports: Ports

    async def post(self, path: str, body: Any) -> bytes:
        async with self.web.post(path, json=body) as response:
            answer = await response.read()
            assert response.status == 200, answer
            return answer

    async def jobs(self) -> dict[str, int]:
        """How many each has done, of those that have done any."""
        await self.broker.until("all(not each['running'] for each in c.values())")
        async with self.broker.session.get(f"{self.broker.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        done = [line.split('"') for line in lines if line.startswith("mgpu_jobs_total")]
        counts = {parts[1]: int(float(parts[4][1:])) for parts in done if parts[3] == "done"}
        return {name: count for name, count in counts.items() if count}


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    ports = Ports(*(free_port() for _ in range(5)))
    data = tmp_path_factory.mktemp("open-webui")
    url = f"http://127.0.0.1:{ports.web}"
    options = f"serve --host 127.0.0.1 --port {ports.web}".split()
    told = environment(ports, data)
    with real_program(
        [OPEN_WEBUI, *options], up=f"{url}/health", log=data / "log", cwd=data, env=told
    ):
        yield ports


def environment(ports: Ports, data: Path) -> dict[str, str]:
    """What Open WebUI is told; the variables are those of its documentation."""
    openai, key = f"http://127.0.0.1:{ports.broker}/v1", "unused"
    engines = {
        "OPENAI_API": ("", ""),
        "AUDIO_TTS": ("openai", "speaker"),
        "AUDIO_STT": ("openai", "hearer"),
        "IMAGES": ("openai", "painter"),
    }
    told = {
        "DATA_DIR": str(data / "data"),
        "WEBUI_SECRET_KEY": "unused",
        "WEBUI_AUTH": "False",
        "OFFLINE_MODE": "true",
        "ANONYMIZED_TELEMETRY": "false",
        # So that it needs neither ffmpeg nor a model of its own.
        "BYPASS_PYDUB_PREPROCESSING": "true",
        "RAG_EMBEDDING_ENGINE": "openai",
        "RAG_EMBEDDING_MODEL": "chatter",
        "OLLAMA_BASE_URL": f"http://127.0.0.1:{ports.ollama}",
        "ENABLE_IMAGE_GENERATION": "true",
        "IMAGE_GENERATION_ENGINE": "openai",
        "IMAGE_GENERATION_MODEL": "painter",
        "COMFYUI_BASE_URL": f"http://127.0.0.1:{ports.comfyui}",
        "COMFYUI_WORKFLOW": json.dumps(picture()),
    }
    for name, (engine, model) in engines.items():
        middle = "" if name == "OPENAI_API" else "OPENAI_API_"
        told[f"{name}_{middle}BASE_URL"], told[f"{name}_{middle}KEY"] = openai, key
        told |= {f"{name}_ENGINE": engine, f"{name}_MODEL": model}
    return told


@pytest.fixture
async def setup(ports: Ports, tmp_path: Path) -> AsyncIterator[Setup]:
    ollama, comfyui = Ollama(), StandinComfyUI()
    openai = OpenAiService("openai", 4000, [], Referee())
    openai.models = ("chatter",)
    for service in (ollama, comfyui, openai):
        await service.start()
    at = {name: f"127.0.0.1:{port}" for name, port in vars(ports).items()}
    consumers: dict[str, dict[str, Any]] = {
        "ollama": {
            "url": ollama.url,
            "listen": at["ollama"],
            "preset": "ollama",
            "deny": ["DELETE /api/delete"],
        },
        "comfyui": {
            "url": comfyui.url,
            "listen": at["comfyui"],
            "preset": "comfyui",
            "completion": completion(),
        },
        "openai": openai.config(models={}),
        "web": {"url": f"http://{at['web']}", "listen": at["own"], "not_activity": ["* /*"]},
    }
    for name in ("ollama", "comfyui"):
        consumers[name]["footprint_mib"] = 4000
    config = {
        "gpu": {"backend": "simulated"},
        "consumers": consumers,
        "models": dict.fromkeys(("painter", "speaker", "hearer"), "openai"),
    }
    async with (
        serving(tmp_path, config, port=ports.broker) as broker,
        aiohttp.ClientSession(f"http://{at['own']}") as web,
    ):
        async with web.post("/api/v1/auths/signin", json={"email": "", "password": ""}) as answer:
            web.headers["Authorization"] = f"Bearer {(await answer.json())['token']}"
        yield Setup(broker, ollama, openai, comfyui, web, ports)
    await ollama.stop()
    await comfyui.close()
    await openai.close()


async def models(setup: Setup) -> list[str]:
    async with setup.web.get("/api/models", params={"refresh": "true"}) as response:
        assert response.status == 200
        return [model["id"] for model in (await response.json())["data"]]


async def test_it_lists_the_models_of_both_kinds_and_its_looks_wake_nobody(setup: Setup) -> None:
    assert set(await models(setup)) >= MODELS
    for path in LOOKS:
        async with setup.web.get(path) as response:
            assert response.status == 200, path
    assert {"GET /api/tags", "GET /api/ps", "GET /api/version"} <= {*setup.ollama.calls}

    status = await setup.broker.status()
    assert (status["loads"], await setup.jobs()) == (0, {})
    assert setup.ollama.held == set()
    assert not setup.openai.loaded


async def test_a_chat_with_a_model_of_ollamas_is_streamed_by_ollamas_own_api(setup: Setup) -> None:
    await models(setup)
    question = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
    answer = await setup.post("/api/chat/completions", question | {"model": "qwen3:8b"})

    assert answer.count(b"data: ") > 2
    assert b"cat" in answer
    assert "POST /api/chat" in setup.ollama.calls
    assert await setup.jobs() == {"ollama": 1}


async def test_a_model_is_fetched_without_the_gpu(setup: Setup) -> None:
    assert b"success" in await setup.post("/ollama/api/pull", {"model": "new"})
    assert "POST /api/pull" in setup.ollama.calls
    assert await setup.jobs() == {}


async def test_a_title_is_a_job_too(setup: Setup) -> None:
    await models(setup)
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    await setup.post("/api/v1/tasks/title/completions", {"model": "chatter", "messages": messages})
    assert await setup.jobs() == {"openai": 1}


async def test_what_is_said_is_spoken_and_what_is_spoken_is_heard(setup: Setup) -> None:
    spoken = {"model": "speaker", "input": "hello", "voice": "alloy"}
    assert await setup.post("/api/v1/audio/speech", spoken) == SOUND
    form = aiohttp.FormData()
    form.add_field("file", SOUND, filename="hello.wav", content_type="audio/wav")

    async with setup.web.post("/api/v1/audio/transcriptions", data=form) as response:
        assert response.status == 200, await response.text()
        heard = (await response.json())["text"]

    assert "bytes in" in heard
    assert await setup.jobs() == {"openai": 2}


async def test_a_picture_is_painted_by_openais_api(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted = png(8, 8, 0xFF0000)
    monkeypatch.setattr("tests.support.openai_service.PICTURE", painted)
    (image,) = json.loads(await setup.post("/api/v1/images/generations", {"prompt": "a cat"}))
    async with setup.web.get(image["url"]) as response:
        assert await response.read() == painted
    assert await setup.jobs() == {"openai": 1}


async def test_a_picture_is_painted_by_comfyui_on_its_own_port(setup: Setup) -> None:
    config = "/api/v1/images/config"
    async with setup.web.get(config) as response:
        before = await response.json()
    await setup.post(f"{config}/update", before | {"IMAGE_GENERATION_ENGINE": "comfyui"})
    try:
        (image,) = json.loads(await setup.post("/api/v1/images/generations", {"prompt": "a cat"}))
        async with setup.web.get(image["url"]) as response:
            assert await response.read() == png(8, 8, 0xFF0000)
    finally:
        await setup.post(f"{config}/update", before)
    assert await setup.jobs() == {"comfyui": 1}


@needs_chromium
async def test_its_page_shows_a_chat_word_by_word_through_its_own_port(
    setup: Setup, tmp_path: Path
) -> None:
    no_news = {"ui": {"showChangelog": False}}
    await setup.post("/api/v1/users/user/settings/update", no_news)
    setup.openai.stream_gate.close()
    async with page(tmp_path) as tab:
        await tab.goto(f"http://127.0.0.1:{setup.ports.own}/?models=chatter")
        await tab.until("document.querySelector('#chat-input') !== null", within_s=60)
        status = await setup.broker.status()
        assert (status["loads"], await setup.jobs()) == (0, {})

        await tab.type("#chat-input", "hello there")
        await tab.press_enter()

        # The first word is there before the second has been sent.
        await setup.openai.stream_gate.reached(1, within_s=60)
        await tab.until("/You$/m.test(document.body.innerText)", within_s=60)
        setup.openai.stream_gate.open()
        await tab.until("/You said hello there/.test(document.body.innerText)", within_s=60)

        assert tab.failed == []
        (socket,) = tab.sockets
        assert socket.startswith(f"ws://127.0.0.1:{setup.ports.own}/ws/socket.io/")
        # The chat itself, and afterwards its title, tags and questions that may follow.
        await setup.broker.until("c['openai']['state'] == 'resident'")
        assert set(await setup.jobs()) == {"openai"}
