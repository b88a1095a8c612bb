"""The main job on a real GPU: services that do not fit together, all of them asked at once."""

from __future__ import annotations

import asyncio
import random
import statistics
import time

import pytest

from tests.hardware.conftest import CUSHION_MIB, Rig, Service
from tests.hardware.figures import Figures
from tests.support.broker_process import BrokerProcess

pytestmark = pytest.mark.gpu

BLOCK_MIB = 256
CONTEXT_MIB = 1024
SERVICES = 3
JOBS = 40


async def services_that_do_not_fit_together(rig: Rig) -> tuple[list[Service], int]:
    """Three that need half of what is free each, so that one at a time fits beside its neighbours'
    contexts; and what each one needs, in MiB.
    """
    free_mib = rig.hardware.read().free_mib or 0
    room_mib = free_mib - SERVICES * CONTEXT_MIB - CUSHION_MIB
    weights_mib = room_mib // 2 // BLOCK_MIB * BLOCK_MIB + BLOCK_MIB
    names = "abc"[:SERVICES]
    return [await rig.service(n, weights_mib) for n in names], weights_mib + CONTEXT_MIB


async def ask(broker: BrokerProcess, name: str) -> tuple[int, float, str]:
    """Status, seconds and text of one job's answer."""
    begun = time.perf_counter()
    async with broker.session.post(f"{broker.url}/v1/{name}", data=b"work") as response:
        text = await response.text()
        return response.status, time.perf_counter() - begun, text


async def test_a_mixed_crowd_is_served_and_nobody_runs_out_of_memory(
    rig: Rig, figures: Figures
) -> None:
    services, footprint_mib = await services_that_do_not_fit_together(rig)
    consumers = {s.name: s.config(footprint_mib, residual_mib=CONTEXT_MIB) for s in services}
    broker = await rig.broker(consumers)
    chance = random.Random(1)
    wanted = [chance.choice(services).name for _ in range(JOBS)]

    begun = time.perf_counter()
    answers = await asyncio.gather(*(ask(broker, name) for name in wanted))
    took_s = time.perf_counter() - begun

    assert {(status, text) for status, _, text in answers} == {(200, '{"echo": "work"}')}
    status = await broker.status()
    assert status["evictions"] >= SERVICES - 1
    assert all(view["state"] != "quarantined" for view in status["consumers"].values())
    figures.add(f"{JOBS} jobs over {SERVICES} services, all at once", f"{took_s:.1f} s")
    figures.add(
        "… median wait and work of one", f"{statistics.median(a[1] for a in answers):.2f} s"
    )
    figures.add("… loads / evictions", f"{status['loads']} / {status['evictions']}")


async def test_a_swap_takes_little_longer_than_the_services_own_unload_and_load(
    rig: Rig, figures: Figures
) -> None:
    services, footprint_mib = await services_that_do_not_fit_together(rig)
    consumers = {s.name: s.config(footprint_mib, residual_mib=CONTEXT_MIB) for s in services}
    broker = await rig.broker(consumers)
    for name in consumers:  # Every context is there before anything is timed.
        assert (await ask(broker, name))[0] == 200

    swaps = []
    for name in [*consumers] * 3:
        async with broker.session.post(f"{broker.url}/v1/{name}", data=b"work") as response:
            assert response.status == 200
            swaps.append(response.headers["Server-Timing"])
    evict_ms, load_ms = (
        statistics.median(_duration_ms(timing, part) for timing in swaps)
        for part in ("evict", "load")
    )

    assert evict_ms > 0
    figures.add("eviction in a swap (unload, until it is measured), median", f"{evict_ms:.0f} ms")
    figures.add("load in a swap, median", f"{load_ms:.0f} ms")


async def test_memory_that_a_stranger_takes_is_counted_and_not_loaded_into(rig: Rig) -> None:
    stranger, ours = await rig.service("stranger", 4096), await rig.service("ours", 2048)
    broker = await rig.broker({"ours": ours.config(2048 + CONTEXT_MIB)})
    before_mib = (await broker.status())["gpus"][0]["free_mib"]
    await stranger.post("/load")

    status = await broker.until("s['gpus'][0]['foreign_mib'] >= 4096")

    assert status["gpus"][0]["free_mib"] <= before_mib - 4096
    assert (await ask(broker, "ours"))[0] == 200


def _duration_ms(timing: str, part: str) -> float:
    """One part of a Server-Timing header; 0 when it is not there."""
    parts = dict(entry.strip().split(";dur=") for entry in timing.split(","))
    return float(parts.get(part, 0.0))
