from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from mgpu.api.app import make_app, make_port_app
from mgpu.api.deps import Deps, Limits
from mgpu.api.proxy import make_session
from mgpu.api.server import Deadlines, HttpServer, start_server
from mgpu.config.model import Config
from tests.api.fake_broker import FakeBroker
from tests.api.raw import RawClient
from tests.support.comfyui import StandinComfyUI

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Site:
    """A broker's HTTP interface that is being served, and ways to talk to it."""

    broker: FakeBroker
    server: HttpServer
    client: aiohttp.ClientSession
    app: web.Application
    stack: AsyncExitStack
    own_port: int | None = None
    """Of the consumer ``tts``, when it has one."""

    @property
    def port(self) -> int:
        return int(self.server.addresses[0].rpartition(":")[2])

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def own_url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.own_port}{path}"

    async def raw(self, *, own_port: bool = False) -> RawClient:
        port = self.own_port if own_port else self.port
        assert port is not None
        client = await RawClient.connect(port)
        self.stack.push_async_callback(client.close)
        return client


class Sites:
    """Starts brokers and upstream servers; all of them end with the test."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def upstream(self, handler: Handler) -> str:
        """The URL of a server that answers everything with ``handler``."""

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            return await handler(request)  # type: ignore[arg-type]

        server = web.Server(answer, handler_cancellation=True, auto_decompress=False)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{site.port}"

    async def raw_upstream(
        self,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    ) -> str:
        """The URL of a server that does as it likes with each connection."""

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(reader, writer)
            except ConnectionError:
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 20)
        self._stack.callback(server.close)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def broker(
        self,
        url: str = "http://127.0.0.1:9",
        *,
        consumer: Mapping[str, Any] | None = None,
        server: Mapping[str, Any] | None = None,
        routes: Mapping[str, Any] | None = None,
        api_keys: tuple[str, ...] = (),
        limits: Limits | None = None,
        deadlines: Deadlines | None = None,
        registry: CollectorRegistry | None = None,
        scheduler: Mapping[str, Any] | None = None,
        models: Mapping[str, str] | None = None,
        others: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Site:
        """A broker with one consumer, ``tts``, at ``url``, and one route to it, ``/v1/tts``.

        ``others`` are more consumers.
        """
        config = Config.model_validate(
            {
                "server": server or {},
                "scheduler": scheduler or {},
                "consumers": {"tts": {"url": url, **(consumer or {})}, **(others or {})},
                "routes": routes or {"/v1/tts": {"consumer": "tts", "path": "/tts"}},
                "models": models or {},
            }
        )
        session = make_session()
        self._stack.push_async_callback(session.close)
        broker = FakeBroker(consumers=tuple(config.consumers))
        app = make_app(
            Deps(
                broker=broker,
                config=config,
                session=session,
                registry=registry or CollectorRegistry(),
                api_keys=api_keys,
                limits=limits or Limits(),
            )
        )
        deadlines = deadlines or Deadlines(close_s=0.1, linger_s=0.2)
        serving = await start_server(app, "127.0.0.1:0", deadlines=deadlines)
        self._stack.push_async_callback(serving.close)
        client = aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())
        self._stack.push_async_callback(client.close)
        own_port = None
        if config.consumers["tts"].listen is not None:
            own = await start_server(
                make_port_app(app, "tts"), config.consumers["tts"].listen, deadlines=deadlines
            )
            self._stack.push_async_callback(own.close)
            own_port = int(own.addresses[0].rpartition(":")[2])
        return Site(broker, serving, client, app, self._stack, own_port)


@pytest.fixture
async def sites() -> AsyncIterator[Sites]:
    async with AsyncExitStack() as stack:
        yield Sites(stack)


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that nobody listens on and nobody else gets."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
async def comfyui() -> AsyncIterator[StandinComfyUI]:
    standin = StandinComfyUI()
    await standin.start()
    yield standin
    await standin.close()
