"""A real service behind a broker, with a port of its own there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.broker_process import BrokerProcess, serving
from tests.support.servers import free_port


class Setup(NamedTuple):
    """The broker, and where the service is to be found."""

    broker: BrokerProcess
    own_port: str
    """The URL of the consumer's own port at the broker."""
    url: str
    """The service's own."""


@asynccontextmanager
async def behind(
    folder: Path,
    name: str,
    url: str,
    *,
    env: Mapping[str, str] | None = None,
    models: Mapping[str, str] | None = None,
    routes: Mapping[str, Any] | None = None,
    **consumer: Any,
) -> AsyncIterator[Setup]:
    """Run a broker whose one consumer, called ``name``, is the service at ``url``."""
    own_port = free_port()
    consumer = {"listen": f"127.0.0.1:{own_port}", "footprint_mib": 4000, "url": url} | consumer
    config: dict[str, Any] = {"gpu": {"backend": "simulated"}, "consumers": {name: consumer}}
    if models:
        config["models"] = dict(models)
    if routes:
        config["routes"] = dict(routes)
    async with serving(folder, config, env=env) as broker:
        yield Setup(broker, f"http://127.0.0.1:{own_port}", url)
