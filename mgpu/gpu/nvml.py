"""The memory of NVIDIA GPUs, read through NVML; the only module that knows ``pynvml``.

NVML fails in two ways. One GPU can fail while the others answer: its reading carries the error.
Or the library as a whole is of no use (not there, driver gone, versions apart): the read raises,
and the next one shuts NVML down and initialises it anew, since handles and NVML's own view of a
GPU are good for one initialisation only. So whatever is repaired is noticed without a restart.

Which processes hold a GPU's memory is read along with it, by their numbers in the host's own
numbering. Where that cannot be had (WSL, vGPU, old drivers) it is not asked for again until NVML is
initialised anew, and everything else goes on. With MIG, a GPU as a whole is read: its instances
are not told apart.

Facts about NVML are from NVIDIA's NVML API reference, those about the binding from its source
(nvidia-ml-py 13: ``_LoadNvmlLibrary``, ``_nvmlGetFunctionPointer``).
"""

from __future__ import annotations

import contextlib
import time
from _ctypes import dlclose
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import pynvml

from mgpu.core.model import GpuProcess, GpuReading
from mgpu.errors import ConfigError, GpuUnhealthy

Devices = Literal["all"] | tuple[int | str, ...]

_WHOLE_LIBRARY: Final = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)

_NEVER: Final = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NO_PERMISSION,
    }
)
"""Errors that a call will go on to give; all others may pass."""

_PROCESS_LISTS: Final = (
    "nvmlDeviceGetComputeRunningProcesses",
    "nvmlDeviceGetGraphicsRunningProcesses",
    "nvmlDeviceGetMPSComputeRunningProcesses",
)
"""A process may be in several of them, with the same figure."""

_MEANING: Final = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
        "libnvidia-ml.so.1 cannot be loaded: the NVIDIA driver is not installed, or not passed "
        "into this container"
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA kernel driver is not loaded",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA library and the NVIDIA kernel driver are of different versions, as after an "
        "update: load the new kernel driver, or reboot"
    ),
    pynvml.NVML_ERROR_UNINITIALIZED: "NVML has lost its connection to the driver",
    pynvml.NVML_ERROR_NO_PERMISSION: "this user may not use the NVIDIA devices (/dev/nvidia*)",
    pynvml.NVML_ERROR_GPU_IS_LOST: "the GPU has fallen off the bus, or is otherwise out of reach",
    pynvml.NVML_ERROR_RESET_REQUIRED: "the GPU has to be reset before it can be used again",
    pynvml.NVML_ERROR_NOT_SUPPORTED: "the GPU does not tell how much memory it has",
}


@dataclass(slots=True)
class _Gpu:
    """What is known of one GPU; all but the handle outlives an initialisation of NVML."""

    index: int
    handle: Any = None
    uuid: str = ""
    name: str = ""
    total_mib: int = 0
    lost: bool = False
    unlisted: set[str] = field(default_factory=set)
    """The lists of processes that this GPU does not have."""

    def failed(self, error: str) -> GpuReading:
        return GpuReading(
            index=self.index,
            uuid=self.uuid,
            name=self.name,
            total_mib=self.total_mib,
            error=error,
        )


