"""A machine with one stand-in GPU, services on it, and a real broker process in front of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from tests.support.broker_process import BrokerProcess, serving
from tests.support.engines import docker, podman
from tests.support.nvml import NvmlStandin, nvml_library
from tests.support.standin_consumer import Referee, StandinConsumer
from tests.support.systemd import systemd

__all__ = ["docker", "nvml_library", "podman", "systemd"]

Service = TypeVar("Service", bound=StandinConsumer)


class Machine:
    """What a test sets up: first consumers, then the broker."""

    def __init__(self, directory: Path, nvml: NvmlStandin, stack: AsyncExitStack) -> None:
        self.directory = directory
        self.nvml = nvml
        self.referee = Referee()
        self.consumers: dict[str, StandinConsumer] = {}
        self._stack = stack
        self._extra: dict[str, dict[str, Any]] = {}

    async def consumer(
        self,
        name: str,
        footprint_mib: int,
        *,
        gpus: Sequence[int] = (0,),
        config: dict[str, Any] | None = None,
        **how: Any,
    ) -> StandinConsumer:
        """Start a service; ``config`` is added to its section, ``how`` is how it behaves.

        It holds its memory on these GPUs, or on those that its load request names.
        """
        kind = StandinConsumer
        return await self.service(kind, name, footprint_mib, gpus=gpus, config=config, **how)

    async def service(
        self,
        kind: type[Service],
        name: str,
        footprint_mib: int,
        *,
        gpus: Sequence[int] = (0,),
        config: dict[str, Any] | None = None,
        **how: Any,
    ) -> Service:
        """The same for a service that has more than the usual one."""
        held = [self.nvml.held_directory(gpu) for gpu in gpus]
        consumer = kind(name, footprint_mib, held, self.referee, **how)
        await consumer.start()
        self._stack.push_async_callback(consumer.close)
        self.consumers[name] = consumer
        self._extra[name] = config or {}
        return consumer

    async def broker(self, *, ready: bool = True, **sections: Any) -> BrokerProcess:
        """Start a broker in front of the services; ``/v1/NAME`` is each one's job."""
        config: dict[str, Any] = {
            "gpu": {"backend": "nvml", "sample_interval_s": 0.2},
            "consumers": {n: c.config(**self._extra[n]) for n, c in self.consumers.items()},
            "routes": {f"/v1/{n}": {"consumer": n, "path": "/job"} for n in self.consumers},
        }
        for section, values in sections.items():
            config[section] = {**config.get(section, {}), **values}
        return await self._stack.enter_async_context(
            serving(self.directory, config, env=self.nvml.env, ready=ready)
        )


async def job(
    broker: BrokerProcess, name: str, body: bytes = b"work", headers: dict[str, str] | None = None
) -> int:
    """Send one job and return its status; the answer must be the consumer's echo when it is 200."""
    async with broker.session.post(
        f"{broker.url}/v1/{name}",
        data=body,
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=60),
    ) as response:
        answer = await response.read()
        if response.status == 200:
            assert answer == body
            assert response.headers["X-Served-By"] == name
        return response.status


@pytest.fixture
async def machine(tmp_path: Path, nvml_library: Path) -> AsyncIterator[Machine]:
    async with AsyncExitStack() as stack:
        yield Machine(tmp_path, NvmlStandin(tmp_path / "nvml", nvml_library), stack)


@pytest.fixture
async def two_gpus(tmp_path: Path, nvml_library: Path) -> AsyncIterator[Machine]:
    async with AsyncExitStack() as stack:
        yield Machine(tmp_path, NvmlStandin(tmp_path / "nvml", nvml_library, gpus=2), stack)
