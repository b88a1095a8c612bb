"""A whole broker that starts and stops its consumer as a unit, a container or a program.

Each misbehaves as services do. The unit and the container are started again by their supervisor
when they die.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mgpu.consumers import control_session
from tests.support.broker_process import BrokerProcess, serving
from tests.support.controlled import Controlled, controlled
from tests.support.engines import Podman

FOOTPRINT_MIB = 3000
TOTAL_MIB = 24576
CONTAINER = "docker" if Podman.missing() else "podman"
ENDPOINTS: dict[str, Any] = {
    "load": {"path": "/load", "timeout_s": 30},
    "unload": {"path": "/unload", "timeout_s": 5},
    "health": {"path": "/health"},
}
RESIDENT = {"resident": {"path": "/status", "when": "loaded"}}


@pytest.fixture(params=["systemd", CONTAINER, "command"])
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Controlled]:
    async with control_session() as session:
        made = controlled(request.param, request, session)
        try:
            yield made
        finally:
            await made.close()


@asynccontextmanager
async def brokered(
    service: Controlled, folder: Path, *options: str, **keys: Any
) -> AsyncIterator[BrokerProcess]:
    """A broker in front of the service, which holds memory and has these options."""
    held = service.shared(folder) / "vram"
    taking = ("--held", str(held), "--name", service.name, "--mib", str(FOOTPRINT_MIB))
    await service.install(*taking, *options)
    consumer = {
        "url": service.url,
        "footprint_mib": FOOTPRINT_MIB,
        "stop_grace_s": 3,
        **ENDPOINTS,
        **service.way(),
        **keys,
    }
    config = {
        "gpu": {
            "backend": "simulated",
            "simulated": {"directory": str(held), "total_mib": TOTAL_MIB},
            "settle_timeout_s": 0.5,
        },
        "consumers": {service.name: consumer},
        "routes": {
            "/v1/job": {"consumer": service.name, "path": "/job"},
            "/v1/stream": {"consumer": service.name, "path": "/stream"},
        },
    }
    async with serving(folder, config, env=service.environment(folder)) as broker:
        yield broker
        assert await broker.stop() == 0


def send(broker: BrokerProcess, path: str, work: bytes) -> Any:
    timeout = aiohttp.ClientTimeout(total=50)
    return broker.session.post(f"{broker.url}{path}", data=work, timeout=timeout)


async def job(broker: BrokerProcess, work: bytes = b"work") -> int:
    async with send(broker, "/v1/job", work) as response:
        if response.status == 200:
            assert await response.read() == work
        status: int = response.status
        return status


async def until_served(broker: BrokerProcess) -> None:
    """Send jobs until one is served: those that came before its end was noticed are told so."""
    async with asyncio.timeout(40):
        while (status := await job(broker)) != 200:
            assert status == 502


async def hears(service: Controlled, requests: list[str]) -> None:
    """Return when it was asked for just this."""
    async with asyncio.timeout(20):
        while await service.heard() != requests:  # noqa: ASYNC110  it does not tell
            await asyncio.sleep(0.02)


async def test_one_that_dies_in_a_job_in_a_stream_or_at_rest_is_loaded_for_the_next_job(
    service: Controlled, tmp_path: Path
) -> None:
    """It cannot be asked: that it is empty shows only by its being another process."""
    async with brokered(service, tmp_path) as broker:
        assert await job(broker) == 200
        assert await service.heard() == ["POST /load", "POST /job"]

        computing = asyncio.create_task(job(broker, b"hang"))
        await hears(service, ["POST /load", "POST /job", "POST /job"])
        await service.kill()
        assert await computing == 502
        await until_served(broker)

        async with send(broker, "/v1/stream", b"first") as response:
            assert await response.content.readexactly(5) == b"first"
            await service.kill()
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        await until_served(broker)

        await service.kill()
        if service.comes_back:
            await service.has_restarted()
        await until_served(broker)
        assert "POST /load" in await service.heard()
        status = await broker.status()
        assert status["consumers"][service.name]["running"] == 0
        assert status["gpus"][0]["free_mib"] == TOTAL_MIB - FOOTPRINT_MIB


async def test_one_that_hangs_in_a_job_or_keeps_its_memory_is_stopped_and_started_afresh(
    service: Controlled, tmp_path: Path
) -> None:
    name = service.name
    async with brokered(service, tmp_path, "--keep", **RESIDENT, busy_timeout_s=1) as broker:
        assert await job(broker, b"hang") == 504
        await broker.until(f"c['{name}']['state'] == 'absent'")
        assert not await service.runs()

        assert await job(broker) == 200
        await broker.until(f"s['gpus'][0]['free_mib'] == {TOTAL_MIB - FOOTPRINT_MIB}")
        assert await service.heard() == ["POST /load", "POST /job"]

        await broker.unload(name)
        status = await broker.status()
        assert status["consumers"][name]["state"] == "absent"
        assert status["gpus"][0]["free_mib"] == TOTAL_MIB
        assert not await service.runs()
        assert await job(broker) == 200
