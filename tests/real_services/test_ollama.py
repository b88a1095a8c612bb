"""ollama by its preset, with two models of random weights.

It has to find a GPU, since only what is in VRAM counts as resident. To its Vulkan backend Mesa's
llvmpipe is one, with GGML_VK_VISIBLE_DEVICES=0; the first load of all compiles for half a minute
there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.real_services.behind import Setup, behind
from tests.support.installed import OLLAMA, needs_ollama, needs_python
from tests.support.real_program import real_program
from tests.support.recognition import recognised
from tests.support.servers import free_port

MESSAGES = [{"role": "user", "content": "the cat sat on"}]
ENDLESS = {"num_predict": 7000, "num_ctx": 8192, "temperature": 100, "top_k": 12, "top_p": 1}
"""Two minutes and a half on a CPU, any word after any other: ollama cuts off who repeats one."""
LOOKS = (
    "/",
    "/api/experimental/model-recommendations",
    "/api/ps",
    "/api/status",
    "/api/tags",
    "/api/version",
    "/v1/models",
    "/v1/models/tiny",
)

pytestmark = [
    pytest.mark.real_services,
    pytest.mark.timeout(300),
    needs_python,
    needs_ollama,
]


def ask(url: str, body: Any = None) -> Any:
    """The last line of its answer."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=120) as response:
        lines = response.read().splitlines()
    return json.loads(lines[-1]) if lines else None


def make(ollama: str, name: str, weights: bytes) -> None:
    digest = f"sha256:{hashlib.sha256(weights).hexdigest()}"
    ask(f"{ollama}/api/blobs/{digest}", weights)
    model = {"model": name, "files": {f"{name}.gguf": digest}, "template": "{{ .Prompt }}"}
    made = ask(f"{ollama}/api/create", {**model, "parameters": {"num_ctx": 512}})
    assert made == {"status": "success"}


