import asyncio
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpu.errors import GpuUnhealthy
from mgpu.gpu.simulated import HeldMemory, SimulatedGpu, held_mib
from tests.support.processes import holder


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "vram"


@pytest.fixture
def memory(directory: Path) -> Iterator[HeldMemory]:
    with HeldMemory(directory) as memory:
        yield memory


async def free_mib(gpu: SimulatedGpu) -> int:
    (reading,) = await gpu.read()
    return reading.free_mib


class TestHeldMemory:
    def test_the_latest_amount_of_each_name_counts(
        self, memory: HeldMemory, directory: Path
    ) -> None:
        memory.hold("tts", 2400)
        memory.hold("stt", 1000)
        memory.hold("tts", 300)
        assert held_mib(directory) == {"tts": 300, "stt": 1000}

    def test_the_amounts_of_processes_under_one_name_add_up(
        self, memory: HeldMemory, directory: Path
    ) -> None:
        memory.hold("tts", 100)
        with holder(directory, "tts") as other:
            other.hold(2400)
            assert held_mib(directory) == {"tts": 2500}

    def test_what_a_killed_process_held_counts_no_more(self, directory: Path) -> None:
        with holder(directory, "tts") as process:
            process.hold(2400)
            process.kill()
        assert held_mib(directory) == {"tts": 0}

    def test_closing_gives_everything_back(self, directory: Path) -> None:
        with HeldMemory(directory) as memory:
            memory.hold("tts", 2400)
        assert held_mib(directory) == {"tts": 0}

    def test_the_file_is_named_after_the_consumer_and_the_process(
        self, memory: HeldMemory, directory: Path
    ) -> None:
        memory.hold("v1.5-tts", 7)
        (path,) = directory.iterdir()
        assert re.fullmatch(rf"v1\.5-tts\.{os.getpid()}\.\w+", path.name)
        assert held_mib(directory) == {"v1.5-tts": 7}

    def test_a_process_number_used_again_is_not_taken_for_the_old_holder(
        self, memory: HeldMemory, directory: Path
    ) -> None:
        memory.hold("stt", 0)
        (directory / f"tts.{os.getpid()}.old").write_bytes(bytes(2400))
        assert held_mib(directory) == {"stt": 0, "tts": 0}

    def test_somebody_else_who_looks_is_not_taken_for_a_holder(
        self, memory: HeldMemory, directory: Path
    ) -> None:
        memory.hold("tts", 0)
        dead = directory / "stt.1.dead"
        dead.write_bytes(bytes(2400))
        with dead.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            assert held_mib(directory) == {"tts": 0, "stt": 0}

    def test_files_of_dead_processes_do_not_pile_up(self, directory: Path) -> None:
        for _ in range(3):
            with HeldMemory(directory) as memory:
                memory.hold("tts", 2400)
        assert len(list(directory.iterdir())) == 1

    def test_nor_do_those_of_other_names_and_living_processes_get_lost(
        self, memory: HeldMemory, directory: Path
    ) -> None:
        memory.hold("tts", 100)
        with HeldMemory(directory) as other:
            other.hold("tts", 10)
            other.hold("tts2", 1)
            assert held_mib(directory) == {"tts": 110, "tts2": 1}

    @pytest.mark.parametrize("name", ["", ".tts", "a/b"])
    def test_a_name_that_is_no_file_name_is_refused(self, memory: HeldMemory, name: str) -> None:
        with pytest.raises(ValueError, match=re.escape(repr(name))):
            memory.hold(name, 1)

    def test_a_negative_amount_is_refused(self, memory: HeldMemory) -> None:
        with pytest.raises(ValueError, match="tts: cannot hold -1 MiB"):
            memory.hold("tts", -1)


class TestBelief:
    async def test_without_files_the_broker_is_believed(self) -> None:
        gpu = SimulatedGpu(24576)
        gpu.believe("tts", 2400)
        gpu.believe("llm", 8000)
        gpu.believe("tts", 100)
        assert await free_mib(gpu) == 24576 - 8000 - 100

    async def test_a_consumer_that_writes_a_file_is_believed_instead(
        self, memory: HeldMemory, directory: Path
    ) -> None:
        gpu = SimulatedGpu(24576, directory)
        gpu.believe("tts", 2400)
        gpu.believe("llm", 8000)
        memory.hold("tts", 2000)
        assert await free_mib(gpu) == 24576 - 8000 - 2000

    async def test_it_is_believed_even_when_it_has_given_all_back_or_died(
        self, directory: Path
    ) -> None:
        gpu = SimulatedGpu(24576, directory)
        gpu.believe("tts", 2400)
        with holder(directory, "tts") as process:
            process.hold(2000)
            process.kill()
        assert await free_mib(gpu) == 24576

    def test_a_negative_amount_is_refused(self) -> None:
        with pytest.raises(ValueError, match="tts: cannot hold -1 MiB"):
            SimulatedGpu(24576).believe("tts", -1)


async def test_the_one_gpu_has_an_identity() -> None:
    (gpu,) = await SimulatedGpu(8192).read()
    assert (gpu.index, gpu.uuid, gpu.name) == (0, "GPU-simulated-0", "Simulated GPU")
    assert (gpu.total_mib, gpu.free_mib, gpu.error) == (8192, 8192, None)


def test_a_directory_that_vanishes_makes_it_unhealthy(directory: Path) -> None:
    gpu = SimulatedGpu(8192, directory)
    directory.rmdir()
    with pytest.raises(GpuUnhealthy, match=r"cannot be read: .*vram"):
        asyncio.run(gpu.read())


def test_holding_makes_the_directory(tmp_path: Path) -> None:
    with HeldMemory(tmp_path / "a" / "b") as memory:
        memory.hold("tts", 1)
        assert held_mib(tmp_path / "a" / "b") == {"tts": 1}
