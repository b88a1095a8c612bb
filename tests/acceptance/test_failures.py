"""What goes wrong in the field, and what the broker makes of it."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import aiohttp
import pytest

from tests.acceptance.conftest import Machine, job

NVML_ERROR_GPU_IS_LOST = 15
MEMORY_INFO = "nvmlDeviceGetMemoryInfo"


async def test_a_consumer_killed_mid_job_gives_502_and_frees_the_lock(machine: Machine) -> None:
    target = await machine.consumer("target", 8000, resident=True)
    await machine.consumer("other", 8000, resident=True)
    broker = await machine.broker()
    target.job_gate.close()
    client = asyncio.create_task(job(broker, "target"))
    await target.job_gate.reached()

    await target.kill()

    assert await client == 502
    assert await job(broker, "other") == 200
    await broker.until("c['target']['state'] == 'absent' and not c['target']['healthy']")
    port = int(target.url.rsplit(":", 1)[1])
    target.job_gate.open()
    await target.start(port)
    assert await job(broker, "target") == 200
    assert target.loads == 1


async def test_a_consumer_killed_mid_stream_breaks_the_stream_visibly(machine: Machine) -> None:
    target = await machine.consumer("target", 8000, resident=True)
    broker = await machine.broker()
    target.stream_gate.close()
    async with broker.session.get(f"{broker.url}/consumers/target/stream") as response:
        assert await response.content.readline() == b"data: first\n"

        await target.kill()

        with pytest.raises(aiohttp.ClientError):
            await response.content.read()
    await broker.until("c['target']['running'] == 0", within_s=1.0)


async def test_an_unload_that_hangs_is_quarantined_and_the_next_victim_leaves(
    machine: Machine,
) -> None:
    stuck = await machine.consumer(
        "stuck", 9000, resident=True, config={"unload": {"path": "/unload", "timeout_s": 0.5}}
    )
    other = await machine.consumer("other", 9000, resident=True)
    await machine.consumer("target", 9000)
    broker = await machine.broker()
    for name in ("stuck", "other"):
        assert await job(broker, name) == 200
    stuck.unload_gate.close()

    client = asyncio.create_task(job(broker, "target"))

    status = await broker.until("c['stuck']['state'] == 'quarantined'")
    assert status["consumers"]["stuck"]["footprint_mib"] == 9000
    assert await client == 200
    assert other.unloads == 1
    stuck.unload_gate.open()
    await broker.until("c['stuck']['state'] in ('absent', 'resident')")


async def test_an_unload_that_frees_nothing_is_not_believed(machine: Machine) -> None:
    liar = await machine.consumer("liar", 9000, resident=True)
    other = await machine.consumer("other", 9000, resident=True)
    target = await machine.consumer("target", 9000)
    liar.frees = False
    broker = await machine.broker(gpu={"settle_timeout_s": 0.5})
    for name in ("liar", "other"):
        assert await job(broker, name) == 200

    assert await job(broker, "target") == 200

    assert (liar.unloads >= 1, other.unloads) == (True, 1)
    assert other.freed_at is not None
    assert target.load_began_at is not None
    assert target.load_began_at >= other.freed_at
    async with broker.session.get(f"{broker.url}/metrics") as response:
        assert 'mgpu_settle_timeouts_total{consumer="liar"} 1.0' in await response.text()


async def test_a_load_that_fails_is_tried_twice_then_left_alone_for_a_while(
    machine: Machine,
) -> None:
    target = await machine.consumer("target", 9000)
    bystander = await machine.consumer("bystander", 3000, resident=True)
    target.load_status = 500
    broker = await machine.broker()

    async with broker.session.post(f"{broker.url}/v1/target") as response:
        assert response.status == 502
        problem = await response.json()
    assert problem["type"] == "urn:mgpu:load-failed"
    assert "500" in problem["detail"]
    assert (target.loads, bystander.unloads) == (2, 1)

    async with broker.session.post(f"{broker.url}/v1/target") as response:
        assert response.status == 503
        assert (await response.json())["type"] == "urn:mgpu:consumer-cooldown"
        assert int(response.headers["Retry-After"]) == 1
    target.load_status = 200
    await broker.until("c['target']['state'] == 'absent'", within_s=3)
    assert await job(broker, "target") == 200
    assert (await broker.status())["gpus"][0]["reserved_mib"] == 0


async def test_foreign_memory_is_shown_and_made_room_for(machine: Machine) -> None:
    await machine.consumer("old", 9000, resident=True)
    await machine.consumer("target", 9000)
    broker = await machine.broker()
    assert await job(broker, "old") == 200
    machine.nvml.set_used_mib(9000)
    await broker.until("s['gpus'][0]['foreign_mib'] == 9000")

    assert await job(broker, "target") == 200

    assert (await broker.consumer("old"))["state"] == "absent"


async def test_nvml_errors_stop_admission_until_it_recovers(machine: Machine) -> None:
    await machine.consumer("target", 9000)
    broker = await machine.broker()
    machine.nvml.fail(MEMORY_INFO, NVML_ERROR_GPU_IS_LOST)
    await broker.until("not s['gpus'][0]['healthy']", within_s=5)

    async with broker.session.post(f"{broker.url}/v1/target") as response:
        assert response.status == 503
        assert (await response.json())["type"] == "urn:mgpu:gpu-unhealthy"
        assert int(response.headers["Retry-After"]) >= 1
    async with broker.session.get(f"{broker.url}/readyz") as response:
        assert response.status == 503

    machine.nvml.heal()
    await broker.until("s['gpus'][0]['healthy']", within_s=5)
    assert await job(broker, "target") == 200


async def test_nvml_that_hangs_stops_admission_but_not_the_broker(machine: Machine) -> None:
    await machine.consumer("resident", 4000, resident=True)
    await machine.consumer("target", 9000)
    broker = await machine.broker()
    machine.nvml.hang(MEMORY_INFO)
    await broker.until("not s['gpus'][0]['healthy']", within_s=5)

    assert await job(broker, "target") == 503
    async with asyncio.timeout(1), broker.session.get(f"{broker.url}/healthz") as response:
        assert response.status == 200

    machine.nvml.heal()
    await broker.until("s['gpus'][0]['healthy']", within_s=5)
    assert await job(broker, "target") == 200


async def test_a_broker_whose_nvml_hangs_still_ends(machine: Machine) -> None:
    await machine.consumer("target", 9000)
    broker = await machine.broker()
    machine.nvml.hang(MEMORY_INFO)
    await broker.until("not s['gpus'][0]['healthy']", within_s=5)

    assert await broker.stop(within_s=5) == 0


async def test_a_stopping_broker_drains_its_jobs(machine: Machine) -> None:
    target = await machine.consumer("target", 9000, resident=True)
    broker = await machine.broker()
    target.job_gate.close()
    running = asyncio.create_task(job(broker, "target"))
    await target.job_gate.reached()
    waiting = asyncio.create_task(job(broker, "target"))
    await broker.until("c['target']['queued'] == 1")

    stopping = asyncio.create_task(broker.stop())

    assert await waiting == 503
    target.job_gate.open()
    assert await running == 200
    assert await stopping == 0


async def test_who_waits_past_the_drains_deadline_is_answered_all_the_same(
    machine: Machine,
) -> None:
    target = await machine.consumer("target", 4000, resident=True)
    other = await machine.consumer("other", 4000, resident=True)
    broker = await machine.broker(server={"drain_timeout_s": 0.3})
    target.job_gate.close()
    other.unload_gate.close()
    running = asyncio.create_task(job(broker, "target"))
    unloading = asyncio.create_task(broker.session.post(f"{broker.url}/api/consumers/other/unload"))
    await target.job_gate.reached()
    await other.unload_gate.reached()

    assert await broker.stop(within_s=5) == 0

    assert await running == 503
    async with await unloading as response:
        assert response.status == 503
        assert (await response.json(content_type=None))["type"] == "urn:mgpu:draining"


async def test_tokens_grow_over_restarts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGPU_LOG_LEVEL", "debug")
    await machine.consumer("target", 9000, resident=True)
    tokens = []
    for _ in range(2):
        broker = await machine.broker()
        assert await job(broker, "target") == 200
        tokens.append(int(re.findall(r'"token": (\d+)', broker.log)[-1]))
        assert await broker.stop() == 0

    assert tokens[1] > tokens[0] > 0


async def test_a_broker_never_starts_on_a_bad_file(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("server:\n  lisen: 127.0.0.1:1\nconsumers:\n  tts: {url: nowhere}\n")
    for command in ("check", "serve"):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mgpu", command, "-c", str(bad),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        assert process.returncode == 2
        text = output.decode()
        assert f"{bad}:2" in text
        assert "server.lisen" in text
        assert "listen" in text
        assert f"{bad}:4" in text
        assert "consumers.tts.url" in text
