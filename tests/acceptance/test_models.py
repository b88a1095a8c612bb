"""Whose a model is, while nobody runs who could say so."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from tests.support.broker_process import BrokerProcess, serving
from tests.support.servers import free_port

PROGRAM = Path(__file__).parents[1] / "support" / "model_program.py"


def config(names: Path, **more: Any) -> dict[str, Any]:
    """A broker with one consumer, a program that only runs while it is loaded."""
    port = free_port()
    llm = {
        "url": f"http://127.0.0.1:{port}",
        "footprint_mib": 1000,
        "command": [sys.executable, str(PROGRAM), str(port), str(names)],
        "health": {"path": "/v1/models"},
        "models": {},
    }
    return {"gpu": {"backend": "simulated"}, "consumers": {"llm": {**llm, **more}}}


async def asked(broker: BrokerProcess, model: str) -> tuple[int, Any]:
    async with broker.session.post(
        f"{broker.url}/v1/chat/completions", json={"model": model}
    ) as response:
        return response.status, await response.json(content_type=None)


async def until_listed(broker: BrokerProcess, *names: str) -> None:
    listed: list[str] = []
    try:
        async with asyncio.timeout(15):
            while listed != list(names):
                async with broker.session.get(f"{broker.url}/v1/models") as response:
                    listed = [each["id"] for each in (await response.json())["data"]]
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"never {names}, but {listed}") from None


async def test_what_a_program_told_is_known_after_a_restart_before_it_runs_again(
    tmp_path: Path,
) -> None:
    names = tmp_path / "names"
    names.write_text("small big")
    settings = config(names)
    async with serving(tmp_path, settings) as broker:
        status, problem = await asked(broker, "small")
        assert (status, problem["type"]) == (404, "urn:mgpu:unknown-model")
        assert problem["detail"].endswith("llm could not be asked yet.")
        await broker.load("llm")
        await until_listed(broker, "small", "big")
        assert await broker.stop() == 0

    async with serving(tmp_path, settings) as broker:
        await until_listed(broker, "small", "big")
        assert (await broker.consumer("llm"))["state"] == "absent"
        assert await asked(broker, "big") == (200, {"served": "big"})

        await broker.unload("llm")
        names.write_text("other")
        await broker.load("llm")
        await until_listed(broker, "other")
        assert (await asked(broker, "small"))[0] == 404


async def test_the_only_one_that_can_have_a_model_is_started_for_it(tmp_path: Path) -> None:
    names = tmp_path / "names"
    names.write_text("small")
    paths = {"/v1/chat/completions": "/v1/chat/completions"}
    async with serving(tmp_path, config(names, paths=paths)) as broker:
        assert await asked(broker, "small") == (200, {"served": "small"})
