"""Load options: what a consumer is loaded with is part of what is resident."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.acceptance.conftest import Machine
from tests.support.broker_process import BrokerProcess
from tests.support.standin_consumer import StandinConsumer

LOAD = {"path": "/load", "timeout_s": 10, "body": {"model": "chat", "options": {"ctx": 4096}}}
LONG = {"consumer": "llm", "path": "/job", "load_body": {"options": {"ctx": 32768}}}


def told(ctx: int) -> dict[str, Any]:
    return {"model": "chat", "options": {"ctx": ctx}}


async def start(machine: Machine) -> tuple[StandinConsumer, BrokerProcess]:
    llm = await machine.consumer("llm", 8000, config={"load": LOAD})
    routes = {
        "/v1/long": LONG,
        "/v1/short": {**LONG, "load_body": {"options": {"ctx": 4096}}},
    }
    return llm, await machine.broker(routes=routes)


async def ask(broker: BrokerProcess, route: str, wants: str = "") -> int:
    url = f"{broker.url}/v1/{route}"
    async with broker.session.post(url, data=b"work", headers={"X-Wants": wants}) as response:
        await response.read()
        return response.status


async def test_a_route_has_its_consumer_loaded_with_its_own_options(machine: Machine) -> None:
    llm, broker = await start(machine)

    assert await ask(broker, "llm") == 200
    assert await ask(broker, "short") == 200  # what is configured anyway
    assert await ask(broker, "long") == 200
    assert await ask(broker, "llm") == 200  # wants nothing, and takes what is there

    assert llm.told == [told(4096), told(32768)]
    assert (llm.loads, llm.unloads) == (2, 1)
    assert (await broker.status())["evictions"] == 0


async def test_jobs_in_a_crowd_compute_with_what_they_asked_for_and_are_served_together(
    machine: Machine,
) -> None:
    llm, broker = await start(machine)
    llm.job_gate.close()
    first = asyncio.create_task(ask(broker, "short", "4096"))
    await llm.job_gate.reached()
    crowd = [asyncio.create_task(ask(broker, "long", "32768"))]
    await broker.until("c['llm']['queued'] == 1")
    for route, wants in [("short", "4096"), ("long", "32768")] * 4:
        crowd.append(asyncio.create_task(ask(broker, route, wants)))
    await broker.until("c['llm']['queued'] == 9")
    llm.job_gate.open()

    assert await asyncio.gather(first, *crowd) == [200] * 10
    assert [wants for wants, _ in llm.served_with] == ["4096"] * 5 + ["32768"] * 5
    assert all(str(has["options"]["ctx"]) == wants for wants, has in llm.served_with)
    assert llm.told == [told(4096), told(32768)]


async def test_a_person_loads_with_options(machine: Machine) -> None:
    llm, broker = await start(machine)
    assert await ask(broker, "llm") == 200

    async def load(document: dict[str, Any]) -> int:
        url = f"{broker.url}/api/consumers/llm/load"
        async with broker.session.post(url, json=document) as response:
            answer = await response.json()
            assert response.status != 200 or answer["state"] == "resident"
            return response.status

    assert await load({"body": {"options": {"ctx": 8192, "slots": 2}, "model": None}}) == 200
    assert llm.loaded_with == {"options": {"ctx": 8192, "slots": 2}}
    assert await load({}) == 200
    assert llm.loads == 2
    assert await load({"body": [1]}) == 400


async def test_another_load_body_in_the_configuration_counts_from_the_next_job_on(
    machine: Machine,
) -> None:
    llm, broker = await start(machine)
    llm.job_gate.close()
    running = asyncio.create_task(ask(broker, "llm"))
    await llm.job_gate.reached()
    waiting = [asyncio.create_task(ask(broker, route)) for route in ("llm", "llm", "long")]
    await broker.until("c['llm']['queued'] == 3")

    def change(document: dict[str, Any]) -> None:
        document["consumers"]["llm"]["load"]["body"] = told(16384)

    assert "reloaded" in await broker.reload(change)
    assert llm.unloads == 0
    llm.job_gate.open()

    assert await asyncio.gather(running, *waiting) == [200] * 4
    assert [has["options"]["ctx"] for _, has in llm.served_with] == [4096, 16384, 16384, 32768]


async def test_a_pinned_consumer_comes_back_by_itself_with_another_load_body(
    machine: Machine,
) -> None:
    llm = await machine.consumer("llm", 8000, config={"load": LOAD, "pinned": True})
    broker = await machine.broker()
    await broker.until("c['llm']['state'] == 'resident'")

    def change(document: dict[str, Any]) -> None:
        document["consumers"]["llm"]["load"]["body"] = told(16384)

    assert "reloaded" in await broker.reload(change)
    await llm.load_gate.reached(2)
    await broker.until("c['llm']['state'] == 'resident'")
    assert llm.loaded_with == told(16384)


async def test_an_idle_consumer_leaves_when_its_load_body_has_changed(machine: Machine) -> None:
    llm, broker = await start(machine)
    assert await ask(broker, "llm") == 200

    def change(document: dict[str, Any]) -> None:
        document["consumers"]["llm"]["load"]["body"] = told(16384)

    assert "reloaded" in await broker.reload(change)
    await broker.until("c['llm']['state'] == 'absent'")
    assert await ask(broker, "llm") == 200
    assert llm.told == [told(4096), told(16384)]


async def test_options_are_neither_logged_nor_shown(machine: Machine) -> None:
    """They may hold what is nobody's business, as any body may."""
    _, broker = await start(machine)
    url = f"{broker.url}/api/consumers/llm/load"
    async with broker.session.post(url, json={"body": {"token": "s3cr3t"}}) as response:
        assert response.status == 200
        assert "s3cr3t" not in json.dumps(await response.json())
    assert "s3cr3t" not in json.dumps(await broker.status())
    assert "s3cr3t" not in broker.log
