"""Who stays in memory, who leaves by itself, and who is thrown out: seen from outside."""

from __future__ import annotations

import asyncio

from tests.acceptance.conftest import Machine, job


async def test_an_idle_consumer_leaves_when_its_time_is_up(machine: Machine) -> None:
    idle = await machine.consumer("idle", 8000, config={"idle_unload_s": 0.3})
    kept = await machine.consumer("kept", 8000)
    broker = await machine.broker()
    assert await job(broker, "idle") == 200
    assert await job(broker, "kept") == 200

    await broker.until("c['idle']['state'] == 'absent'")

    assert (idle.unloads, kept.unloads) == (1, 0)
    assert (await broker.status())["evictions"] == 0
    assert await job(broker, "idle") == 200
    assert idle.loads == 2


async def test_a_request_says_how_long_its_consumer_may_be_idle(machine: Machine) -> None:
    at_once = await machine.consumer("at_once", 8000)
    for_ever = await machine.consumer("for_ever", 8000, config={"idle_unload_s": 0.1})
    broker = await machine.broker()

    assert await job(broker, "for_ever", headers={"X-MGPU-Idle-Unload": "never"}) == 200
    assert await job(broker, "at_once", headers={"X-MGPU-Idle-Unload": "0"}) == 200
    assert await job(broker, "at_once", headers={"X-MGPU-Idle-Unload": "soon"}) == 400

    await broker.until("c['at_once']['state'] == 'absent' and c['at_once']['last_used_s'] > 0.2")
    assert (at_once.unloads, for_ever.unloads) == (1, 0)


async def test_a_consumer_that_hangs_in_a_job_is_restarted_for_the_next_one(
    machine: Machine,
) -> None:
    hangs = await machine.consumer("hangs", 16000, config={"busy_timeout_s": 0.5})
    await machine.consumer("other", 4000, resident=True)
    broker = await machine.broker()
    hangs.job_gate.close()
    stuck = asyncio.create_task(
        broker.session.post(f"{broker.url}/v1/hangs", data=b"x").__aenter__()
    )
    await hangs.job_gate.reached()
    waiting = [asyncio.create_task(job(broker, name)) for name in ("other", "hangs")]

    async with await stuck as response:
        assert response.status == 504
        assert (await response.json())["type"] == "urn:mgpu:job-timeout"
    hangs.job_gate.open()

    assert list(await asyncio.gather(*waiting)) == [200, 200]
    assert (hangs.unloads, hangs.loads) == (1, 2)
    status = await broker.status()
    assert status["gpus"][0]["lock"]["consumer"] is None


async def test_a_pinned_consumer_is_loaded_at_the_start_and_after_it_was_killed(
    machine: Machine,
) -> None:
    pinned = await machine.consumer("pinned", 8000, config={"pinned": True})
    broker = await machine.broker()
    await broker.until("c['pinned']['state'] == 'resident'")
    assert (pinned.loads, pinned.jobs) == (1, 0)

    port = int(pinned.url.rsplit(":", 1)[1])
    await pinned.kill()
    await broker.until("c['pinned']['state'] != 'resident'")
    await pinned.start(port)

    await broker.until("c['pinned']['state'] == 'resident'", within_s=20.0)
    assert pinned.jobs == 0


async def test_a_pinned_consumer_that_does_not_load_keeps_nobody_from_working(
    machine: Machine,
) -> None:
    broken = await machine.consumer("broken", 8000, config={"pinned": True})
    broken.load_status = 500
    await machine.consumer("other", 4000)
    broker = await machine.broker()

    assert await job(broker, "other") == 200
    await broker.until("c['broken']['state'] == 'cooldown'")

    broken.load_status = 200
    await broker.until("c['broken']['state'] == 'resident'")


async def test_the_person_gets_the_gpu_and_gives_it_back(machine: Machine) -> None:
    a = await machine.consumer("a", 8000, lag_s=0.2)
    await machine.consumer("pinned", 8000, config={"pinned": True})
    broker = await machine.broker()
    await broker.until("c['pinned']['state'] == 'resident'")
    a.job_gate.close()
    jobs = [asyncio.create_task(job(broker, "a")) for _ in range(2)]
    await a.job_gate.reached()
    await broker.until("c['a']['queued'] == 1")

    pause = asyncio.create_task(broker.session.post(f"{broker.url}/api/pause").__aenter__())
    await broker.until("s['paused']")
    async with broker.session.post(f"{broker.url}/v1/a") as response:
        assert response.status == 503
        assert (await response.json())["type"] == "urn:mgpu:paused"
        assert int(response.headers["Retry-After"]) > 0
    async with broker.session.get(f"{broker.url}/readyz") as response:
        assert response.status == 503
    assert not pause.done()
    a.job_gate.open()

    async with await pause as response:
        assert await response.json() == {"paused": True, "resident": []}
    status = await broker.status()
    assert status["gpus"][0]["free_mib"] == status["gpus"][0]["total_mib"]
    assert (a.jobs, len(status["queue"])) == (1, 1)
    async with broker.session.post(f"{broker.url}/api/resume") as response:
        assert await response.json() == {"paused": False}

    assert list(await asyncio.gather(*jobs)) == [200, 200]
    await broker.until("c['pinned']['state'] == 'resident'")


async def test_an_unload_by_hand_that_takes_its_time_holds_up_nobody_else(
    machine: Machine,
) -> None:
    slow = await machine.consumer("slow", 4000, resident=True)
    other = await machine.consumer("other", 4000, resident=True)
    cold = await machine.consumer("cold", 4000)
    broker = await machine.broker()
    slow.unload_gate.close()
    unloading = asyncio.create_task(
        broker.session.post(f"{broker.url}/api/consumers/slow/unload").__aenter__()
    )
    await slow.unload_gate.reached()

    assert await job(broker, "other") == 200
    assert await job(broker, "cold") == 200
    assert not unloading.done()
    slow.unload_gate.open()

    async with await unloading as response:
        assert response.status == 200
        assert (await response.json())["state"] == "absent"
    assert (other.jobs, cold.loads, slow.unloads) == (1, 1, 1)


async def test_a_restart_by_hand_ends_what_runs_and_loads_again(machine: Machine) -> None:
    target = await machine.consumer("target", 8000, resident=True)
    broker = await machine.broker()
    target.job_gate.close()
    running = asyncio.create_task(job(broker, "target"))
    await target.job_gate.reached()

    async with broker.session.post(f"{broker.url}/api/consumers/target/restart") as response:
        assert response.status == 200
        assert (await response.json())["state"] == "resident"

    assert await running == 502
    assert (target.unloads, target.loads) == (1, 1)


async def test_a_waiting_job_is_told_when_it_can_expect_to_begin(machine: Machine) -> None:
    target = await machine.consumer("target", 8000, resident=True, job_s=0.2)
    broker = await machine.broker()
    assert await job(broker, "target") == 200
    target.job_gate.close()
    jobs = [asyncio.create_task(job(broker, "target")) for _ in range(3)]
    await target.job_gate.reached(2)

    status = await broker.until("len(s['queue']) == 2")

    first_s, second_s = (waiter["eta_s"] for waiter in status["queue"])
    assert 0.0 <= first_s < second_s < 10.0
    target.job_gate.open()
    assert list(await asyncio.gather(*jobs)) == [200, 200, 200]
