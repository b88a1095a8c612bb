"""A machine with two GPUs: a lock for each, swaps on both at once, and one decision for all."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.acceptance.conftest import Machine, job

CALL = {"body": {"gpus": "{gpu_index}"}, "timeout_s": 10}
TOLD: dict[str, Any] = {
    "load": {"path": "/load", **CALL},
    "unload": {"path": "/unload", **CALL},
}
NVML_UNKNOWN = 999


async def test_an_auto_placed_consumer_is_told_the_gpu_that_was_chosen(two_gpus: Machine) -> None:
    two_gpus.nvml.set_used_mib(4000, gpu=0)
    roomy = await two_gpus.consumer("roomy", 16000, config=TOLD)
    other = await two_gpus.consumer("other", 16000, config=TOLD)
    broker = await two_gpus.broker()

    assert await job(broker, "roomy") == 200
    assert await job(broker, "other") == 200
    await broker.unload("roomy")

    # 24576 MiB are free on GPU 1 and 20576 on GPU 0; then only GPU 0 has room for another.
    assert roomy.told == [{"gpus": 1}, {"gpus": 1}]
    assert other.told == [{"gpus": 0}]
    assert (await broker.consumer("other"))["gpus"] == [0]


async def test_swaps_on_two_gpus_run_side_by_side(two_gpus: Machine) -> None:
    for gpu in (0, 1):
        config = {"gpus": [gpu]}
        await two_gpus.consumer(f"old{gpu}", 16000, gpus=[gpu], resident=True, config=config)
        await two_gpus.consumer(f"new{gpu}", 16000, gpus=[gpu], config=config)
    news = [two_gpus.consumers[f"new{gpu}"] for gpu in (0, 1)]
    for new in news:
        new.load_gate.close()
    broker = await two_gpus.broker()

    jobs = [asyncio.create_task(job(broker, new.name)) for new in news]
    for new in news:
        await new.load_gate.reached()
    for new in news:
        new.load_gate.open()

    assert await asyncio.gather(*jobs) == [200, 200]
    assert [two_gpus.consumers[f"old{gpu}"].unloads for gpu in (0, 1)] == [1, 1]


async def test_each_gpu_has_a_lock_of_its_own(two_gpus: Machine) -> None:
    for name, gpu in (("a", 0), ("b", 1), ("c", 1)):
        await two_gpus.consumer(name, 4000, gpus=[gpu], resident=True, config={"gpus": [gpu]})
    consumers = list(two_gpus.consumers.values())
    for consumer in consumers:
        consumer.job_gate.close()
    broker = await two_gpus.broker()

    jobs = [asyncio.create_task(job(broker, consumer.name)) for consumer in consumers]
    status = await broker.until("len([v for v in c.values() if v['running']]) == 2")
    await broker.until("len(s['queue']) == 1")
    holders = [gpu["lock"]["consumer"] for gpu in status["gpus"]]
    for holder in holders:
        await two_gpus.consumers[holder].job_gate.reached()
    for consumer in consumers:
        consumer.job_gate.open()

    assert await asyncio.gather(*jobs) == [200, 200, 200]
    assert holders[0] == "a"
    assert holders[1] in {"b", "c"}
    assert two_gpus.referee.most_at_once == 2
    assert two_gpus.referee.fouls == []


async def test_one_that_spans_both_gets_its_turn_beside_a_crowd_on_each(
    two_gpus: Machine,
) -> None:
    for name, gpus in (("left", [0]), ("right", [1]), ("both", [0, 1])):
        footprint_mib = 16000 * len(gpus)
        await two_gpus.consumer(
            name, footprint_mib, gpus=gpus, job_s=0.05, load_s=0.05, config={"gpus": gpus}
        )
    broker = await two_gpus.broker(scheduler={"max_overtake_s": 1.0})
    served: list[str] = []

    async def served_job(name: str) -> int:
        status = await job(broker, name)
        served.append(name)
        return status

    async def crowd(name: str) -> list[int]:
        """Two jobs at any time wait or run."""

        async def one_after_the_other() -> list[int]:
            return [await served_job(name) for _ in range(30)]

        both = await asyncio.gather(one_after_the_other(), one_after_the_other())
        return [status for part in both for status in part]

    async with asyncio.timeout(60):
        crowds = asyncio.gather(crowd("left"), crowd("right"))
        await broker.until("c['left']['running'] and c['right']['running']")
        spanning = await asyncio.gather(*(served_job("both") for _ in range(3)))
        statuses = await crowds

    assert spanning == [200] * 3
    assert [set(part) for part in statuses] == [{200}, {200}]
    # 60 jobs of 0.05 s on each GPU would take 3 s; who spans both did not have to sit them out.
    last = max(index for index, name in enumerate(served) if name == "both")
    assert last < len(served) - 10
    assert two_gpus.referee.fouls == []


async def test_a_gpu_that_cannot_be_read_admits_nothing_while_the_other_works(
    two_gpus: Machine,
) -> None:
    for gpu in (0, 1):
        await two_gpus.consumer(f"on{gpu}", 4000, gpus=[gpu], config={"gpus": [gpu]})
    anywhere = await two_gpus.consumer("anywhere", 4000, config=TOLD)
    broker = await two_gpus.broker()
    two_gpus.nvml.fail("nvmlDeviceGetMemoryInfo", NVML_UNKNOWN, gpu=0)
    await broker.until("[g['healthy'] for g in s['gpus']] == [False, True]")

    async with broker.session.post(f"{broker.url}/v1/on0") as response:
        assert response.status == 503
        assert (await response.json())["type"] == "urn:mgpu:gpu-unhealthy"
    assert await job(broker, "on1") == 200
    assert await job(broker, "anywhere") == 200
    assert anywhere.told == [{"gpus": 1}]

    two_gpus.nvml.heal()
    await broker.until("all(g['healthy'] for g in s['gpus'])")
    assert await job(broker, "on0") == 200
