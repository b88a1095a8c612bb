"""llama-swap by its preset, with a llama-server for each of two models of random weights."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.real_services.behind import Setup, behind
from tests.support.installed import (
    LLAMA_SERVER,
    LLAMA_SWAP,
    needs_llama_server,
    needs_llama_swap,
    needs_python,
)
from tests.support.real_program import real_program
from tests.support.recognition import recognised
from tests.support.servers import free_port

MESSAGES = [{"role": "user", "content": "the cat sat on"}]
LOOKS = (
    "/api/events",
    "/api/profiles",
    "/api/version",
    "/health",
    "/logs",
    "/metrics",
    "/models",
    "/running",
    "/v1/models",
)

pytestmark = [
    pytest.mark.real_services,
    pytest.mark.timeout(180),
    needs_python,
    needs_llama_server,
    needs_llama_swap,
]


@pytest.fixture
def swap(models: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of one that has `tiny` and `other`."""
    options = "--port ${PORT} --ctx-size 8192 --threads 1 --parallel 1"
    known = {
        name: {"cmd": f"{LLAMA_SERVER} --model {models / name}.gguf {options}"}
        for name in ("tiny", "other")
    }
    config = tmp_path / "swap.yaml"
    # It gives its servers the ports from here on.
    config.write_text(yaml.safe_dump({"startPort": free_port(), "models": known}))
    url = f"http://127.0.0.1:{free_port()}"
    command = [str(LLAMA_SWAP), "-config", str(config), "-listen", url.removeprefix("http://")]
    with real_program(command, up=f"{url}/health", log=tmp_path / "swap.log"):
        yield url
        # When it is killed, it leaves its servers behind.
        urllib.request.urlopen(f"{url}/unload", timeout=30).close()


@pytest.fixture(params=[{}], ids=lambda _: "")
async def setup(swap: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Setup]:
    """A parameter is more of the consumer."""
    async with behind(tmp_path, "swap", swap, preset="llama-swap", **request.param) as setup:
        yield setup


async def running(swap: str) -> dict[str, str]:
    """Its models that it has started, and how they are."""
    async with aiohttp.ClientSession() as session, session.get(f"{swap}/running") as response:
        return {each["model"]: each["state"] for each in (await response.json())["running"]}


async def chat(setup: Setup, model: str, **more: Any) -> str:
    question = {"model": model, "messages": MESSAGES, "max_tokens": 8, **more}
    async with setup.broker.session.post(
        f"{setup.broker.url}/v1/chat/completions", json=question
    ) as response:
        text = await response.text()
        assert response.status == 200, text
        return text


async def test_a_chat_starts_the_server_of_its_model_and_an_unload_ends_it(setup: Setup) -> None:
    broker, _, swap = setup
    assert (await broker.consumer("swap"))["state"] == "absent"

    answer = json.loads(await chat(setup, "tiny"))

    assert answer["usage"]["completion_tokens"] == 8
    assert await running(swap) == {"tiny": "ready"}
    assert (await broker.consumer("swap"))["state"] == "resident"

    await broker.unload("swap")

    assert await running(swap) == {}
    assert (await broker.consumer("swap"))["state"] == "absent"


async def test_another_model_takes_the_place_of_the_first(setup: Setup) -> None:
    await chat(setup, "tiny")
    await chat(setup, "other")
    assert await running(setup.url) == {"other": "ready"}
    assert (await setup.broker.consumer("swap"))["state"] == "resident"


@pytest.mark.parametrize(
    "setup", [{"parameters": {"model": "other"}}], indirect=True, ids=["other"]
)
async def test_with_a_model_a_load_is_over_when_it_is_there(setup: Setup) -> None:
    await setup.broker.load("swap")
    assert await running(setup.url) == {"other": "ready"}


async def test_an_unload_lets_a_stream_finish(setup: Setup) -> None:
    stream = asyncio.create_task(chat(setup, "tiny", stream=True, max_tokens=400))
    await setup.broker.until("c['swap']['running'] == 1")
    await setup.broker.unload("swap")
    assert await running(setup.url) == {}
    assert (await stream).rstrip().endswith("data: [DONE]")


async def test_a_client_that_leaves_stops_the_server_behind(setup: Setup) -> None:
    broker, own_port, swap = setup
    question = {"model": "tiny", "messages": MESSAGES, "max_tokens": 7000, "stream": True}
    async with broker.session.post(f"{own_port}/v1/chat/completions", json=question) as response:
        await response.content.readuntil(b"content")
    await broker.until("c['swap']['running'] == 0")
    async with asyncio.timeout(2):
        while True:
            async with broker.session.get(f"{swap}/upstream/tiny/slots") as response:
                (slot,) = await response.json()
            if not slot["is_processing"]:
                break
            await asyncio.sleep(0.05)


async def test_looks_start_nothing(setup: Setup) -> None:
    broker, own_port, swap = setup
    for path in LOOKS:
        # The stream of events has no end.
        async with broker.session.get(own_port + path) as response:
            assert response.status == 200, path
    assert await running(swap) == {}
    status = await broker.status()
    assert (status["loads"], status["consumers"]["swap"]["state"]) == (0, "absent")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/unload"),
        ("POST", "/api/models/unload"),
        ("POST", "/api/models/unload/tiny"),
    ],
)
async def test_unloads_that_do_not_wait_do_not_come_through(
    setup: Setup, method: str, path: str
) -> None:
    async with setup.broker.session.request(method, setup.own_port + path) as response:
        assert response.status == 403


async def test_it_is_recognised(swap: str) -> None:
    assert await recognised(swap) == ["llama-swap"]
    assert await running(swap) == {}
