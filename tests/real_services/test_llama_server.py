"""llama.cpp's llama-server by its two presets: with one model, and as a router of several."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.broker_process import BrokerProcess, serving
from tests.support.browser import Page, needs_chromium, page
from tests.support.installed import LLAMA_SERVER, needs_llama_server, needs_python
from tests.support.real_program import real_program
from tests.support.recognition import recognised
from tests.support.servers import free_port

TOKENS = 40
OPTIONS = f"--ctx-size 512 --threads 1 --parallel 1 --predict {TOKENS}"
SLEEPY = "--sleep-idle-seconds 1"
LOOKS = ("/health", "/v1/health", "/models", "/v1/models")

pytestmark = [
    pytest.mark.real_services,
    pytest.mark.timeout(180),
    needs_python,
    needs_llama_server,
]


@asynccontextmanager
async def broker_before(
    directory: Path, url: str, **consumer: Any
) -> AsyncIterator[tuple[BrokerProcess, str]]:
    """A broker with this one consumer, and the consumer's own port."""
    own_port = free_port()
    consumer |= {"url": url, "listen": f"127.0.0.1:{own_port}", "footprint_mib": 4000}
    config = {"gpu": {"backend": "simulated"}, "consumers": {"llm": consumer}}
    async with serving(directory, config) as broker:
        yield broker, f"http://127.0.0.1:{own_port}"


async def chat(broker: BrokerProcess, model: str, **more: Any) -> str:
    question: dict[str, Any] = {"model": model, "max_tokens": 8}
    question["messages"] = [{"role": "user", "content": "the cat sat on"}]
    async with broker.session.post(
        f"{broker.url}/v1/chat/completions", json=question | more
    ) as response:
        text = await response.text()
        assert response.status == 200, text
        return text


async def said(broker: BrokerProcess, model: str) -> str:
    answer = json.loads(await chat(broker, model))
    assert answer["model"] == model
    words: str = answer["choices"][0]["message"]["content"]
    return words


async def look(broker: BrokerProcess, url: str) -> Any:
    """What it answers to who looks."""
    async with broker.session.get(url) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def listed(broker: BrokerProcess) -> list[str]:
    return [each["id"] for each in (await look(broker, f"{broker.url}/v1/models"))["data"]]


async def until_listed(broker: BrokerProcess, *names: str) -> None:
    async with asyncio.timeout(15):
        while sorted(await listed(broker)) != sorted(names):  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.05)


async def has_a_page(url: str) -> None:
    """Skip where llama-server was built without one."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        if response.status != 200:
            pytest.skip("this llama-server was built without its page")


async def open_page(tab: Page, url: str, model: str) -> None:
    """Show llama-server's page, ready to type.

    Its service worker loads the page anew once it is there, and until the page has chosen its model
    it loses what is typed.
    """
    await tab.goto(url)
    await tab.until("navigator.serviceWorker.ready.then(() => true)")
    await tab.goto(url)
    chosen = f"[...document.querySelectorAll('button')].some(b => b.innerText.trim() === '{model}')"
    await tab.until(f"document.querySelector('textarea') !== null && {chosen}")


async def jobs(broker: BrokerProcess) -> int:
    """How many have been done; a load that somebody asks for is one too. None is running."""
    await broker.until("c['llm']['running'] == 0")
    async with broker.session.get(f"{broker.url}/metrics") as response:
        text = await response.text()
    (done,) = re.findall(
        r'^mgpu_jobs_total{consumer="llm",outcome="done"} (.*)$', text, re.MULTILINE
    )
    return int(float(done))


# Router mode


@contextmanager
def a_router_of(models: Path, log: Path, *options: str) -> Iterator[str]:
    """The URL of one with the models in this folder, and with those in no cache of its user's."""
    url = f"http://127.0.0.1:{free_port()}"
    command = f"{LLAMA_SERVER} --models-dir {models} --port {url.rpartition(':')[2]} {OPTIONS}"
    nothing = {"LLAMA_CACHE": str(log.parent / "cache")}
    with real_program([*command.split(), *options], up=f"{url}/health", log=log, env=nothing):
        yield url


@pytest.fixture(params=[()], ids=lambda _: "")
def router(request: pytest.FixtureRequest, models: Path, tmp_path: Path) -> Iterator[str]:
    """A router's URL; a parameter is more options."""
    with a_router_of(models, tmp_path / "router.log", *request.param) as url:
        yield url


