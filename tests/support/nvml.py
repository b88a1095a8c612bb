"""The driver's side of NVML for tests: ``tests/gpu/nvml_standin.c``, compiled and fed.

In a test: take the fixture ``nvml`` (import it and ``nvml_library`` into a conftest.py), or make
an ``NvmlStandin(directory, library)``. Another process meets it with ``env`` in its environment;
the test's own process meets it after ``preload``.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

SONAME = "libnvidia-ml.so.1"
VERSION = "550.54.14"
_SOURCE = Path(__file__).parents[1] / "gpu" / "nvml_standin.c"


def build(library: Path, *, version: str = VERSION, optional: bool = True) -> Path:
    """Compile to ``library``: for a driver version, with ``optional`` functions or without."""
    library.parent.mkdir(parents=True, exist_ok=True)
    defines = [f'-DSTANDIN_VERSION="{version}"', *(["-DWITHOUT_OPTIONAL"] * (not optional))]
    flags = ["-std=c11", "-Wall", "-Wextra", "-O1", "-shared", "-fPIC"]
    command = ["gcc", *flags, f"-Wl,-soname,{SONAME}", *defines, "-o", str(library), str(_SOURCE)]
    subprocess.run(command, check=True, timeout=30)
    return library


@dataclass(frozen=True, slots=True)
class _Gpu:
    total_mib: int
    uuid: str
    name: str
    used_mib: int = 0
    lost: bool = False


@dataclass(frozen=True, slots=True)
class _Fault:
    code: int = 0
    delay_ms: int = 0
    hang: bool = False


class NvmlStandin:
    """The state of a machine's GPUs; every change is seen by the next NVML call of any process.

    Free memory is total, less what the test says is used, less what living processes hold with
    ``HeldMemory(standin.held_directory(gpu))``.
    """

    def __init__(
        self, directory: Path, library: Path, *, gpus: int = 1, total_mib: int = 24576
    ) -> None:
        self._directory = directory
        self._driver = VERSION
        self._gpus = [
            _Gpu(total_mib, f"GPU-standin-{index}", f"Stand-in GPU {index}")
            for index in range(gpus)
        ]
        self._faults: dict[tuple[str, int], _Fault] = {}
        self._processes: list[tuple[str, int, int, int]] = []
        for index in range(gpus):
            self.held_directory(index).mkdir(parents=True, exist_ok=True)
        self.install(library)
        self._write()

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment, beside its own, to meet this stand-in."""
        paths = [str(self._directory / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            "LD_LIBRARY_PATH": ":".join(filter(None, paths)),
            "NVML_STANDIN_DIR": str(self._directory),
        }

    def preload(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this very process meet the stand-in, as it is too late for LD_LIBRARY_PATH.

        glibc answers a ``dlopen`` by name with the library already loaded under that soname.
        """
        ctypes.CDLL(str(self.library))
        monkeypatch.setenv("NVML_STANDIN_DIR", str(self._directory))

    @property
    def library(self) -> Path:
        return self._directory / "lib" / SONAME

    def install(self, library: Path) -> None:
        """Put another build of the library in place, as a driver update does."""
        self.library.parent.mkdir(exist_ok=True)
        link = self.library.with_name("new")
        link.symlink_to(library)
        link.replace(self.library)

    def held_directory(self, gpu: int = 0) -> Path:
        """Where processes hold memory on this GPU, with ``mgpu.gpu.simulated.HeldMemory``."""
        return self._directory / "held" / str(gpu)

    def set_total_mib(self, mib: int, *, gpu: int = 0) -> None:
        self._change(gpu, total_mib=mib)

    def set_used_mib(self, mib: int, *, gpu: int = 0) -> None:
        """What is used beside the memory that processes hold in ``held_directory``."""
        self._change(gpu, used_mib=mib)

    def set_free_mib(self, mib: int, *, gpu: int = 0) -> None:
        """Like ``set_used_mib``, by what is left."""
        self._change(gpu, used_mib=self._gpus[gpu].total_mib - mib)

    def set_name(self, name: str, *, gpu: int = 0) -> None:
        self._change(gpu, name=name)

    def list_process(
        self, pid: int, mib: int | None, *, kind: str = "compute", gpu: int = 0
    ) -> None:
        """List one that holds nothing in ``held_directory``; None: its figure is not available."""
        self._processes.append((kind, gpu, pid, -1 if mib is None else mib))
        self._write()

    def lose(self, *, gpu: int = 0) -> None:
        """Let it fall off the bus: lost until ``bring_back`` and a new initialisation of NVML."""
        self._change(gpu, lost=True)

    def bring_back(self, *, gpu: int = 0) -> None:
        self._change(gpu, lost=False)

    def set_gpus(self, count: int) -> None:
        """Leave only the first ``count`` GPUs on the machine."""
        del self._gpus[count:]
        self._write()

    def set_driver(self, version: str) -> None:
        """Load a kernel driver of this version; a library of another one mismatches."""
        self._driver = version
        self._write()

    def unload_driver(self) -> None:
        """No kernel driver; any other change of the state loads it again."""
        (self._directory / "state").unlink()

    def fail(self, function: str, code: int, *, gpu: int | None = None) -> None:
        """``function`` (``*``: all) answers with this NVML error code, for one GPU or any."""
        self._fault(function, gpu, code=code)

    def delay(self, function: str, delay_ms: int, *, gpu: int | None = None) -> None:
        """``function`` takes this long before it answers."""
        self._fault(function, gpu, delay_ms=delay_ms)

    def hang(self, function: str = "*", *, gpu: int | None = None) -> None:
        """``function`` does not return until ``heal``."""
        self._fault(function, gpu, hang=True)

    def heal(self) -> None:
        """End every fault; calls that hang return with what was true when they began."""
        self._faults.clear()
        self._write()

    def _fault(
        self,
        function: str,
        gpu: int | None,
        *,
        code: int = 0,
        delay_ms: int = 0,
        hang: bool = False,
    ) -> None:
        fault = _Fault(code=code, delay_ms=delay_ms, hang=hang)
        self._faults[function, -1 if gpu is None else gpu] = fault
        self._write()

    def _change(self, gpu: int, **changes: int | str) -> None:
        self._gpus[gpu] = replace(self._gpus[gpu], **changes)  # type: ignore[arg-type]
        self._write()

    def _write(self) -> None:
        lines = [f"driver {self._driver}"]
        lines += [
            f"gpu {index} {gpu.total_mib} {gpu.used_mib} {gpu.lost:d} {gpu.uuid} {gpu.name}"
            for index, gpu in enumerate(self._gpus)
        ]
        lines += [
            f"fault {function} {gpu} {fault.code} {fault.delay_ms} {fault.hang:d}"
            for (function, gpu), fault in self._faults.items()
        ]
        lines += [f"process {kind} {gpu} {pid} {mib}" for kind, gpu, pid, mib in self._processes]
        new = self._directory / "state.new"
        new.write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")
        new.replace(self._directory / "state")


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled stand-in; every xdist worker compiles its own, which takes 0.1 s."""
    return build(tmp_path_factory.mktemp("nvml") / SONAME)


@pytest.fixture
def nvml(tmp_path: Path, nvml_library: Path) -> NvmlStandin:
    """A machine with two GPUs of 24576 MiB, nothing of them used."""
    return NvmlStandin(tmp_path / "nvml", nvml_library, gpus=2)


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with ``extra`` over it, for a child."""
    return {**os.environ, **extra}
