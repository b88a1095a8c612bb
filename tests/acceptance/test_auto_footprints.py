"""``footprint_mib: auto`` where the driver does not tell whose memory is whose."""

from __future__ import annotations

import asyncio

from tests.acceptance.conftest import Machine, job

AUTO = {"footprint_mib": "auto"}


async def test_nobody_loads_beside_the_job_that_loads_an_unmeasured_one(machine: Machine) -> None:
    pictures = await machine.consumer("pictures", 14000, lazy=True, config=AUTO)
    language = await machine.consumer("language", 12000)
    broker = await machine.broker()
    pictures.job_gate.close()

    first = asyncio.create_task(job(broker, "pictures"))
    await pictures.job_gate.reached()
    second = asyncio.create_task(job(broker, "language"))
    await broker.until("c['language']['queued'] == 1")
    # Its job has not taken its memory yet: by measurement there is room for both.
    assert language.loads == 0
    pictures.job_gate.open()

    assert [await first, await second] == [200, 200]
    assert (pictures.unloads, language.loads) == (1, 1)
    await broker.until("c['pictures']['footprint_mib'] == 14000")
    assert not machine.referee.fouls


async def test_one_that_was_there_before_the_broker_makes_room(machine: Machine) -> None:
    pictures = await machine.consumer("pictures", 14000, resident=True, config=AUTO)
    await machine.consumer("language", 12000)
    broker = await machine.broker()

    assert await job(broker, "language") == 200
    assert pictures.unloads == 1
    assert await job(broker, "pictures") == 200
    await broker.until("c['pictures']['footprint_mib'] == 14000")
