"""vLLM by its preset, on the CPU: the worker keeps its weights there when the engine sleeps."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.real_services.behind import Setup, behind
from tests.support.broker_process import BrokerProcess, serving
from tests.support.installed import VLLM, needs_vllm
from tests.support.real_program import lives, real_program
from tests.support.recognition import recognised
from tests.support.servers import free_port

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    # Or it cannot say how it is while it computes.
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",
}
DEV_MODE = {"VLLM_SERVER_DEV_MODE": "1"}
"""On the CPU its routes of sleep are there without ``--enable-sleep-mode``, which is refused."""
LOOKS = ("/health", "/is_sleeping", "/load", "/metrics", "/ping", "/v1/models", "/version")
LONG = 2000
"""Tokens, which take a quarter of a minute or more."""
MESSAGES = [{"role": "user", "content": "the cat sat on"}]

pytestmark = [pytest.mark.real_services, pytest.mark.timeout(300), needs_vllm]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm") / "tiny"
    script = Path(__file__).with_name("tiny_llama.py")
    subprocess.run([VLLM, script, folder], check=True, timeout=120)
    return folder


def command(model: Path, port: int) -> list[str]:
    options = f"--served-model-name tiny --host 127.0.0.1 --port {port} --enforce-eager"
    server = [str(VLLM), "-m", "vllm.entrypoints.openai.api_server"]
    return [*server, "--model", str(model), *options.split(), "--max-num-seqs", "4"]


@pytest.fixture(scope="module")
def vllm(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one with the routes of sleep."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("vllm") / "log"
    env = ENVIRONMENT | DEV_MODE
    with real_program(command(model, port), up=f"{url}/health", log=log, env=env):
        yield url


@pytest.fixture
async def setup(vllm: str, tmp_path: Path) -> AsyncIterator[Setup]:
    async with behind(tmp_path, "vllm", vllm, preset="vllm") as setup:
        yield setup


async def chat(url: str, **more: Any) -> str:
    question = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8, "ignore_eos": True}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=question | more) as response,
    ):
        text = await response.text()
        assert response.status == 200, text
        return text


async def tokens(url: str, number: int) -> int:
    """How many it has said, of so many that were asked for."""
    answer = json.loads(await chat(url, max_tokens=number))
    return int(answer["usage"]["completion_tokens"])


async def status_of(url: str, method: str = "GET") -> int:
    async with aiohttp.ClientSession() as session, session.request(method, url) as response:
        return response.status


async def sleeps(url: str) -> bool:
    """What it says itself."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/is_sleeping") as response,
    ):
        return bool((await response.json())["is_sleeping"])


async def running(url: str) -> float:
    """How many chats, by its metrics."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        text = await response.text()
    (number,) = re.findall(r"^vllm:num_requests_running{.*} (.*)$", text, re.MULTILINE)
    return float(number)


async def until_running(url: str, number: float) -> None:
    async with asyncio.timeout(10):
        while await running(url) != number:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.05)


async def until_listed(broker: BrokerProcess) -> None:
    async with asyncio.timeout(15):
        while True:
            async with broker.session.get(f"{broker.url}/v1/models") as response:
                if [each["id"] for each in (await response.json())["data"]] == ["tiny"]:
                    return
            await asyncio.sleep(0.05)


async def test_it_is_put_to_sleep_and_woken_for_the_next_chat(setup: Setup) -> None:
    await until_listed(setup.broker)
    assert await tokens(setup.broker.url, 8) == 8
    assert (await setup.broker.consumer("vllm"))["state"] == "resident"

    await setup.broker.unload("vllm")

    assert await sleeps(setup.url)
    assert (await setup.broker.consumer("vllm"))["state"] == "absent"
    assert [await status_of(setup.own_port + path) for path in LOOKS] == [200] * len(LOOKS)
    assert await sleeps(setup.url), "looks do not wake it"
    assert await tokens(setup.broker.url, 8) == 8
    assert not await sleeps(setup.url)


async def test_a_streamed_chat_comes_word_by_word_and_ends_with_done(setup: Setup) -> None:
    lines = (await chat(setup.own_port, stream=True)).splitlines()
    events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    words = [json.loads(event)["choices"][0]["delta"].get("content") for event in events[:-1]]
    assert len([word for word in words if word]) == 8


async def test_an_unload_waits_for_a_chat_that_did_not_come_through_the_broker(
    setup: Setup,
) -> None:
    await setup.broker.load("vllm")
    elsewhere = asyncio.create_task(tokens(setup.url, LONG))
    await setup.broker.until("c['vllm']['busy']", within_s=20)

    await setup.broker.unload("vllm")

    assert await elsewhere == LONG
    assert await sleeps(setup.url)


async def test_a_client_that_leaves_stops_it(setup: Setup) -> None:
    await setup.broker.load("vllm")
    leaving = asyncio.create_task(tokens(setup.own_port, LONG))
    await until_running(setup.url, 1)

    leaving.cancel()

    async with asyncio.timeout(3):
        await until_running(setup.url, 0)
    await setup.broker.until("c['vllm']['running'] == 0")


@pytest.mark.parametrize("path", ["sleep", "wake_up", "pause", "abort_requests", "collective_rpc"])
async def test_what_would_stop_the_others_chats_is_refused(setup: Setup, path: str) -> None:
    assert await status_of(f"{setup.own_port}/{path}", "POST") == 403


async def test_it_is_recognised(vllm: str) -> None:
    assert await recognised(vllm) == ["vllm"]


async def test_without_sleep_it_is_started_and_stopped_and_leaves_nothing_behind(
    model: Path, tmp_path: Path
) -> None:
    port = free_port()
    consumer = {"url": f"http://127.0.0.1:{port}", "preset": "vllm", "footprint_mib": 4000}
    consumer |= {"load": None, "unload": None, "resident": None}
    consumer |= {"command": command(model, port)}
    config = {
        "gpu": {"backend": "simulated"},
        "consumers": {"vllm": consumer},
        "models": {"tiny": "vllm"},
    }
    async with serving(tmp_path, config, env=ENVIRONMENT) as broker:
        assert await tokens(broker.url, 8) == 8
        processes = set(re.findall(r"\((?:APIServer|EngineCore) pid=(\d+)\)", broker.log))
        assert [lives(pid) for pid in processes] == [True, True]

        await broker.unload("vllm")

        assert [lives(pid) for pid in processes] == [False, False]
        assert (await broker.consumer("vllm"))["state"] == "absent"
