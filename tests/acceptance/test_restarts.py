"""What a person asked for holds when the broker starts again, however it ended."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.acceptance.conftest import Machine, job
from tests.support.broker_process import BrokerProcess


async def act(broker: BrokerProcess, action: str) -> None:
    async with broker.session.post(f"{broker.url}/api/{action}") as response:
        assert response.status == 200, await response.text()


async def end(broker: BrokerProcess, how: signal.Signals) -> None:
    broker.process.send_signal(how)
    async with asyncio.timeout(15):
        await broker.process.wait()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_paused_broker_is_paused_when_it_starts_again(
    machine: Machine, how: signal.Signals
) -> None:
    used = await machine.consumer("used", 8000, resident=True)
    pinned = await machine.consumer("pinned", 8000, config={"pinned": True})
    broker = await machine.broker()
    await broker.until("c['pinned']['state'] == 'resident'")
    await act(broker, "pause")
    assert (used.loaded, pinned.loaded) == (False, False)

    await end(broker, how)
    log_before = len(broker.log)
    # It is in memory again by itself, as one is that loads at the machine's start.
    used.hold(8000)
    used.loaded = True
    broker = await machine.broker(ready=False)
    status = await broker.until("all(v['state'] == 'absent' for v in c.values())")

    assert (status["paused"], status["pause_kept"]) == (True, True)
    assert status["paused_s"] > 0
    assert "paused still: mgpu resume ends it" in broker.log[log_before:]
    assert "the broker is paused" in status["problems"]
    assert await job(broker, "used") == 503
    assert (await broker.status())["gpus"][0]["free_mib"] == status["gpus"][0]["total_mib"]
    # The GPU is read five times a second, and after each reading the pinned are looked after.
    await broker.until("s['paused_s'] > before + 1", before=status["paused_s"])
    assert (used.jobs, used.loads, pinned.loads) == (0, 0, 1)

    await act(broker, "resume")
    assert await job(broker, "used") == 200
    await broker.until("c['pinned']['state'] == 'resident' and not s['paused']")

    await end(broker, how)
    broker = await machine.broker()
    assert not (await broker.status())["paused"]


async def test_a_pin_by_hand_holds_until_its_consumer_goes(machine: Machine) -> None:
    kept = await machine.consumer("kept", 8000)
    freed = await machine.consumer("freed", 8000, config={"pinned": True})
    broker = await machine.broker()
    await broker.until("c['freed']['state'] == 'resident'")
    await act(broker, "consumers/kept/pin")
    await act(broker, "consumers/freed/unpin")
    await end(broker, signal.SIGKILL)
    for consumer in (kept, freed):
        consumer.hold(0)
        consumer.loaded = False

    broker = await machine.broker()
    status = await broker.until("c['kept']['state'] == 'resident'")
    assert {n: v["pinned"] for n, v in status["consumers"].items()} == {
        "kept": True,
        "freed": False,
    }
    assert (kept.loads, freed.loads) == (2, 1)

    await end(broker, signal.SIGKILL)
    del machine.consumers["kept"]
    broker = await machine.broker()
    assert "a pin by hand is forgotten: it is not configured any more" in broker.log
    machine.consumers["kept"] = kept
    await end(broker, signal.SIGKILL)
    broker = await machine.broker()
    assert not (await broker.consumer("kept"))["pinned"]
