"""A real NVIDIA GPU, services that allocate on it with PyTorch, and a real broker.

Run by ``scripts/test-gpu``, which says with ``$MGPU_TORCH_PYTHON`` what Python has PyTorch. Without
that, or without a GPU, every test here is skipped and says why. With ``MGPU_GPU_STANDIN=1`` they
run on the stand-in for NVML and for PyTorch, which shows that the tests themselves are right.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mgpu.core.model import GpuReading
from mgpu.errors import GpuUnhealthy
from mgpu.gpu.nvml import NvmlReader
from tests.hardware.figures import Figures
from tests.support.broker_process import BrokerProcess, serving
from tests.support.nvml import NvmlStandin, environment, nvml_library
from tests.support.servers import free_port

__all__ = ["nvml_library"]

HERE = Path(__file__).parent
CUSHION_MIB = 256
START_S = 60.0
STANDIN_MIB = 24576


@dataclass(frozen=True)
class Hardware:
    """The GPU of these tests: how it is read, and how a service gets at it."""

    python: str
    reader: NvmlReader
    env: dict[str, str]

    def read(self) -> GpuReading:
        """The first GPU, now."""
        return self.reader.read()[0]


class Service:
    """A running ``service.py``."""

    def __init__(
        self,
        name: str,
        weights_mib: int,
        process: asyncio.subprocess.Process,
        url: str,
        session: aiohttp.ClientSession,
    ) -> None:
        self.name = name
        self.weights_mib = weights_mib
        self.process = process
        self.url = url
        self._session = session

    async def post(self, path: str) -> dict[str, Any]:
        """Its answer; anything but 200 fails the test."""
        async with self._session.post(self.url + path, data=b"work") as response:
            text = await response.text()
            assert response.status == 200, f"{self.name}{path}: {response.status} {text}"
            answer: dict[str, Any] = await response.json()
            return answer

    async def until_ready(self) -> None:
        async with asyncio.timeout(START_S):
            while True:
                assert self.process.returncode is None, f"{self.name} ended"
                try:
                    async with self._session.get(f"{self.url}/status") as response:
                        assert response.status == 200
                        return
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.05)

    def config(self, footprint_mib: int, **extra: Any) -> dict[str, Any]:
        """Its section of broker.yaml."""
        return {
            "url": self.url,
            "footprint_mib": footprint_mib,
            "load": {"path": "/load"},
            "unload": {"path": "/unload"},
            "health": {"path": "/status"},
            "resident": {"path": "/status", "when": "loaded"},
        } | extra


class Rig:
    """What a test sets up on the GPU: services first, then a broker in front of them."""

    def __init__(self, hardware: Hardware, directory: Path, stack: AsyncExitStack) -> None:
        self.hardware = hardware
        self._directory = directory
        self._stack = stack
        self._session: aiohttp.ClientSession | None = None

    async def service(self, name: str, weights_mib: int) -> Service:
        if self._session is None:
            self._session = await self._stack.enter_async_context(aiohttp.ClientSession())
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            self.hardware.python,
            str(HERE / "service.py"),
            str(port),
            str(weights_mib),
            env=self.hardware.env,
            stdin=asyncio.subprocess.DEVNULL,
        )
        self._stack.push_async_callback(_end, process)
        url = f"http://127.0.0.1:{port}"
        service = Service(name, weights_mib, process, url, self._session)
        await service.until_ready()
        return service

    async def broker(self, consumers: dict[str, Any], **sections: Any) -> BrokerProcess:
        """A broker; ``/v1/NAME`` is each consumer's job."""
        config: dict[str, Any] = {
            "gpu": {"devices": [self.hardware.read().uuid], "cushion_mib": CUSHION_MIB},
            "consumers": consumers,
            "routes": {f"/v1/{name}": {"consumer": name, "path": "/job"} for name in consumers},
            **sections,
        }
        return await self._stack.enter_async_context(
            serving(self._directory, config, env=self.hardware.env)
        )


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


@pytest.fixture(scope="session")
def hardware(tmp_path_factory: pytest.TempPathFactory, nvml_library: Path) -> Iterator[Hardware]:
    reader = NvmlReader()
    if os.environ.get("MGPU_GPU_STANDIN"):
        nvml = NvmlStandin(tmp_path_factory.mktemp("gpu"), nvml_library, total_mib=STANDIN_MIB)
        with pytest.MonkeyPatch.context() as patch:
            nvml.preload(patch)
            paths = {"PYTHONPATH": f"{HERE / 'standin'}:{HERE.parents[1]}"}
            env = environment(nvml.env | paths | {"TORCH_STANDIN_TOTAL_MIB": str(STANDIN_MIB)})
            yield Hardware(sys.executable, reader, env)
            reader.close()
        return
    try:
        reader.read()
    except GpuUnhealthy as error:
        pytest.skip(f"no NVIDIA GPU here: {error.detail}")
    python = os.environ.get("MGPU_TORCH_PYTHON")
    if python is None:
        pytest.skip("MGPU_TORCH_PYTHON names no Python that has PyTorch; see scripts/test-gpu")
    check = "import torch; assert torch.cuda.is_available()"
    if subprocess.run([python, "-c", check], check=False, capture_output=True).returncode:
        pytest.skip(f"{python} has no PyTorch that can use this GPU")
    yield Hardware(python, reader, dict(os.environ))
    reader.close()


@pytest.fixture
async def rig(hardware: Hardware, tmp_path: Path) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        yield Rig(hardware, tmp_path, stack)


_FIGURES = Figures()


@pytest.fixture
def figures(hardware: Hardware) -> Figures:
    """Where a test writes down what it measured."""
    _FIGURES.hardware = hardware.read().name
    return _FIGURES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _FIGURES.rows:
        terminalreporter.section("figures")
        terminalreporter.write_line(_FIGURES.markdown())
