import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from typer.testing import CliRunner

from mgpu.cli.app import app

Mgpu = Callable[..., Awaitable[Any]]
StartBroker = Callable[..., Awaitable[TestServer]]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("MGPU_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def mgpu() -> Mgpu:
    """Runs a command line in a thread of its own, so that servers of the test can answer it."""

    async def run(*arguments: str) -> Any:
        return await asyncio.to_thread(CliRunner().invoke, app, list(arguments))

    return run


@pytest.fixture
def start_broker(aiohttp_server: Any) -> StartBroker:
    """Starts what answers every request with one response, made anew each time."""

    async def start(answer: Callable[[web.Request], Awaitable[web.Response]]) -> TestServer:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer)
        server: TestServer = await aiohttp_server(application)
        return server

    return start
