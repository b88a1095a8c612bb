"""A GPU service for tests: it speaks HTTP, holds memory on the stand-in GPU, and fails on demand.

It runs in the test's own event loop, so a test can hold it up and let it go with events instead of
guessing at times. ``load_s`` and ``lag_s`` model how long real weights take; everything else is
immediate unless a gate is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from mgpu.gpu.simulated import HeldMemory


@dataclass
class Referee:
    """Watches that no two consumers compute on one GPU at the same time."""

    computing: dict[str, int] = field(default_factory=dict)
    fouls: list[dict[str, int]] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    where: dict[str, set[str]] = field(default_factory=dict)
    most_at_once: int = 0
    """Consumers that computed at the same time, on whichever GPUs."""

    def enter(self, name: str, gpus: set[str]) -> None:
        self.computing[name] = self.computing.get(name, 0) + 1
        self.served.append(name)
        self.where[name] = gpus
        self.most_at_once = max(self.most_at_once, len(self.computing))
        if any(gpus & self.where[other] for other in self.computing.keys() - {name}):
            self.fouls.append(dict(self.computing))

    def leave(self, name: str) -> None:
        self.computing[name] -= 1
        if not self.computing[name]:
            del self.computing[name]


class Gate:
    """Open unless closed; counts who stands before it."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._arrivals = asyncio.Condition()
        self.arrived = 0

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def passes(self) -> None:
        async with self._arrivals:
            self.arrived += 1
            self._arrivals.notify_all()
        await self._open.wait()

    async def reached(self, count: int = 1, *, within_s: float = 10.0) -> None:
        """Return when ``count`` have come here since the beginning."""
        async with asyncio.timeout(within_s), self._arrivals:
            await self._arrivals.wait_for(lambda: self.arrived >= count)


