"""Services that answer as the real ones do: what they all have in common.

Each is a real server on a socket. What it holds is what would be in VRAM; ``compute`` is somebody
else's work. Small delays stand for what takes seconds on a GPU.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ClassVar

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
BODY: web.RequestKey[Any] = web.RequestKey("body", object)
"""Of a request, as JSON; None when there is none."""
LAG_S = 0.05
"""Between an answer and what it promised, where a service answers first."""


class Service:
    """One service. ``routes`` maps ``METHOD /path`` to the name of the method that answers."""

    preset: ClassVar[str]
    parameters: ClassVar[dict[str, str]] = {}
    routes: ClassVar[dict[str, str]]
    begins_resident: ClassVar[bool] = False
    tells_resident: ClassVar[bool] = True
    models_told: ClassVar[tuple[str, ...]] = ("m",)
    """What it names where its preset asks for its models, while it holds something."""
    jobs: ClassVar[tuple[str, ...]] = ()
    """Requests that are work."""
    looks: ClassVar[tuple[str, ...]] = ()
    """Requests that are none."""
    dangers: ClassVar[tuple[str, ...]] = ()
    """Requests that destroy something."""
    pages: ClassVar[dict[str, Any]] = {}
    """What it answers to ``GET`` always: a text, or JSON."""

    def __init__(self) -> None:
        self.held: set[str] = {"m"} if self.begins_resident else set()
        self.computing = 0
        self.calls: list[str] = []
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.broken: str | None = None
        """Why the service is down for good, when a request has broken it."""
        self.settled = asyncio.Event()
        """Set by whoever changes what is held."""
        self._port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def changes(self) -> list[str]:
        """The requests that are not ``GET``."""
        return [call for call in self.calls if not call.startswith("GET ")]

    async def start(self) -> None:
        app = web.Application(middlewares=[self._record])
        for route, name in self.routes.items():
            method, _, path = route.partition(" ")
            app.router.add_route(method, path, getattr(self, name))
        for path, page in self.pages.items():
            app.router.add_get(path, functools.partial(_page, page))
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = site.port

    async def stop(self) -> None:
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    def put_in(self) -> None:
        """What a job leaves in VRAM."""
        self.held.add("m")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self.settled.clear()
                await self.settled.wait()

    def later(self, change: Callable[[], object]) -> None:
        """Do it after the answer has gone out."""

        def do() -> None:
            change()
            self.settled.set()

        asyncio.get_running_loop().call_later(LAG_S, do)

    @web.middleware
    async def _record(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.calls.append(f"{request.method} {request.path_qs}")
        self.headers.append(dict(request.headers))
        text = await request.text()
        body = None
        if text:
            try:
                body = json.loads(text)
            except ValueError:
                return web.Response(status=500, text="not JSON")
        self.bodies.append(body)
        request[BODY] = body
        if self.broken is not None:
            return web.Response(status=503, text=self.broken)
        response = await handler(request)
        self.settled.set()
        return response


def listed(*names: str, owner: str = "user") -> dict[str, Any]:
    """Models in OpenAI's shape."""
    fields = {"object": "model", "created": 0, "owned_by": owner}
    return {"object": "list", "data": [{"id": name, **fields} for name in names]}


async def _page(page: Any, _: web.Request) -> web.Response:
    return web.Response(text=page) if isinstance(page, str) else ok(page)


def ok(data: Any = None, status: int = 200) -> web.Response:
    return web.json_response(data, status=status)


def empty(status: int = 200) -> web.Response:
    return web.Response(status=status)


def metrics(samples: Iterable[tuple[str, float]]) -> web.Response:
    lines = [f'{name}{{engine="0",model_name="m"}} {value}\n' for name, value in samples]
    return web.Response(text="".join(lines))