def routing(
    tmp_path: Path, router: str, **more: Any
) -> AbstractAsyncContextManager[tuple[BrokerProcess, str]]:
    return broker_before(tmp_path, router, preset="llama-cpp-router", **more)


async def states(url: str) -> dict[str, str]:
    """What the router itself says of its models."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/models") as response:
        data = (await response.json())["data"]
    return {model["id"]: model["status"]["value"] for model in data}


async def until_states(url: str, **wanted: str) -> None:
    async with asyncio.timeout(15):
        while await states(url) != wanted:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.05)


async def test_a_chat_loads_its_model_and_an_unload_takes_out_every_model(
    router: str, tmp_path: Path
) -> None:
    async with routing(tmp_path, router) as (broker, _):
        assert (await broker.consumer("llm"))["state"] == "absent"
        await until_listed(broker, "other", "tiny")
        assert await said(broker, "tiny") != ""
        assert await states(router) == {"other": "unloaded", "tiny": "loaded"}
        assert (await broker.consumer("llm"))["state"] == "resident"
        assert await said(broker, "other") != ""

        await broker.unload("llm")

        assert await states(router) == {"other": "unloaded", "tiny": "unloaded"}
        assert (await broker.consumer("llm"))["state"] == "absent"
        assert await said(broker, "other") != ""


async def test_looks_at_a_router_load_nothing(router: str, tmp_path: Path) -> None:
    async with routing(tmp_path, router) as (broker, own_port):
        for path in LOOKS:
            await look(broker, own_port + path)
        status = await broker.status()
    assert (status["loads"], status["consumers"]["llm"]["state"]) == (0, "absent")
    assert await states(router) == {"other": "unloaded", "tiny": "unloaded"}


async def test_with_a_model_a_load_is_over_when_it_is_there(router: str, tmp_path: Path) -> None:
    async with routing(tmp_path, router, parameters={"model": "tiny"}) as (broker, _):
        await broker.load("llm")
        assert await states(router) == {"other": "unloaded", "tiny": "loaded"}
        await broker.unload("llm")
        assert await states(router) == {"other": "unloaded", "tiny": "unloaded"}
        await broker.load("llm")
        assert await said(broker, "tiny") != ""


async def test_a_model_that_the_router_does_not_have_is_a_failed_load(
    router: str, tmp_path: Path
) -> None:
    async with (
        routing(tmp_path, router, parameters={"model": "gone"}) as (broker, _),
        broker.session.post(f"{broker.url}/api/consumers/llm/load") as response,
    ):
        assert (response.status, (await response.json())["type"]) == (502, "urn:mgpu:load-failed")


async def test_an_unload_lets_a_stream_finish(router: str, tmp_path: Path) -> None:
    async with routing(tmp_path, router) as (broker, _):
        stream = asyncio.create_task(chat(broker, "tiny", stream=True, max_tokens=400))
        await broker.until("c['llm']['running'] == 1")
        await broker.unload("llm")
        assert await states(router) == {"other": "unloaded", "tiny": "unloaded"}
        assert (await stream).rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize("router", [SLEEPY.split()], indirect=True, ids=["sleepy"])
async def test_a_model_that_sleeps_is_there_until_it_is_unloaded(
    router: str, tmp_path: Path
) -> None:
    async with routing(tmp_path, router) as (broker, own_port):
        await chat(broker, "tiny")
        await until_states(router, other="unloaded", tiny="sleeping")
        for path in LOOKS:
            await look(broker, own_port + path)
        assert await states(router) == {"other": "unloaded", "tiny": "sleeping"}
        assert (await broker.consumer("llm"))["state"] == "resident"

        await broker.unload("llm")

        assert await states(router) == {"other": "unloaded", "tiny": "unloaded"}
        assert await said(broker, "tiny") != ""


@needs_chromium
async def test_a_routers_open_page_is_no_job_and_what_is_typed_there_is_one(
    router: str, tmp_path: Path
) -> None:
    await has_a_page(router)
    async with routing(tmp_path, router) as (broker, own_port), page(tmp_path) as tab:
        await open_page(tab, own_port, "other")
        assert await jobs(broker) == 0
        assert await states(router) == {"other": "unloaded", "tiny": "unloaded"}

        await tab.type("textarea", "what sat on the mat")
        await tab.press_enter()

        await tab.until(f"document.body.innerText.includes('{TOKENS} tokens')", within_s=60)
        assert await jobs(broker) == 1
        assert "loaded" in (await states(router)).values()
        assert not [each for each in tab.failed if not each.endswith("/tools")]


async def test_a_router_is_recognised(router: str) -> None:
    assert await recognised(router) == ["llama-cpp-router"]


async def test_a_router_that_has_no_model_yet_is_recognised(tmp_path: Path) -> None:
    (nothing := tmp_path / "models").mkdir()
    with a_router_of(nothing, tmp_path / "router.log") as url:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/models") as response:
            assert (await response.json())["data"] == []
        assert await recognised(url) == ["llama-cpp-router"]


# One model


def single(
    directory: Path, models: Path, options: str = ""
) -> AbstractAsyncContextManager[tuple[BrokerProcess, str]]:
    """The broker runs it as a program of its own."""
    port = free_port()
    command = f"{LLAMA_SERVER} --model {models / 'tiny.gguf'} --alias tiny --port {port}"
    return broker_before(
        directory,
        f"http://127.0.0.1:{port}",
        preset="llama-cpp",
        command=f"{command} {OPTIONS} {options}",
        stop_grace_s=5,
    )


async def test_it_is_started_for_a_chat_stopped_and_started_again(
    models: Path, tmp_path: Path
) -> None:
    async with single(tmp_path, models) as (broker, own_port):
        assert (await broker.consumer("llm"))["state"] == "absent"
        await broker.load("llm")
        await until_listed(broker, "tiny")
        assert await said(broker, "tiny") != ""
        for path in (*LOOKS, "/props"):
            await look(broker, own_port + path)

        await broker.unload("llm")
        async with broker.session.get(f"{own_port}/health") as response:
            assert response.status == 502, "nobody listens"

        assert await said(broker, "tiny") != ""
        assert (await broker.status())["loads"] == 2


async def test_one_that_sleeps_is_absent_and_the_next_chat_wakes_it(
    models: Path, tmp_path: Path
) -> None:
    async with single(tmp_path, models, SLEEPY) as (broker, own_port):
        await broker.load("llm")
        await until_listed(broker, "tiny")
        assert await said(broker, "tiny") != ""
        await broker.until("c['llm']['state'] == 'absent'", within_s=20)

        for path in (*LOOKS, "/props"):
            await look(broker, own_port + path)
        assert (await look(broker, f"{own_port}/props"))["is_sleeping"] is True

        assert await said(broker, "tiny") != ""
        assert (await broker.consumer("llm"))["state"] == "resident"


async def test_a_client_that_leaves_stops_it_even_if_it_asks_to_be_able_to_come_back(
    models: Path, tmp_path: Path
) -> None:
    question = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 7000}
    # What its page sends: without a broker it goes on then, to its end.
    headers = {"X-Conversation-Id": "7::tiny"}
    async with single(tmp_path, models, "--ctx-size 8192 --predict -1") as (broker, own_port):
        async with broker.session.post(
            f"{own_port}/v1/chat/completions", json=question | {"stream": True}, headers=headers
        ) as response:
            await response.content.readuntil(b"sat")
            assert (await look(broker, f"{own_port}/props"))["total_slots"] == 1
        await broker.until("c['llm']['running'] == 0")
        async with asyncio.timeout(2):
            while (await look(broker, f"{own_port}/slots"))[0]["is_processing"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


@needs_chromium
async def test_the_page_of_one_that_sleeps_does_not_wake_it_before_something_is_typed(
    models: Path, tmp_path: Path
) -> None:
    async with single(tmp_path, models, SLEEPY) as (broker, own_port), page(tmp_path) as tab:
        await broker.load("llm")
        await has_a_page(own_port)
        await broker.until("c['llm']['state'] == 'absent'", within_s=20)
        await open_page(tab, own_port, "tiny")
        assert await jobs(broker) == 1, "the load"
        assert (await look(broker, f"{own_port}/props"))["is_sleeping"] is True

        await tab.type("textarea", "what sat on the mat")
        await tab.press_enter()

        await tab.until(f"document.body.innerText.includes('{TOKENS} tokens')", within_s=60)
        assert await jobs(broker) == 2


async def test_one_with_a_single_model_is_recognised(models: Path, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    options = f"--model {models / 'tiny.gguf'} --port {url.rpartition(':')[2]} {OPTIONS}".split()
    with real_program([LLAMA_SERVER, *options], up=f"{url}/health", log=tmp_path / "log"):
        assert await recognised(url) == ["llama-cpp"]
