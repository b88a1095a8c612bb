"""Trying the broker out in front of one's own services on a machine without a GPU."""

from __future__ import annotations

import asyncio
import os
import sys

from tests.acceptance.conftest import Machine, job
from tests.support.broker_process import BrokerProcess


async def mgpu(broker: BrokerProcess, *words: str) -> str:
    """A client command, which must succeed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "mgpu",
        *words,
        env={**os.environ, "MGPU_URL": broker.url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_the_simulated_gpu_holds_what_the_broker_has_loaded(machine: Machine) -> None:
    a = await machine.consumer("a", 16000)
    b = await machine.consumer("b", 16000)
    broker = await machine.broker(gpu={"backend": "simulated"})

    assert await job(broker, "a") == 200
    status = await broker.until("s['gpus'][0]['free_mib'] == 24576 - 16000")
    assert status["gpus"][0]["name"] == "Simulated GPU"
    assert await job(broker, "b") == 200

    assert (a.loads, a.unloads, b.loads, b.unloads) == (1, 1, 1, 0)
    await broker.until("s['gpus'][0]['free_mib'] == 24576 - 16000")


async def test_the_commands_load_unload_and_show(machine: Machine) -> None:
    tts = await machine.consumer("tts", 3000)
    broker = await machine.broker(gpu={"backend": "simulated"})

    await mgpu(broker, "load", "tts")
    assert tts.loaded
    assert "resident" in await mgpu(broker, "status")
    await mgpu(broker, "unload", "tts")
    assert not tts.loaded
    assert "absent" in await mgpu(broker, "status")
