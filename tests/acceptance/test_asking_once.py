"""A service that ends when it is asked to unload twice, and brokers that come and go before it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from aiohttp import web

from tests.support.broker_process import BrokerProcess, serving
from tests.support.services.base import empty, ok
from tests.support.services.language import SgLang


class Chatting(SgLang):
    """SGLang with the one thing more that it does badly on memory that it has given back."""

    routes: ClassVar = {**SgLang.routes, "POST /v1/chat/completions": "chat"}

    async def chat(self, _: web.Request) -> web.Response:
        if not self.held:
            self.broken = "it computed on memory that was given back"
            return empty(500)
        return ok({"choices": []})

    async def start_again(self) -> None:
        """As another process, which begins with its model."""
        await self.stop()
        self.put_in()
        await self.start()


@pytest.fixture
async def sglang() -> AsyncIterator[Chatting]:
    service = Chatting()
    await service.start()
    yield service
    await service.stop()


def config(service: Chatting, folder: Path) -> dict[str, Any]:
    llm = {"url": service.url, "preset": "sglang", "footprint_mib": 9000}
    return {
        "gpu": {"backend": "simulated", "simulated": {"directory": str(folder / "vram")}},
        "consumers": {"llm": llm},
        "routes": {"/v1/chat/completions": {"consumer": "llm", "path": "/v1/chat/completions"}},
    }


async def chat(broker: BrokerProcess) -> int:
    async with broker.session.post(f"{broker.url}/v1/chat/completions", json={}) as response:
        status: int = response.status
        return status


async def test_what_it_was_asked_last_is_known_to_the_next_broker_and_not_told_of_its_next_process(
    sglang: Chatting, tmp_path: Path
) -> None:
    async with serving(tmp_path, config(sglang, tmp_path)) as broker:
        assert await chat(broker) == 200
        await broker.unload("llm")
        broker.process.kill()
        await broker.process.wait()

    async with serving(tmp_path, config(sglang, tmp_path)) as broker:
        assert (await broker.consumer("llm"))["state"] == "absent"
        await broker.unload("llm")
        assert await chat(broker) == 200
        await broker.unload("llm")
        assert await broker.stop() == 0
    assert sglang.changes == [
        "POST /v1/chat/completions",
        "POST /release_memory_occupation",
        "POST /resume_memory_occupation",
        "POST /v1/chat/completions",
        "POST /release_memory_occupation",
    ]
    assert not sglang.held

    await sglang.start_again()
    async with serving(tmp_path, config(sglang, tmp_path)) as broker:
        assert (await broker.consumer("llm"))["state"] == "resident"
        assert await chat(broker) == 200
    assert sglang.changes[5:] == ["POST /v1/chat/completions"]
    assert sglang.broken is None