class NvmlReader:
    """Reads the memory of the GPUs; blocks as long as NVML does, so it belongs on a thread.

    ``devices``: ``"all"``, or NVML indexes and full UUIDs. While a GPU fails, NVML is initialised
    anew at most every ``reinit_interval_s``: that takes tens of milliseconds, and the GPUs that
    are well are read meanwhile. One thread at a time may use a reader. Raises ``ConfigError`` when
    ``devices`` is empty.
    """

    def __init__(self, devices: Devices = "all", *, reinit_interval_s: float = 1.0) -> None:
        if not devices:
            raise ConfigError('gpu.devices: names no GPU; "all" stands for every one')
        self._devices = devices
        self._reinit_interval_s = reinit_interval_s
        self._gpus: dict[int, _Gpu] = {}
        self._count = 0
        self._wanted: tuple[int, ...] = ()
        self._initialised = False
        self._initialised_at = 0.0
        self._sound = False
        self._outdated = False

    def read(self) -> tuple[GpuReading, ...]:
        """Every wanted GPU, by NVML's index. MiB are whole ones: bytes >> 20.

        A GPU that fails, or that was configured by an index that does not exist, has an error and
        its last known UUID, name and total. Raises ``GpuUnhealthy`` when NVML as a whole fails,
        when every GPU is lost, and when a configured UUID was never seen.
        """
        try:
            if not self._sound:
                self._initialise()
            self._sound = False
            readings = tuple(self._measure(index) for index in self._wanted)
        except pynvml.NVMLError as error:
            self._outdated = error.value == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
            raise GpuUnhealthy(_explain(error)) from error
        if all(self._gpus[index].lost for index in self._wanted):
            raise GpuUnhealthy("; ".join(reading.error or "" for reading in readings))
        self._sound = all(reading.error is None for reading in readings) or (
            time.monotonic() - self._initialised_at < self._reinit_interval_s
        )
        return readings

    def close(self) -> None:
        """Shut NVML down; a read after it initialises it again."""
        for gpu in self._gpus.values():
            gpu.handle = None
            gpu.unlisted.clear()
        if self._initialised:
            self._initialised = self._sound = False
            # A library that has failed need not be able to shut down; there is nothing else to do.
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    def _initialise(self) -> None:
        self.close()
        if self._outdated:
            _unload_library()
            self._outdated = False
        pynvml.nvmlInit()
        self._initialised = True
        self._initialised_at = time.monotonic()
        self._count = pynvml.nvmlDeviceGetCount()
        if not self._count:
            raise GpuUnhealthy("the NVIDIA driver works, but finds no GPU")
        self._wanted = self._select()

    def _select(self) -> tuple[int, ...]:
        if self._devices == "all":
            # One that was there before and has gone away is still shown, with its error.
            return tuple(sorted({*range(self._count), *self._gpus}))
        indexes = {self._index_of(d) if isinstance(d, str) else d for d in self._devices}
        return tuple(sorted(indexes))

    def _index_of(self, uuid: str) -> int:
        present = [self._present(index) for index in range(self._count)]
        for gpu in (*present, *self._gpus.values()):
            if gpu.uuid == uuid:
                return gpu.index
        there = ", ".join(
            f"{gpu.uuid or 'one that does not tell'} ({gpu.index})" for gpu in present
        )
        raise GpuUnhealthy(f"gpu.devices: no GPU has the UUID {uuid}; there are: {there}")

    def _present(self, index: int) -> _Gpu:
        """The GPU, identified where that can be done; measuring tells what is wrong with it."""
        gpu = self._gpu(index)
        with contextlib.suppress(pynvml.NVMLError):
            _open(gpu)
        return gpu

    def _gpu(self, index: int) -> _Gpu:
        return self._gpus.setdefault(index, _Gpu(index))

    def _measure(self, index: int) -> GpuReading:
        gpu = self._gpu(index)
        gpu.lost = False
        if not 0 <= index < self._count:
            there = ", ".join(str(existing) for existing in range(self._count))
            return gpu.failed(f"there is no GPU {index}; there are: {there}")
        try:
            _open(gpu)
            memory = pynvml.nvmlDeviceGetMemoryInfo(gpu.handle)
            processes = _processes(gpu)
        except pynvml.NVMLError as error:
            if error.value in _WHOLE_LIBRARY:
                raise
            gpu.handle = None
            gpu.lost = error.value == pynvml.NVML_ERROR_GPU_IS_LOST
            return gpu.failed(f"GPU {index}: {_explain(error)}")
        gpu.total_mib = memory.total >> 20
        return GpuReading(
            index=index,
            uuid=gpu.uuid,
            name=gpu.name,
            total_mib=gpu.total_mib,
            free_mib=memory.free >> 20,
            processes=processes,
        )


def _processes(gpu: _Gpu) -> tuple[GpuProcess, ...] | None:
    """Who holds memory of a GPU; None when that cannot be said.

    Compute is the list that matters, so without it nothing is said. A figure that is not
    available, as always under WDDM, is None and never a number.
    """
    found: dict[int, int | None] = {}
    for name in _PROCESS_LISTS:
        listed = _listed(gpu, name)
        if listed is None and name == _PROCESS_LISTS[0]:
            return None
        for process in listed or ():
            mib = None if process.usedGpuMemory is None else process.usedGpuMemory >> 20
            known = found.get(process.pid, 0)
            found[process.pid] = None if mib is None or known is None else max(known, mib)
    return tuple(GpuProcess(pid, mib) for pid, mib in sorted(found.items()))


def _listed(gpu: _Gpu, name: str) -> list[Any] | None:
    if name in gpu.unlisted:
        return None
    try:
        listed: list[Any] = getattr(pynvml, name)(gpu.handle)
    except pynvml.NVMLLibraryMismatchError:  # what the binding makes of a function that is missing
        gpu.unlisted.add(name)
        return None
    except pynvml.NVMLError as error:
        if error.value in _WHOLE_LIBRARY:
            raise
        if error.value in _NEVER:
            gpu.unlisted.add(name)
        return None
    return listed


def _open(gpu: _Gpu) -> None:
    if gpu.handle is None:
        gpu.handle = pynvml.nvmlDeviceGetHandleByIndex(gpu.index)
        gpu.uuid = _optional(pynvml.nvmlDeviceGetUUID, gpu.handle) or gpu.uuid
        gpu.name = _optional(pynvml.nvmlDeviceGetName, gpu.handle) or gpu.name


def _optional(function: Callable[[Any], str], handle: object) -> str:
    """What a function says that old drivers and some GPUs lack, or that may not be UTF-8."""
    try:
        return function(handle)
    except (pynvml.NVMLError, UnicodeDecodeError):
        return ""


def _explain(error: pynvml.NVMLError) -> str:
    said = f"NVML error {error.value}: {str(error).rstrip('.')}"
    meaning = _MEANING.get(error.value)
    return f"{meaning} ({said})" if meaning else said


def _unload_library() -> None:
    """Make the next initialisation load ``libnvidia-ml.so.1`` from the disk again.

    ``pynvml`` keeps the first library that it loaded, and the pointers into it, until the process
    ends. Under a kernel driver that was updated meanwhile, that one would mismatch for ever.
    """
    if pynvml.nvmlLib is not None:
        library, pynvml.nvmlLib = pynvml.nvmlLib, None
        pynvml._nvmlGetFunctionPointer_cache.clear()  # noqa: SLF001 - no public way to empty it
        dlclose(library._handle)  # noqa: SLF001 - ctypes has no public way to close
