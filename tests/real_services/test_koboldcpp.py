"""KoboldCpp by its preset, with two models of random weights."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.real_services.behind import Setup, behind
from tests.support.broker_process import BrokerProcess, serving
from tests.support.browser import needs_chromium, page
from tests.support.installed import KOBOLDCPP, needs_koboldcpp, needs_python
from tests.support.real_program import real_program
from tests.support.recognition import recognised
from tests.support.servers import free_port

MESSAGES = [{"role": "user", "content": "the cat sat on"}]
LONG = 4000
"""Tokens that take some seconds on a CPU."""
LOOKS = (
    "/",
    "/.well-known/serviceinfo",
    "/api/extra/perf",
    "/api/extra/preloadstory",
    "/api/extra/true_max_context_length",
    "/api/extra/version",
    "/api/v1/config/max_context_length",
    "/api/v1/info/version",
    "/api/v1/model",
    "/lcpp/",
    "/lcpp/props",
    "/manifest.json",
    "/musicui",
    "/props",
    "/sdapi/v1/sd-models",
    "/sdui",
    "/speakers_list",
    "/v1/models",
)

pytestmark = [
    pytest.mark.real_services,
    pytest.mark.timeout(180),
    needs_python,
    needs_koboldcpp,
]


def command(models: Path, port: int) -> list[str]:
    options = f"--model {models / 'tiny.gguf'} --admin --admindir {models} --contextsize 8192"
    where = f"--host 127.0.0.1 --port {port} --usecpu --threads 1 --skiplauncher --quiet"
    return [str(KOBOLDCPP), *options.split(), *where.split()]


@pytest.fixture(scope="module")
def kobold(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one that has `tiny` loaded."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("koboldcpp") / "log"
    with real_program(command(models, port), up=f"{url}/api/extra/version", log=log):
        yield url


@pytest.fixture(params=[{}], ids=lambda _: "")
async def setup(
    kobold: str, request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Setup]:
    """A parameter is more of the consumer."""
    async with behind(tmp_path, "kobold", kobold, preset="koboldcpp", **request.param) as setup:
        yield setup


async def look(broker: BrokerProcess, url: str) -> Any:
    async with broker.session.get(url) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def loaded(setup: Setup) -> str:
    """What it says itself, as soon as it is there again."""
    async with asyncio.timeout(15):
        while True:
            try:
                model = await look(setup.broker, f"{setup.url}/api/v1/model")
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
            else:
                return str(model["result"])


async def until_idle(setup: Setup, *, idle: bool = True, within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while (await look(setup.broker, f"{setup.url}/api/extra/perf"))["idle"] != idle:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def said(setup: Setup, tokens: int = 8) -> str:
    question = {"messages": MESSAGES, "max_tokens": tokens}
    async with setup.broker.session.post(
        f"{setup.own_port}/v1/chat/completions", json=question
    ) as response:
        assert response.status == 200, await response.text()
        answer = await response.json()
    words: str = answer["choices"][0]["message"]["content"]
    return words


def processes(port: int) -> list[str]:
    """Those of the one that listens there."""
    found = subprocess.run(
        ["pgrep", "-f", "--", f"--port {port} --usecpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.split()


async def test_an_unload_takes_the_model_out_and_the_next_chat_brings_it_back(
    setup: Setup,
) -> None:
    assert await said(setup) != ""
    assert (await setup.broker.consumer("kobold"))["state"] == "resident"

    await setup.broker.unload("kobold")

    assert await loaded(setup) == "inactive"
    assert (await setup.broker.consumer("kobold"))["state"] == "absent"
    assert await said(setup) != ""
    assert await loaded(setup) == "koboldcpp/tiny"
    # One after the other, as nobody would.
    await setup.broker.unload("kobold")
    await setup.broker.load("kobold")
    assert await said(setup) != ""


@pytest.mark.parametrize(
    "setup", [{"parameters": {"config": "other.gguf"}}], indirect=True, ids=["other"]
)
async def test_what_a_load_brings_in_may_be_another_model(setup: Setup) -> None:
    await setup.broker.unload("kobold")
    assert await said(setup) != ""
    assert await loaded(setup) == "koboldcpp/other"


async def test_an_unload_waits_for_what_did_not_come_through_the_broker(setup: Setup) -> None:
    await setup.broker.load("kobold")
    story = {"prompt": "the cat sat on", "max_length": LONG, "max_context_length": 8192}

    async def elsewhere() -> int:
        async with setup.broker.session.post(
            f"{setup.url}/api/v1/generate", json=story
        ) as response:
            return int((await response.json())["results"][0]["completion_tokens"])

    writing = asyncio.create_task(elsewhere())
    await until_idle(setup, idle=False)

    await setup.broker.unload("kobold")

    assert await writing == LONG
    assert await loaded(setup) == "inactive"


async def test_a_client_that_leaves_its_stream_stops_it(setup: Setup) -> None:
    question = {"messages": MESSAGES, "max_tokens": LONG, "stream": True}
    async with setup.broker.session.post(
        f"{setup.own_port}/v1/chat/completions", json=question
    ) as response:
        await response.content.readuntil(b"delta")
        assert (await look(setup.broker, f"{setup.url}/api/extra/perf"))["idle"] == 0
    await setup.broker.until("c['kobold']['running'] == 0")
    await until_idle(setup, within_s=1.0)


async def test_looks_bring_nothing_back(setup: Setup) -> None:
    await setup.broker.unload("kobold")
    assert await loaded(setup) == "inactive"
    loads = (await setup.broker.status())["loads"]
    for path in LOOKS:
        async with setup.broker.session.get(setup.own_port + path) as response:
            assert response.status == 200, path
    assert (await setup.broker.status())["loads"] == loads
    assert await loaded(setup) == "inactive"


@needs_chromium
async def test_its_page_brings_nothing_back_before_something_is_typed(
    setup: Setup, tmp_path: Path
) -> None:
    await setup.broker.unload("kobold")
    assert await loaded(setup) == "inactive"
    async with page(tmp_path) as tab:
        await tab.goto(setup.own_port)
        await tab.until("document.body.innerText.includes('KoboldCpp 1.')")
        assert await loaded(setup) == "inactive"
        await setup.broker.load("kobold")
        await tab.goto(setup.own_port)
        await tab.until("document.body.innerText.includes('koboldcpp/tiny')")

        await tab.type("#input_text", "what sat on the mat")
        await tab.press_enter()

        await setup.broker.until("c['kobold']['running'] == 1")
        await setup.broker.until("c['kobold']['running'] == 0")
        await tab.until("/what sat on the mat\\s+(the|a|cat)/.test(document.body.innerText)")
        assert tab.failed == []


@pytest.mark.parametrize(
    "path",
    ["/api/admin/reload_config", "/x/api/admin/clear_state", "/api/extra/shutdown"],
)
async def test_what_would_stop_or_reload_it_does_not_come_through(setup: Setup, path: str) -> None:
    body = json.dumps({"filename": "unload_model"})
    async with setup.broker.session.post(setup.own_port + path, data=body) as response:
        assert response.status == 403


async def test_as_a_program_of_the_brokers_it_leaves_no_process_behind(
    models: Path, tmp_path: Path
) -> None:
    port, own_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    consumer = {"url": url, "listen": f"127.0.0.1:{own_port}", "footprint_mib": 4000}
    consumer |= {"preset": "koboldcpp", "command": command(models, port)}
    config = {"gpu": {"backend": "simulated"}, "consumers": {"kobold": consumer}}
    async with serving(tmp_path, config) as broker:
        setup = Setup(broker, f"http://127.0.0.1:{own_port}", url)
        assert (await broker.consumer("kobold"))["state"] == "absent"
        # It came with its model, and a load would have been a restart in the middle of this.
        assert await said(setup, LONG) != ""
        await broker.unload("kobold")
        assert await loaded(setup) == "inactive", "its first process stays"
        assert await said(setup) != ""
        assert len(processes(port)) > 1
        await broker.stop()
        assert processes(port) == []


async def test_it_is_recognised_with_a_model_and_without(setup: Setup) -> None:
    await setup.broker.load("kobold")
    assert await recognised(setup.url) == ["koboldcpp"]
    await setup.broker.unload("kobold")
    assert await loaded(setup) == "inactive"
    assert await recognised(setup.url) == ["koboldcpp"]
