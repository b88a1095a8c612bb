import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from mgpu.core.model import GpuProcess, GpuReading
from mgpu.errors import ConfigError, GpuUnhealthy
from mgpu.gpu.nvml import Devices, NvmlReader
from tests.support.nvml import SONAME, NvmlStandin, build
from tests.support.processes import holder, prober

MEMORY_INFO = "nvmlDeviceGetMemoryInfo"
Open = Callable[..., NvmlReader]


@pytest.fixture
def open_reader(nvml: NvmlStandin, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    nvml.preload(monkeypatch)
    opened: list[NvmlReader] = []

    def open_reader(devices: Devices = "all", reinit_interval_s: float = 0.0) -> NvmlReader:
        opened.append(NvmlReader(devices, reinit_interval_s=reinit_interval_s))
        return opened[-1]

    yield open_reader
    nvml.heal()
    for reader in opened:
        reader.close()


@pytest.fixture
def reader(open_reader: Open) -> NvmlReader:
    return open_reader()


def healthy(reader: NvmlReader) -> list[int]:
    return [reading.index for reading in reader.read() if reading.error is None]


def error_of(reader: NvmlReader, index: int) -> str:
    (reading,) = [reading for reading in reader.read() if reading.index == index]
    return reading.error or ""


class TestFigures:
    def test_every_gpu_is_read_with_total_free_and_identity(
        self, reader: NvmlReader, nvml: NvmlStandin
    ) -> None:
        nvml.set_total_mib(81559, gpu=1)
        nvml.set_free_mib(80000, gpu=1)
        assert reader.read() == (
            GpuReading(
                index=0,
                uuid="GPU-standin-0",
                name="Stand-in GPU 0",
                total_mib=24576,
                free_mib=24576,
                processes=(),
            ),
            GpuReading(
                index=1,
                uuid="GPU-standin-1",
                name="Stand-in GPU 1",
                total_mib=81559,
                free_mib=80000,
                processes=(),
            ),
        )

    def test_each_read_measures_anew(self, reader: NvmlReader, nvml: NvmlStandin) -> None:
        reader.read()
        nvml.set_used_mib(1000)
        assert [gpu.free_mib for gpu in reader.read()] == [23576, 24576]

    def test_memory_held_by_processes_is_used_on_their_gpu(
        self, reader: NvmlReader, nvml: NvmlStandin
    ) -> None:
        nvml.set_used_mib(100, gpu=1)
        with (
            holder(nvml.held_directory(1), "tts") as tts,
            holder(nvml.held_directory(1), "stt") as stt,
        ):
            tts.hold(2400)
            stt.hold(1000)
            assert [gpu.free_mib for gpu in reader.read()] == [24576, 24576 - 100 - 2400 - 1000]
            tts.kill()
            assert [gpu.free_mib for gpu in reader.read()] == [24576, 24576 - 100 - 1000]

    def test_a_closed_reader_opens_again(self, reader: NvmlReader) -> None:
        before = reader.read()
        reader.close()
        assert reader.read() == before


class TestDevices:
    @pytest.mark.parametrize("devices", [(1,), ("GPU-standin-1",), ("GPU-standin-1", 1)])
    def test_only_the_configured_ones_are_read(self, open_reader: Open, devices: Devices) -> None:
        assert [gpu.index for gpu in open_reader(devices).read()] == [1]

    @pytest.mark.parametrize("missing", [7, -1])
    def test_an_index_that_does_not_exist_is_an_error_that_names_those_that_do(
        self, open_reader: Open, missing: int
    ) -> None:
        reader = open_reader((0, missing))
        assert healthy(reader) == [0]
        assert error_of(reader, missing) == f"there is no GPU {missing}; there are: 0, 1"

    def test_an_unknown_uuid_raises_naming_those_that_exist(self, open_reader: Open) -> None:
        with pytest.raises(GpuUnhealthy) as raised:
            open_reader((0, "GPU-other")).read()
        assert raised.value.detail == (
            "gpu.devices: no GPU has the UUID GPU-other; "
            "there are: GPU-standin-0 (0), GPU-standin-1 (1)"
        )

    def test_a_gpu_known_by_uuid_keeps_its_place_while_it_is_lost(
        self, open_reader: Open, nvml: NvmlStandin
    ) -> None:
        reader = open_reader(("GPU-standin-0", "GPU-standin-1"))
        reader.read()
        nvml.lose(gpu=1)
        assert [healthy(reader), healthy(reader)] == [[0], [0]]

    def test_no_device_at_all_is_a_mistake_in_the_configuration(self) -> None:
        with pytest.raises(ConfigError, match=r"gpu\.devices: names no GPU"):
            NvmlReader(())

    @pytest.mark.parametrize("devices", ["all", ("GPU-standin-0", "GPU-standin-1")])
    def test_a_gpu_that_has_gone_from_the_machine_is_still_shown(
        self, open_reader: Open, nvml: NvmlStandin, devices: Devices
    ) -> None:
        reader = open_reader(devices)
        reader.read()
        nvml.set_gpus(1)
        nvml.fail(MEMORY_INFO, pynvml.NVML_ERROR_UNKNOWN, gpu=0)
        reader.read()
        nvml.heal()
        assert healthy(reader) == [0]
        assert error_of(reader, 1) == "there is no GPU 1; there are: 0"

    def test_a_machine_without_a_gpu_is_unhealthy(
        self, reader: NvmlReader, nvml: NvmlStandin
    ) -> None:
        nvml.set_gpus(0)
        with pytest.raises(GpuUnhealthy, match="finds no GPU"):
            reader.read()


class TestOneGpuFails:
    @pytest.mark.parametrize("function", [MEMORY_INFO, "nvmlDeviceGetHandleByIndex_v2"])
    def test_the_other_one_stays_healthy(
        self, open_reader: Open, nvml: NvmlStandin, function: str
    ) -> None:
        nvml.fail(function, pynvml.NVML_ERROR_UNKNOWN, gpu=1)
        reader = open_reader()
        assert healthy(reader) == [0]
        assert error_of(reader, 1) == "GPU 1: NVML error 999: Unknown Error"

    def test_its_reading_keeps_what_does_not_change(
        self, reader: NvmlReader, nvml: NvmlStandin
    ) -> None:
        reader.read()
        nvml.fail("*", pynvml.NVML_ERROR_UNKNOWN, gpu=1)
        failed = reader.read()[1]
        assert (failed.uuid, failed.name, failed.total_mib, failed.free_mib) == (
            "GPU-standin-1",
            "Stand-in GPU 1",
            24576,
            0,
        )

    def test_it_is_healthy_again_when_it_answers_again(
        self, reader: NvmlReader, nvml: NvmlStandin
    ) -> None:
        nvml.fail(MEMORY_INFO, pynvml.NVML_ERROR_UNKNOWN, gpu=1)
        assert healthy(reader) == [0]
        nvml.heal()
        assert healthy(reader) == [0, 1]

    def test_a_lost_one_that_came_back_is_found_by_initialising_anew(
        self, reader: NvmlReader, nvml: NvmlStandin
    ) -> None:
        nvml.lose(gpu=1)
        assert "fallen off the bus" in error_of(reader, 1)
        nvml.bring_back(gpu=1)
        assert healthy(reader) == [0, 1]

    def test_nvml_is_not_initialised_anew_more_often_than_the_interval(
        self, open_reader: Open, nvml: NvmlStandin
    ) -> None:
        reader = open_reader(reinit_interval_s=3600.0)
        nvml.lose(gpu=1)
        reader.read()
        nvml.bring_back(gpu=1)
        assert healthy(reader) == [0]

    def test_an_error_that_the_binding_does_not_know_is_named_by_the_library(
        self, reader: NvmlReader, nvml: NvmlStandin
    ) -> None:
        nvml.fail(MEMORY_INFO, 777, gpu=1)
        assert error_of(reader, 1) == "GPU 1: NVML error 777: stand-in error 777"


class TestAllFails:
    @pytest.mark.parametrize(
        ("function", "code", "message"),
        [
            ("nvmlInitWithFlags", pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "driver is not loaded"),
            ("nvmlInitWithFlags", pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "different versions"),
            ("nvmlInitWithFlags", pynvml.NVML_ERROR_NO_PERMISSION, "/dev/nvidia"),
            ("nvmlDeviceGetCount_v2", pynvml.NVML_ERROR_UNKNOWN, "Unknown Error"),
            (MEMORY_INFO, pynvml.NVML_ERROR_UNINITIALIZED, "lost its connection"),
            (MEMORY_INFO, pynvml.NVML_ERROR_GPU_IS_LOST, "GPU 0: .*; GPU 1: .*off the bus"),
        ],
    )
    def test_the_read_raises_and_the_next_good_one_recovers(
        self, reader: NvmlReader, nvml: NvmlStandin, function: str, code: int, message: str
    ) -> None:
        nvml.fail(function, code)
        for _ in range(2):
            with pytest.raises(GpuUnhealthy, match=message):
                reader.read()
        nvml.heal()
        assert healthy(reader) == [0, 1]

    def test_a_failing_shutdown_does_not_stop_the_recovery(
        self, reader: NvmlReader, nvml: NvmlStandin
    ) -> None:
        reader.read()
        nvml.fail(MEMORY_INFO, pynvml.NVML_ERROR_UNINITIALIZED, gpu=1)
        nvml.fail("nvmlShutdown", pynvml.NVML_ERROR_UNKNOWN)
        with pytest.raises(GpuUnhealthy):
            reader.read()
        nvml.heal()
        nvml.fail("nvmlShutdown", pynvml.NVML_ERROR_UNKNOWN)
        assert healthy(reader) == [0, 1]

    def test_a_kernel_driver_of_another_version_is_waited_out(
        self, reader: NvmlReader, nvml: NvmlStandin
    ) -> None:
        nvml.set_driver("560.35.03")
        with pytest.raises(GpuUnhealthy, match="different versions"):
            reader.read()
        nvml.set_driver("550.54.14")
        assert healthy(reader) == [0, 1]

    def test_a_driver_updated_under_a_running_process_is_found(
        self, nvml: NvmlStandin, tmp_path: Path
    ) -> None:
        updated = build(tmp_path / "updated.so", version="560.35.03")
        with prober(nvml) as process:
            assert len(process.read()["gpus"]) == 2
            nvml.unload_driver()
            assert "not loaded" in process.read()["error"]
            nvml.install(updated)
            nvml.set_driver("560.35.03")
            assert "different versions" in process.read()["error"]
            assert len(process.read()["gpus"]) == 2

    def test_without_the_library_the_message_says_so_until_it_is_installed(
        self, nvml: NvmlStandin, nvml_library: Path, tmp_path: Path
    ) -> None:
        # An empty file comes first on the path, so a real driver's library cannot be met either.
        empty = tmp_path / "empty.so"
        empty.touch()
        nvml.install(empty)
        with prober(nvml) as process:
            assert "the NVIDIA driver is not installed" in process.read()["error"]
            nvml.install(nvml_library)
            assert len(process.read()["gpus"]) == 2


LISTS = (
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
)


def processes(reader: NvmlReader) -> tuple[GpuProcess, ...] | None:
    return reader.read()[0].processes


class TestProcesses:
    def test_each_that_holds_memory_is_listed_on_its_gpu(
        self, reader: NvmlReader, nvml: NvmlStandin
    ) -> None:
        with holder(nvml.held_directory(1), "tts") as tts:
            tts.hold(2400)
            found = [reading.processes for reading in reader.read()]
        assert found == [(), (GpuProcess(tts.process.pid, 2400),)]

    def test_one_in_several_lists_counts_once(self, reader: NvmlReader, nvml: NvmlStandin) -> None:
        nvml.list_process(70, 500)
        nvml.list_process(70, 500, kind="graphics")
        nvml.list_process(80, 300, kind="graphics")
        nvml.list_process(90, 200, kind="mps")
        assert processes(reader) == (
            GpuProcess(70, 500),
            GpuProcess(80, 300),
            GpuProcess(90, 200),
        )

    def test_a_figure_that_is_not_available_is_no_number(
        self, reader: NvmlReader, nvml: NvmlStandin
    ) -> None:
        nvml.list_process(70, None)
        nvml.list_process(70, 500, kind="graphics")
        assert processes(reader) == (GpuProcess(70, None),)

    @pytest.mark.parametrize(
        "code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION]
    )
    def test_without_the_list_memory_is_told_all_the_same_and_it_is_not_asked_for_again(
        self, reader: NvmlReader, nvml: NvmlStandin, code: int
    ) -> None:
        nvml.fail(LISTS[0], code)
        assert processes(reader) is None
        assert healthy(reader) == [0, 1]
        nvml.heal()
        assert processes(reader) is None
        reader.close()
        assert processes(reader) == ()

    def test_without_the_other_lists_compute_is_told(
        self, reader: NvmlReader, nvml: NvmlStandin
    ) -> None:
        nvml.fail(LISTS[1], pynvml.NVML_ERROR_NOT_SUPPORTED)
        nvml.fail(LISTS[2], pynvml.NVML_ERROR_NOT_SUPPORTED)
        nvml.list_process(70, 500)
        assert processes(reader) == (GpuProcess(70, 500),)

    def test_an_error_that_may_pass_is_asked_past(
        self, reader: NvmlReader, nvml: NvmlStandin
    ) -> None:
        nvml.fail(LISTS[0], pynvml.NVML_ERROR_UNKNOWN)
        assert processes(reader) is None
        nvml.heal()
        assert processes(reader) == ()


class TestOptionalFunctions:
    def test_a_library_that_lacks_them_still_tells_the_memory(
        self, nvml: NvmlStandin, tmp_path: Path
    ) -> None:
        nvml.install(build(tmp_path / "old.so", optional=False))
        nvml.set_used_mib(576)
        with prober(nvml) as process:
            gpu = process.read()["gpus"][0]
        assert gpu == {
            "index": 0,
            "uuid": "",
            "name": "",
            "total_mib": 24576,
            "free_mib": 24000,
            "error": None,
            "processes": [],
            "held_mib": {},
            "foreign": [],
        }

    @pytest.mark.parametrize("function", ["nvmlDeviceGetUUID", "nvmlDeviceGetName"])
    def test_a_gpu_that_does_not_support_them_still_tells_the_memory(
        self, reader: NvmlReader, nvml: NvmlStandin, function: str
    ) -> None:
        nvml.fail(function, pynvml.NVML_ERROR_NOT_SUPPORTED)
        assert healthy(reader) == [0, 1]

    def test_a_name_that_is_no_text_is_left_out(
        self, reader: NvmlReader, nvml: NvmlStandin
    ) -> None:
        nvml.set_name("GPU \udcff")
        gpu = reader.read()[0]
        assert (gpu.name, gpu.total_mib) == ("", 24576)


class TestTheStandinIsLikeTheRealThing:
    """What the stand-in believes of NVML, against the binding, which is NVIDIA's own."""

    @pytest.fixture
    def library(self, nvml_library: Path) -> ctypes.CDLL:
        return ctypes.CDLL(str(nvml_library))

    def test_its_memory_structure_has_the_bindings_layout(self, library: ctypes.CDLL) -> None:
        theirs = pynvml.c_nvmlMemory_t
        assert list((ctypes.c_size_t * 4).in_dll(library, "standin_memory_layout")) == [
            ctypes.sizeof(theirs),
            theirs.total.offset,
            theirs.free.offset,
            theirs.used.offset,
        ]

    def test_its_process_structure_has_the_bindings_layout(self, library: ctypes.CDLL) -> None:
        theirs = pynvml.c_nvmlProcessInfo_v3_t
        assert list((ctypes.c_size_t * 5).in_dll(library, "standin_process_layout")) == [
            ctypes.sizeof(theirs),
            theirs.pid.offset,
            theirs.usedGpuMemory.offset,
            theirs.gpuInstanceId.offset,
            theirs.computeInstanceId.offset,
        ]

    def test_its_texts_fit_the_bindings_buffers(self, library: ctypes.CDLL) -> None:
        assert list((ctypes.c_size_t * 2).in_dll(library, "standin_buffers")) == [
            pynvml.NVML_DEVICE_UUID_V2_BUFFER_SIZE,
            pynvml.NVML_DEVICE_NAME_V2_BUFFER_SIZE,
        ]

    def test_its_error_codes_are_the_bindings(self, library: ctypes.CDLL) -> None:
        assert list((ctypes.c_int * 6).in_dll(library, "standin_codes")) == [
            pynvml.NVML_ERROR_UNINITIALIZED,
            pynvml.NVML_ERROR_INVALID_ARGUMENT,
            pynvml.NVML_ERROR_INSUFFICIENT_SIZE,
            pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
            pynvml.NVML_ERROR_GPU_IS_LOST,
            pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        ]

    def test_the_binding_loads_it_by_the_name_of_the_real_one(self) -> None:
        assert f'CDLL("{SONAME}")' in Path(pynvml.__file__).read_text()
