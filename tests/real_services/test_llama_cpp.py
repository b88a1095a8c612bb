"""llama.cpp's Python server as a program of the broker's: the real server, a model made up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_process import BrokerProcess, serving
from tests.support.installed import PYTHON, needs_python
from tests.support.servers import free_port

QUESTION = {"messages": [{"role": "user", "content": "the cat sat on"}], "max_tokens": 8}

pytestmark = [pytest.mark.real_services, needs_python]


@pytest.fixture
def model(models: Path) -> Path:
    return models / "tiny.gguf"


@pytest.fixture
async def broker(tmp_path: Path, model: Path) -> AsyncIterator[BrokerProcess]:
    port = free_port()
    options = f"--model {model} --port {port} --n_ctx 256 --n_threads 1 --chat_format chatml"
    llm = {
        "url": f"http://127.0.0.1:{port}",
        "footprint_mib": 4000,
        "command": f"{PYTHON} -m llama_cpp.server {options}",
        "health": {"path": "/v1/models"},
    }
    config = {
        "gpu": {"backend": "simulated"},
        "consumers": {"llm": llm},
        "routes": {"/v1/chat": {"consumer": "llm", "path": "/v1/chat"}},
    }
    async with serving(tmp_path, config) as running:
        yield running


async def chat(broker: BrokerProcess, **more: Any) -> tuple[int, str]:
    async with broker.session.post(
        f"{broker.url}/v1/chat/completions", json=QUESTION | more
    ) as response:
        return response.status, await response.text()


def servers(model: Path) -> list[int]:
    """The processes that serve this model; not those that keep them."""
    found = subprocess.run(
        ["pgrep", "-f", f"^{PYTHON} -m llama_cpp.server --model {model}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return [int(pid) for pid in found.stdout.split()]


async def test_it_is_started_for_a_chat_and_its_output_is_in_the_log(
    broker: BrokerProcess, model: Path
) -> None:
    assert (await broker.consumer("llm"))["state"] == "absent"
    assert servers(model) == []

    status, body = await chat(broker)

    assert status == 200
    answer = json.loads(body)
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] > 0
    assert (await broker.consumer("llm"))["state"] == "resident"
    assert len(servers(model)) == 1
    assert "Uvicorn running on" in broker.log


async def test_a_streamed_chat_ends_with_done(broker: BrokerProcess) -> None:
    status, body = await chat(broker, stream=True)

    assert status == 200
    events = [line.removeprefix("data: ") for line in body.splitlines() if line]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    assert deltas[0] == {"role": "assistant"}
    assert len(deltas) > 2


async def test_an_unload_ends_it_and_the_next_chat_starts_it_again(
    broker: BrokerProcess, model: Path
) -> None:
    await chat(broker)
    (first,) = servers(model)

    async with broker.session.post(f"{broker.url}/api/consumers/llm/unload") as response:
        assert response.status == 200, await response.text()
    assert servers(model) == []
    assert (await broker.consumer("llm"))["state"] == "absent"

    async with broker.session.post(f"{broker.url}/api/consumers/llm/load") as response:
        assert response.status == 200, await response.text()
    (second,) = servers(model)
    assert second != first
    assert (await chat(broker))[0] == 200


async def test_one_that_was_killed_is_noticed_and_started_again(
    broker: BrokerProcess, model: Path
) -> None:
    await chat(broker)
    (pid,) = servers(model)
    os.kill(pid, signal.SIGKILL)
    # Long before the next probe would have found out.
    await broker.until("c['llm']['state'] == 'absent'", within_s=3.0)
    assert (await chat(broker))[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_it_does_not_outlive_the_broker(
    broker: BrokerProcess, model: Path, number: signal.Signals
) -> None:
    await chat(broker)
    assert len(servers(model)) == 1
    broker.process.send_signal(number)
    async with asyncio.timeout(20):
        await broker.process.wait()
        while await asyncio.to_thread(servers, model):  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.05)