@pytest.fixture(scope="module")
def ollama(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one that has `tiny` and `other`."""
    home = tmp_path_factory.mktemp("ollama")
    url = f"http://127.0.0.1:{free_port()}"
    env = {"HOME": home, "OLLAMA_MODELS": home / "models", "OLLAMA_HOST": url, "OLLAMA_NO_CLOUD": 1}
    told = {name: str(value) for name, value in env.items()}
    with real_program([OLLAMA, "serve"], up=url, log=home / "log", cwd=home, env=told):
        for name in ("tiny", "other"):
            make(url, name, (models / f"{name}.gguf").read_bytes())
        ask(f"{url}/api/generate", {"model": "tiny", "keep_alive": "1s"})
        (loaded,) = ask(f"{url}/api/ps")["models"]
        if not loaded["size_vram"]:
            pytest.skip("this ollama finds no GPU")
        yield url


@pytest.fixture
async def setup(ollama: str, tmp_path: Path) -> AsyncIterator[Setup]:
    await until_in_vram(ollama)
    async with behind(tmp_path, "ollama", ollama, preset="ollama") as setup:
        yield setup
        await setup.broker.unload("ollama")


async def in_vram(ollama: str) -> set[str]:
    models = (await asyncio.to_thread(ask, f"{ollama}/api/ps"))["models"]
    return {model["name"].removesuffix(":latest") for model in models}


async def until_in_vram(ollama: str, *names: str) -> None:
    async with asyncio.timeout(30):
        while await in_vram(ollama) != set(names):  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.05)


async def post(url: str, body: Any) -> str:
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        text = await response.text()
        assert response.status == 200, text
        return text


async def status_of(method: str, url: str, body: Any = None) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, json=body) as response,
    ):
        return response.status


def chat(model: str, **more: Any) -> dict[str, Any]:
    """The body of one, which makes 8 tokens unless its options say otherwise."""
    return {"model": model, "messages": MESSAGES, "options": {"num_predict": 8}, **more}


async def test_a_chat_by_its_own_api_loads_its_model_and_an_unload_takes_it_out(
    setup: Setup,
) -> None:
    broker, own_port, ollama = setup
    assert (await broker.consumer("ollama"))["state"] == "absent"

    answer = json.loads(await post(f"{own_port}/api/chat", chat("tiny", stream=False)))

    assert (answer["eval_count"], answer["done_reason"]) == (8, "length")
    assert await in_vram(ollama) == {"tiny"}
    assert (await broker.consumer("ollama"))["state"] == "resident"

    await broker.unload("ollama")

    assert await in_vram(ollama) == set()
    assert (await broker.consumer("ollama"))["state"] == "absent"


async def test_a_chat_by_openais_api_goes_by_its_model(setup: Setup) -> None:
    broker, _, ollama = setup
    question = {"model": "other", "messages": MESSAGES, "max_tokens": 8}
    answer = json.loads(await post(f"{broker.url}/v1/chat/completions", question))
    assert answer["usage"]["completion_tokens"] == 8
    assert await in_vram(ollama) == {"other"}


async def test_the_model_that_is_named_is_loaded_before_anybody_asks(
    ollama: str, tmp_path: Path
) -> None:
    await until_in_vram(ollama)
    parameters = {"model": "other"}
    async with behind(
        tmp_path, "ollama", ollama, preset="ollama", parameters=parameters, pinned=True
    ) as (broker, own_port, _):
        await broker.until("c['ollama']['state'] == 'resident'", within_s=60)
        assert await in_vram(ollama) == {"other"}
        answer = json.loads(await post(f"{own_port}/api/chat", chat("other", stream=False)))
        assert answer["done_reason"] == "length"

        await broker.unload("ollama")
        assert await in_vram(ollama) == set()
        await broker.load("ollama")
        assert await in_vram(ollama) == {"other"}
        await broker.unload("ollama")


async def test_a_model_that_is_not_there_is_a_failed_load(ollama: str, tmp_path: Path) -> None:
    parameters = {"model": "no-such"}
    async with (
        behind(tmp_path, "ollama", ollama, preset="ollama", parameters=parameters) as (
            broker,
            _,
            _,
        ),
        broker.session.post(f"{broker.url}/api/consumers/ollama/load") as response,
    ):
        assert response.status == 502
        assert "answered 404" in (await response.json())["detail"]


async def test_streams_end_as_they_should(setup: Setup) -> None:
    broker, own_port, _ = setup
    lines = (await post(f"{own_port}/api/chat", chat("tiny"))).splitlines()
    assert [json.loads(line)["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert len(lines) > 3

    question = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8, "stream": True}
    events = (await post(f"{broker.url}/v1/chat/completions", question)).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert len(events) > 5


async def test_an_unload_takes_out_every_model(setup: Setup) -> None:
    broker, own_port, ollama = setup
    for model in ("tiny", "other"):
        await post(f"{own_port}/api/chat", chat(model))
    assert await in_vram(ollama) == {"tiny", "other"}
    await broker.unload("ollama")
    assert await in_vram(ollama) == set()


async def test_an_unload_lets_somebody_elses_stream_end(setup: Setup) -> None:
    broker, own_port, ollama = setup
    await post(f"{own_port}/api/chat", chat("tiny"))
    question = chat("tiny", options={"num_predict": 50})
    async with broker.session.post(f"{ollama}/api/chat", json=question) as response:
        await response.content.readline()
        await broker.unload("ollama")
        assert await in_vram(ollama) == set()
        last = (await response.text()).splitlines()[-1]
    assert json.loads(last)["done_reason"] == "length"


async def test_a_client_that_leaves_stops_it(setup: Setup) -> None:
    broker, own_port, ollama = setup
    question = chat("tiny", options=ENDLESS)
    async with broker.session.post(f"{own_port}/api/chat", json=question) as response:
        await response.content.readline()
    await broker.until("c['ollama']['running'] == 0")
    async with asyncio.timeout(15):
        await broker.unload("ollama")
    assert await in_vram(ollama) == set()


async def test_a_model_that_was_deleted_while_loaded_stays_for_as_long_as_it_was_to(
    setup: Setup, models: Path
) -> None:
    broker, own_port, ollama = setup
    doomed = (models / "tiny.gguf").read_bytes().replace(b"tiny", b"doom")
    await asyncio.to_thread(make, ollama, "doomed", doomed)
    await post(f"{own_port}/api/chat", chat("doomed", keep_alive="5s"))
    assert await status_of("DELETE", f"{ollama}/api/delete", {"model": "doomed"}) == 200
    assert await in_vram(ollama) == {"doomed"}

    await broker.unload("ollama")

    assert await in_vram(ollama) == set()


async def test_looks_load_nothing(setup: Setup) -> None:
    broker, own_port, ollama = setup
    for path in LOOKS:
        assert await status_of("GET", own_port + path) == 200, path
    assert await status_of("HEAD", own_port) == 200
    assert await status_of("POST", f"{own_port}/api/show", {"model": "tiny"}) == 200
    assert await in_vram(ollama) == set()
    status = await broker.status()
    assert (status["loads"], status["consumers"]["ollama"]["state"]) == (0, "absent")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/delete"),
        ("DELETE", "/api/user/keys/mine"),
        ("POST", "/api/blobs/sha256:0"),
        ("POST", "/api/copy"),
        ("POST", "/api/create"),
        ("POST", "/api/pull"),
        ("POST", "/api/push"),
        ("POST", "/api/signout"),
    ],
)
async def test_what_changes_it_does_not_come_through(setup: Setup, method: str, path: str) -> None:
    assert await status_of(method, setup.own_port + path, {"model": "tiny"}) == 403


async def test_the_broker_lists_its_models(setup: Setup) -> None:
    async with setup.broker.session.get(f"{setup.broker.url}/v1/models/tiny") as response:
        assert (await response.json())["id"] == "tiny:latest"
    async with setup.broker.session.get(f"{setup.broker.url}/v1/models") as response:
        listed = {each["id"] for each in (await response.json())["data"]}
    assert listed == {"tiny:latest", "other:latest"}


async def test_it_is_recognised(ollama: str) -> None:
    assert await recognised(ollama) == ["ollama"]
