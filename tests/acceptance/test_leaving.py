"""A client that leaves frees its place within a second and harms nobody, whatever its phase."""

from __future__ import annotations

import asyncio
import contextlib

from tests.acceptance.conftest import Machine, job
from tests.support.broker_process import BrokerProcess

SOON_S = 1.0


async def leave(client: asyncio.Task[int]) -> None:
    """Close the client's connection."""
    client.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await client


async def cancelled_jobs(broker: BrokerProcess, consumer: str) -> float:
    async with broker.session.get(f"{broker.url}/metrics") as response:
        for line in (await response.text()).splitlines():
            if line.startswith(f'mgpu_jobs_total{{consumer="{consumer}",outcome="cancelled"}}'):
                return float(line.rsplit(" ", 1)[1])
    raise AssertionError("no such metric")


async def test_while_queued(machine: Machine) -> None:
    target = await machine.consumer("target", 8000, resident=True)
    broker = await machine.broker()
    target.job_gate.close()
    running = asyncio.create_task(job(broker, "target"))
    await target.job_gate.reached()
    client = asyncio.create_task(job(broker, "target"))
    await broker.until("c['target']['queued'] == 1")

    await leave(client)

    await broker.until("c['target']['queued'] == 0", within_s=SOON_S)
    target.job_gate.open()
    assert await running == 200
    assert target.jobs == 1


async def test_while_evicting_the_load_is_not_started(machine: Machine) -> None:
    victim = await machine.consumer("victim", 16000, resident=True)
    target = await machine.consumer("target", 16000)
    broker = await machine.broker()
    victim.unload_gate.close()
    client = asyncio.create_task(job(broker, "target"))
    await victim.unload_gate.reached()

    await leave(client)

    status = await broker.until("c['target']['queued'] == 0", within_s=SOON_S)
    assert status["gpus"][0]["reserved_mib"] == 0
    victim.unload_gate.open()
    await broker.until("c['victim']['state'] == 'absent'")
    assert await job(broker, "victim") == 200
    assert target.loads == 0


async def test_while_loading_others_keep_the_load(machine: Machine) -> None:
    target = await machine.consumer("target", 8000)
    broker = await machine.broker()
    target.load_gate.close()
    client = asyncio.create_task(job(broker, "target"))
    await target.load_gate.reached()
    other = asyncio.create_task(job(broker, "target"))
    await broker.until("c['target']['queued'] == 2")

    await leave(client)

    await broker.until("c['target']['queued'] == 1", within_s=SOON_S)
    target.load_gate.open()
    assert await other == 200
    assert (target.loads, target.jobs) == (1, 1)


async def test_before_the_first_byte(machine: Machine) -> None:
    target = await machine.consumer("target", 8000, resident=True)
    broker = await machine.broker()
    target.job_gate.close()
    client = asyncio.create_task(job(broker, "target"))
    await target.job_gate.reached()

    await leave(client)

    await broker.until("c['target']['running'] == 0", within_s=SOON_S)
    async with asyncio.timeout(SOON_S):
        await target.abortion.wait()
    target.job_gate.open()
    assert await job(broker, "target") == 200
    assert await cancelled_jobs(broker, "target") == 1


async def test_while_streaming(machine: Machine) -> None:
    target = await machine.consumer("target", 8000, resident=True)
    broker = await machine.broker()
    target.stream_gate.close()
    async with broker.session.get(f"{broker.url}/consumers/target/stream") as response:
        assert await response.content.readline() == b"data: first\n"
        response.close()

    await broker.until("c['target']['running'] == 0", within_s=SOON_S)
    async with asyncio.timeout(SOON_S):
        await target.abortion.wait()
    target.stream_gate.open()
    assert await job(broker, "target") == 200
    assert "Traceback" not in broker.log
