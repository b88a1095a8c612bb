from collections.abc import AsyncIterator

import aiohttp
import pytest

from mgpu.consumers import control_session
from tests.support.engines import docker, engine, podman
from tests.support.presets import sites
from tests.support.systemd import systemd

__all__ = ["docker", "engine", "podman", "sites", "systemd"]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with control_session() as made:
        yield made
