"""What holds for every ``ports.GpuProbe``, the one over NVML and the simulated one alike."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mgpu.errors import GpuUnhealthy
from mgpu.gpu.nvml import NvmlReader
from mgpu.gpu.simulated import HeldMemory, SimulatedGpu
from mgpu.gpu.thread import ThreadedProbe
from mgpu.ports import GpuProbe
from tests.support.nvml import NvmlStandin
from tests.support.processes import holder

TOTAL_MIB = 24576


@dataclass(frozen=True)
class Bench:
    """A probe with one GPU of ``TOTAL_MIB``, where memory is held on it, and how it is broken."""

    probe: GpuProbe
    held: Path
    fail: Callable[[], object]
    repair: Callable[[], object]

    async def free_mib(self) -> int:
        (gpu,) = await self.probe.read()
        assert gpu.error is None
        return gpu.free_mib


@pytest.fixture(params=["nvml", "simulated"])
async def bench(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Bench]:
    if request.param == "nvml":
        library = request.getfixturevalue("nvml_library")
        nvml = NvmlStandin(tmp_path / "nvml", library, total_mib=TOTAL_MIB)
        nvml.preload(monkeypatch)
        probe = ThreadedProbe(NvmlReader())
        bench = Bench(probe, nvml.held_directory(), nvml.unload_driver, nvml.heal)
    else:
        held, away = tmp_path / "vram", tmp_path / "away"
        simulated = SimulatedGpu(TOTAL_MIB, held)
        bench = Bench(simulated, held, lambda: held.rename(away), lambda: away.rename(held))
    yield bench
    await bench.probe.close()


async def test_a_gpu_has_an_index_an_identity_and_figures(bench: Bench) -> None:
    (gpu,) = await bench.probe.read()
    assert (gpu.index, gpu.total_mib, gpu.free_mib) == (0, TOTAL_MIB, TOTAL_MIB)
    assert gpu.uuid
    assert gpu.name


async def test_memory_is_used_while_a_process_holds_it_and_free_when_it_has_died(
    bench: Bench,
) -> None:
    with holder(bench.held, "tts") as process:
        process.hold(2400)
        assert await bench.free_mib() == TOTAL_MIB - 2400
        process.hold(100)
        assert await bench.free_mib() == TOTAL_MIB - 100
        process.kill()
        assert await bench.free_mib() == TOTAL_MIB


async def test_free_memory_is_never_below_zero(bench: Bench) -> None:
    with HeldMemory(bench.held) as memory:
        memory.hold("llm", TOTAL_MIB + 1)
        assert await bench.free_mib() == 0


async def test_it_raises_when_nothing_can_be_read_and_recovers_by_itself(bench: Bench) -> None:
    assert await bench.free_mib() == TOTAL_MIB
    bench.fail()
    for _ in range(2):
        with pytest.raises(GpuUnhealthy):
            await bench.probe.read()
    bench.repair()
    assert await bench.free_mib() == TOTAL_MIB


async def test_it_may_be_read_from_several_tasks_at_once(bench: Bench) -> None:
    reads = await asyncio.gather(*(bench.free_mib() for _ in range(10)))
    assert reads == [TOTAL_MIB] * 10


async def test_it_is_quick_enough_to_be_read_every_5_ms(bench: Bench) -> None:
    with HeldMemory(bench.held) as memory:
        for number in range(10):
            memory.hold(f"consumer-{number}", 1)
        took_s = []
        for _ in range(50):
            begun = time.perf_counter()
            await bench.probe.read()
            took_s.append(time.perf_counter() - begun)
    assert sorted(took_s)[len(took_s) // 2] < 0.005


async def test_it_may_be_closed_twice(bench: Bench) -> None:
    await bench.probe.read()
    await bench.probe.close()
    await bench.probe.close()
