"""Many clients at once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from tests.acceptance.conftest import Machine, job


async def test_a_thousand_clients_for_one_absent_consumer_cause_one_load(machine: Machine) -> None:
    load = {"path": "/load", "timeout_s": 50}  # longer than a thousand take to be refused
    target = await machine.consumer("target", 8000, config={"max_queue": 64, "load": load})
    broker = await machine.broker()
    target.load_gate.close()
    clients = [asyncio.create_task(job(broker, "target")) for _ in range(1000)]
    await target.load_gate.reached()
    while sum(client.done() for client in clients) < 1000 - 64:
        await asyncio.wait(clients, return_when=asyncio.FIRST_COMPLETED, timeout=20)
        clients_done = [c for c in clients if c.done()]
        assert all(c.result() == 429 for c in clients_done)
        await asyncio.wait([c for c in clients if not c.done()], timeout=0.05)
    assert (await broker.consumer("target"))["queued"] == 64

    target.load_gate.open()

    outcomes = Counter(await asyncio.gather(*clients))
    assert outcomes == {200: 64, 429: 936}
    assert target.loads == 1
    async with broker.session.get(f"{broker.url}/metrics") as response:
        text = await response.text()
    assert 'mgpu_jobs_total{consumer="target",outcome="rejected"} 936.0' in text


async def test_a_full_queue_says_when_to_come_back(machine: Machine) -> None:
    target = await machine.consumer("target", 8000, config={"max_queue": 1}, resident=True)
    broker = await machine.broker()
    target.job_gate.close()
    running = asyncio.create_task(job(broker, "target"))
    await target.job_gate.reached()
    waiting = asyncio.create_task(job(broker, "target"))
    await broker.until("c['target']['queued'] == 1")

    async with broker.session.post(f"{broker.url}/v1/target") as response:
        assert response.status == 429
        assert int(response.headers["Retry-After"]) >= 1
        assert (await response.json())["type"] == "urn:mgpu:queue-full"

    target.job_gate.open()
    assert list(await asyncio.gather(running, waiting)) == [200, 200]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_thousand_mixed_jobs_each_end_once_and_never_compute_together(
    machine: Machine, seed: int
) -> None:
    await machine.consumer("image", 13000, lazy=True, resident=False)
    await machine.consumer("tts", 3000, resident=True)
    await machine.consumer("stt", 2000, resident=True)
    await machine.consumer("language", 9000)
    broker = await machine.broker()
    random_ = random.Random(seed)
    names = random_.choices(["image", "tts", "stt", "language"], weights=[1, 6, 4, 6], k=1000)
    at_once = asyncio.Semaphore(48)

    async def client(name: str) -> int:
        async with at_once:
            return await job(broker, name)

    outcomes = Counter(await asyncio.gather(*(client(name) for name in names)))

    assert outcomes == {200: 1000}
    assert machine.referee.fouls == []
    assert Counter(machine.referee.served) == Counter(names)
    status = await broker.status()
    assert status["queue"] == []
    assert status["gpus"][0]["lock"] == {"consumer": None, "jobs": []}
    assert status["gpus"][0]["reserved_mib"] == 0
    assert all(c["running"] == c["queued"] == 0 for c in status["consumers"].values())
    async with broker.session.get(f"{broker.url}/metrics") as response:
        text = await response.text()
    done = sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("mgpu_jobs_total")
    )
    assert done == 1000