class StandinConsumer:
    """One service. ``lazy``: no load endpoint, its first job takes the memory."""

    def __init__(
        self,
        name: str,
        footprint_mib: int,
        held_directories: Sequence[Path],
        referee: Referee,
        *,
        residual_mib: int = 0,
        load_s: float = 0.0,
        lag_s: float = 0.0,
        job_s: float = 0.0,
        lazy: bool = False,
        resident: bool = False,
    ) -> None:
        self.name = name
        self.footprint_mib = footprint_mib
        self.residual_mib = residual_mib
        self.load_s = load_s
        self.lag_s = lag_s
        self.job_s = job_s
        self.lazy = lazy
        self._places = list(held_directories)
        self._memories = [HeldMemory(directory) for directory in self._places]
        self.told: list[dict[str, Any]] = []
        """The bodies of its load and unload requests."""
        self._referee = referee
        self.loaded = False
        self.loaded_with: dict[str, Any] = {}
        """What its last load was told; one that is loaded already hears of nothing else."""
        self.busy = False
        """It computes for somebody who came to it directly."""
        self.loads = 0
        self.unloads = 0
        self.jobs = 0
        self.served_with: list[tuple[str, dict[str, Any]]] = []
        """What each job said that it wants (``X-Wants``), and what it was loaded with then."""
        self.aborted = 0
        self.abortion = asyncio.Event()
        self.load_status = 200
        self.unload_status = 200
        self.frees = True
        self.load_gate = Gate()
        self.unload_gate = Gate()
        self.job_gate = Gate()
        self.stream_gate = Gate()
        self.unloaded_at: float | None = None
        self.freed_at: float | None = None
        self.load_began_at: float | None = None
        self.loaded_at: float | None = None
        self.job_began_at: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""
        self._runner: web.AppRunner | None = None
        if resident:
            self.hold(footprint_mib)
            self.loaded = True

    def hold(self, mib: int) -> None:
        for memory in self._memories:
            memory.hold(self.name, mib // len(self._memories))

    @property
    def gpus(self) -> set[str]:
        """The GPUs that its memory is on, by index."""
        return {place.name for place in self._places}

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def config(self, **extra: Any) -> dict[str, Any]:
        """Its section of broker.yaml."""
        section: dict[str, Any] = {
            "url": self.url,
            "footprint_mib": self.footprint_mib,
            "residual_mib": self.residual_mib,
            "unload": {"path": "/unload", "timeout_s": 5},
            "health": {"path": "/health"},
        }
        if not self.lazy:
            section["load"] = {"path": "/load", "timeout_s": 10}
            section["resident"] = {"path": "/status", "when": "loaded"}
        return section | extra

    async def start(self, port: int = 0) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/load", self._load)
        app.router.add_post("/unload", self._unload)
        app.router.add_get("/status", self._status)
        app.router.add_get("/health", self._health)
        app.router.add_route("*", "/job", self._job)
        app.router.add_get("/stream", self._stream)
        self.add_routes(app)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        bound_port: int = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{bound_port}"

    def add_routes(self, app: web.Application) -> None:
        """For what a service has besides."""

    async def kill(self) -> None:
        """End as a killed process does: connections break, memory goes back, nothing listens."""
        assert self._runner is not None
        server = self._runner.server
        assert server is not None
        for connection in list(server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()
        self.hold(0)
        self.loaded = False

    async def close(self) -> None:
        for gate in (self.load_gate, self.unload_gate, self.job_gate, self.stream_gate):
            gate.open()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._runner is not None:
            await self._runner.cleanup()
        self._close_memories()

    def _later(self, delay_s: float, mib: int) -> None:
        async def give_back() -> None:
            await asyncio.sleep(delay_s)
            self.freed_at = self.now
            self.hold(mib)

        task = asyncio.create_task(give_back())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take_memory(self) -> None:
        if not self.loaded:
            self.load_began_at = self.now
            await asyncio.sleep(self.load_s)
            self.hold(self.footprint_mib)
            self.loaded = True
            self.loaded_with = self.told[-1] if self.told else {}
            self.loaded_at = self.now

    async def _hear(self, request: web.Request) -> None:
        """Note what it is told, and where to load: it holds memory there from now on."""
        if not request.can_read_body:
            return
        told = await request.json()
        self.told.append(told)
        if "gpus" not in told:
            return
        gpus = str(told["gpus"]).split(",")
        self._close_memories()
        self._places = [self._places[0].parent / gpu for gpu in gpus]
        self._memories = [HeldMemory(place) for place in self._places]

    def _close_memories(self) -> None:
        for memory in self._memories:
            memory.close()

    async def _load(self, request: web.Request) -> web.Response:
        self.loads += 1
        await self._hear(request)
        await self.load_gate.passes()
        if self.load_status == 200:
            await self._take_memory()
        return web.json_response({"loaded": self.loaded}, status=self.load_status)

    async def _unload(self, request: web.Request) -> web.Response:
        self.unloads += 1
        if request.can_read_body:
            self.told.append(await request.json())
        await self.unload_gate.passes()
        if self.unload_status == 200:
            self.loaded = False
            self.unloaded_at = self.now
            if self.frees and self.lag_s:
                self._later(self.lag_s, self.residual_mib)
            elif self.frees:
                self.freed_at = self.now
                self.hold(self.residual_mib)
        return web.json_response({}, status=self.unload_status)

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response({"loaded": self.loaded, "busy": self.busy})

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    async def _job(self, request: web.Request) -> web.Response:
        async with self.computing():
            body = await request.read()
            self.served_with.append((request.headers.get("X-Wants", ""), self.loaded_with))
            await self.job_gate.passes()
            if self.lazy:
                await self._take_memory()
            await asyncio.sleep(self.job_s)
            return web.Response(body=body, headers={"X-Served-By": self.name})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        async with self.computing():
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await response.write(b"data: first\n\n")
            await self.stream_gate.passes()
            await response.write(b"data: last\n\n")
            return response

    @asynccontextmanager
    async def computing(self) -> AsyncIterator[None]:
        self.jobs += 1
        self.job_began_at = self.now
        self._referee.enter(self.name, self.gpus)
        try:
            yield
        except asyncio.CancelledError:
            self.aborted += 1
            self.abortion.set()
            raise
        finally:
            self._referee.leave(self.name)
