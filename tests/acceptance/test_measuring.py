"""Whose memory it is, and what is learned from it: real programs, seen through NVML."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import job
from tests.support.broker_process import BrokerProcess, serving
from tests.support.gpu_program import GpuProgram, running
from tests.support.nvml import NvmlStandin, nvml_library
from tests.support.processes import holder

__all__ = ["nvml_library"]

GPU_MIB = 24576
FOREIGN_PROGRAM = Path("/proc/self/comm").read_text().strip()


class Machine:
    """Programs on one stand-in GPU, and brokers in front of them, one after the other."""

    def __init__(self, directory: Path, nvml: NvmlStandin, stack: AsyncExitStack) -> None:
        self.nvml = nvml
        self._directory = directory
        self._stack = stack
        self._consumers: dict[str, dict[str, Any]] = {}

    async def program(
        self, name: str, mib: int, *, config: dict[str, Any] | None = None, **how: Any
    ) -> GpuProgram:
        held = self.nvml.held_directory()
        program = await self._stack.enter_async_context(running(name, mib, held, **how))
        self._consumers[name] = program.config(**(config or {}))
        return program

    async def broker(self) -> BrokerProcess:
        config = {
            "gpu": {"sample_interval_s": 0.1},
            "consumers": self._consumers,
            "routes": {f"/v1/{n}": {"consumer": n, "path": "/job"} for n in self._consumers},
        }
        return await self._stack.enter_async_context(
            serving(self._directory, config, env=self.nvml.env)
        )


@pytest.fixture
async def machine(tmp_path: Path, nvml_library: Path) -> AsyncIterator[Machine]:
    async with AsyncExitStack() as stack:
        yield Machine(tmp_path, NvmlStandin(tmp_path / "nvml", nvml_library), stack)


async def metrics(broker: BrokerProcess) -> str:
    async with broker.session.get(f"{broker.url}/metrics") as response:
        return await response.text()


@pytest.mark.parametrize("worker", [False, True])
async def test_what_a_service_holds_is_its_own_even_in_a_child(
    machine: Machine, worker: bool
) -> None:
    program = await machine.program("tts", 3000, worker=worker)
    broker = await machine.broker()
    assert await job(broker, "tts") == 200
    status = await broker.until("c['tts']['held_mib'] == 3000")
    assert status["gpus"][0]["foreign"] == []
    await program.hold(3200)
    await broker.until("c['tts']['measured_mib'] == 3200")


async def test_foreign_processes_are_named(machine: Machine) -> None:
    await machine.program("tts", 3000)
    broker = await machine.broker()
    with holder(machine.nvml.held_directory(), "game") as game:
        game.hold(5000)
        status = await broker.until("s['gpus'][0]['foreign_mib'] == 5000")
        (process,) = status["gpus"][0]["foreign"]
        assert (process["pid"], process["mib"]) == (game.process.pid, 5000)
        assert process["name"].startswith("python")


async def test_a_process_of_nobody_that_is_the_test_itself_does_not_distort_a_load(
    machine: Machine,
) -> None:
    await machine.program("tts", 3000)
    broker = await machine.broker()
    machine.nvml.list_process(os.getpid(), 4000)
    assert await job(broker, "tts") == 200
    status = await broker.until("c['tts']['measured_mib'] == 3000")
    assert [p["name"] for p in status["gpus"][0]["foreign"]] == [FOREIGN_PROGRAM]


async def test_a_wrong_footprint_is_told_with_the_right_one(machine: Machine) -> None:
    await machine.program("tts", 3000, config={"footprint_mib": 2000})
    broker = await machine.broker()
    assert await job(broker, "tts") == 200
    status = await broker.until("any('footprint_mib: 3000' in p for p in s['problems'])")
    assert status["consumers"]["tts"]["footprint_source"] == "measured"
    assert broker.log.count("footprint_mib is wrong") == 1
    async with broker.session.get(f"{broker.url}/readyz") as response:
        assert response.status == 200
    text = await metrics(broker)
    assert 'mgpu_consumer_footprint_bytes{consumer="tts",source="measured"} 3.145728e+09' in text


async def test_an_unknown_footprint_takes_all_once_and_is_known_after_a_restart(
    machine: Machine,
) -> None:
    await machine.program("a", 4000)
    await machine.program("b", 4000)
    await machine.program("x", 6000, config={"footprint_mib": "auto"})
    broker = await machine.broker()
    for name in ("a", "b"):
        assert await job(broker, name) == 200
    assert (await broker.consumer("x"))["footprint_source"] == "unknown"

    assert await job(broker, "x") == 200

    known = "c['x']['footprint_mib'] == 6000 and c['x']['state'] == 'resident'"
    assert (await broker.until(known))["evictions"] == 2
    for name in ("a", "b"):
        assert await job(broker, name) == 200
    assert (await broker.status())["evictions"] == 2
    assert await broker.stop() == 0

    again = await machine.broker()
    x = await again.consumer("x")
    assert (x["footprint_mib"], x["footprint_source"]) == (6000, "measured")


async def test_a_driver_that_does_not_tell_leaves_all_as_it_was(machine: Machine) -> None:
    not_supported = 3
    machine.nvml.fail("nvmlDeviceGetComputeRunningProcesses_v3", not_supported)
    await machine.program("a", 16000)
    await machine.program("b", 16000)
    broker = await machine.broker()
    assert [await job(broker, name) for name in ("a", "b", "a")] == [200, 200, 200]
    status = await broker.status()
    assert status["evictions"] == 2
    assert {c["held_mib"] for c in status["consumers"].values()} == {None}
