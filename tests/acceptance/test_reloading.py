"""SIGHUP: another configuration while jobs wait and run."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.acceptance.conftest import Machine, job


async def test_limits_change_and_jobs_live_on(machine: Machine) -> None:
    first = await machine.consumer("first", 4000, resident=True)
    await machine.consumer("second", 4000, resident=True)
    third = await machine.consumer("third", 4000)
    broker = await machine.broker()
    first.job_gate.close()
    running = asyncio.create_task(job(broker, "first"))
    await first.job_gate.reached()
    waiting = asyncio.create_task(job(broker, "first"))
    await broker.until("c['first']['queued'] == 1")

    def change(document: dict[str, Any]) -> None:
        document["scheduler"] = {"max_resident": 2}
        document["consumers"]["first"]["max_queue"] = 0

    assert "reloaded" in await broker.reload(change)
    assert await job(broker, "first") == 429
    first.job_gate.open()

    assert list(await asyncio.gather(running, waiting)) == [200, 200]
    assert await job(broker, "third") == 200
    assert third.loads == 1
    status = await broker.status()
    residents = [v for v in status["consumers"].values() if v["state"] == "resident"]
    assert len(residents) == 2


async def test_consumers_come_and_go(machine: Machine) -> None:
    old = await machine.consumer("old", 8000, resident=True)
    await machine.consumer("stays", 8000)
    broker = await machine.broker()
    new = await machine.consumer("new", 8000)
    old.job_gate.close()
    running = asyncio.create_task(job(broker, "old"))
    await old.job_gate.reached()
    waiting = asyncio.create_task(job(broker, "old"))
    await broker.until("c['old']['queued'] == 1")

    def change(document: dict[str, Any]) -> None:
        del document["consumers"]["old"], document["routes"]["/v1/old"]
        document["consumers"]["new"] = new.config()
        document["routes"]["/v1/new"] = {"consumer": "new", "path": "/job"}

    assert "reloaded" in await broker.reload(change)
    assert await waiting == 404
    assert await job(broker, "old") == 404
    assert old.unloads == 0
    old.job_gate.open()

    assert await running == 200
    await broker.until("'old' not in c")
    assert old.unloads == 1
    assert await job(broker, "new") == 200
    assert await job(broker, "stays") == 200
    async with broker.session.get(f"{broker.url}/metrics") as response:
        assert 'mgpu_jobs_total{consumer="new",outcome="done"} 1.0' in await response.text()


async def test_a_bad_file_changes_nothing_and_says_why(machine: Machine) -> None:
    await machine.consumer("target", 8000)
    broker = await machine.broker()

    def misspell(document: dict[str, Any]) -> None:
        document["scheduler"] = {"max_residnt": 1}
        document["gpu"]["cushion_mib"] = 20000

    said = await broker.reload(misspell)
    assert "scheduler.max_residnt: unknown key; did you mean max_resident?" in said
    assert f"{broker.config_file}:" in said

    def move(document: dict[str, Any]) -> None:
        del document["scheduler"]
        document["server"]["listen"] = "127.0.0.1:1"

    said = await broker.reload(move)
    assert "server.listen: cannot change while the broker runs: restart it" in said
    assert await job(broker, "target") == 200


async def test_a_change_of_how_a_consumer_is_loaded_counts_for_the_next_load(
    machine: Machine,
) -> None:
    target = await machine.consumer("target", 8000)
    broker = await machine.broker()

    def change(document: dict[str, Any]) -> None:
        document["consumers"]["target"]["load"]["body"] = {"gpus": "{gpu_index}"}

    await broker.reload(change)
    assert await job(broker, "target") == 200
    assert target.told == [{"gpus": 0}]


async def test_routes_and_models_change_together(machine: Machine) -> None:
    await machine.consumer("old", 4000, resident=True)
    await machine.consumer("new", 4000, resident=True)
    broker = await machine.broker(models={"voice": "old"})

    def change(document: dict[str, Any]) -> None:
        document["models"] = {"voice": "new"}
        document["routes"]["/v1/old"]["consumer"] = "new"
        document["consumers"]["new"]["paths"] = {"/v1/responses": "/job"}

    assert "reloaded" in await broker.reload(change)
    for path in ("/v1/old", "/v1/responses"):
        async with broker.session.post(broker.url + path, json={"model": "voice"}) as response:
            assert response.headers["X-Served-By"] == "new"
    async with broker.session.get(f"{broker.url}/v1/models/voice") as response:
        assert (await response.json())["owned_by"] == "new"
