"""Services as the presets know them, with what a broker makes of a preset to control them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from mgpu.api.routes import Upstream
from mgpu.config import presets
from mgpu.config.load import load
from mgpu.config.model import ConsumerConfig
from mgpu.config.presets import Preset
from mgpu.consumers.http import HttpController
from tests.support.services.base import Service

ONE_PORT: dict[str, dict[str, Any]] = {
    "triton": {"busy": {"port": None}},
    "torchserve": {key: {"port": None} for key in ("load", "unload", "resident", "busy")},
}
"""The stand-ins have one port for everything."""

Start = Callable[..., Any]


def configured(folder: Path, url: str, preset: str, **keys: Any) -> ConsumerConfig:
    """The consumer that a broker.yaml with this preset gives."""
    consumer = {"url": url, "preset": preset, **ONE_PORT.get(preset, {}), **keys}
    path = folder / "broker.yaml"
    path.write_text(yaml.safe_dump({"consumers": {"x": consumer}}))
    return load(path).consumers["x"]


class Site:
    """A service that runs, and the broker's controller of it."""

    def __init__(self, service: Service, config: ConsumerConfig, session: Any) -> None:
        self.service = service
        self.config = config
        self.controller = HttpController("x", config, session)
        self.upstream = Upstream("x", config)


@pytest.fixture
async def sites(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Start]:
    started: list[Service] = []

    async def start(kind: type[Service], **keys: Any) -> Site:
        service = kind()
        await service.start()
        started.append(service)
        given: dict[str, Any] = {"parameters": dict(kind.parameters), **keys}
        return Site(service, configured(tmp_path, service.url, kind.preset, **given), session)

    yield start
    for service in started:
        await service.stop()


@cache
def built_in(name: str) -> Preset:
    return presets.find(name, Path("/nowhere")).preset
