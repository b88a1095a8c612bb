"""A service as a program of its own: it holds memory on the stand-in GPU, in a child if asked to.

``GpuProgram`` runs it. It has the usual routes and ``/job``; ``POST /hold?mib=N`` makes it hold
another amount, as a larger request would.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from mgpu.gpu.simulated import HeldMemory
from tests.support.servers import free_port

CHECKOUT = Path(__file__).resolve().parents[2]
START_S = 15.0

_WORKER = """
import sys
from pathlib import Path
from mgpu.gpu.simulated import HeldMemory
held = HeldMemory(Path(sys.argv[1]))
for line in sys.stdin:
    held.hold(sys.argv[2], int(line))
    print("held", flush=True)
"""


class _Program:
    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._loaded = False
        self._worker: subprocess.Popen[str] | None = None
        self._memory = HeldMemory(options.held)

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/load", self._load)
        app.router.add_post("/unload", self._unload)
        app.router.add_post("/hold", self._other_amount)
        app.router.add_get("/status", self._status)
        app.router.add_get("/health", self._status)
        app.router.add_post("/job", self._job)
        return app

    def _hold(self, mib: int) -> None:
        if not self._options.worker:
            self._memory.hold(self._options.name, mib)
            return
        if self._worker is None:
            self._worker = subprocess.Popen(
                [sys.executable, "-c", _WORKER, str(self._options.held), self._options.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        self._worker.stdin.write(f"{mib}\n")
        self._worker.stdin.flush()
        assert self._worker.stdout.readline() == "held\n"

    async def _load(self, _: web.Request) -> web.Response:
        self._hold(self._options.mib)
        self._loaded = True
        return web.json_response({})

    async def _unload(self, _: web.Request) -> web.Response:
        self._hold(self._options.keeps)
        self._loaded = False
        return web.json_response({})

    async def _other_amount(self, request: web.Request) -> web.Response:
        self._hold(int(request.query["mib"]))
        return web.json_response({})

    async def _status(self, _: web.Request) -> web.Response:
        return web.json_response({"loaded": self._loaded})

    async def _job(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read(), headers={"X-Served-By": self._options.name})


class GpuProgram:
    """One that runs."""

    def __init__(self, name: str, port: int, mib: int) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.mib = mib

    def config(self, **extra: Any) -> dict[str, Any]:
        """Its section of broker.yaml."""
        return {
            "url": self.url,
            "footprint_mib": self.mib,
            "load": {"path": "/load", "timeout_s": 10},
            "unload": {"path": "/unload", "timeout_s": 5},
            "resident": {"path": "/status", "when": "loaded"},
        } | extra

    async def hold(self, mib: int) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.url}/hold?mib={mib}") as response,
        ):
            assert response.status == 200


@asynccontextmanager
async def running(
    name: str, mib: int, held: Path, *, keeps: int = 0, worker: bool = False
) -> AsyncIterator[GpuProgram]:
    """One that holds ``mib`` when it is loaded and ``keeps`` when it is not."""
    program = GpuProgram(name, port := free_port(), mib)
    arguments = [name, str(port), str(mib), str(held), f"--keeps={keeps}"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.gpu_program", *arguments),
        *(["--worker"] if worker else []),
        cwd=CHECKOUT,
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(START_S), aiohttp.ClientSession() as session:
            while True:
                assert process.returncode is None
                try:
                    async with session.get(f"{program.url}/health"):
                        break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.02)
        yield program
    finally:
        process.kill()
        await process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("port", type=int)
    parser.add_argument("mib", type=int)
    parser.add_argument("held", type=Path)
    parser.add_argument("--keeps", type=int, default=0)
    parser.add_argument("--worker", action="store_true")
    options = parser.parse_args()
    web.run_app(_Program(options).application(), host="127.0.0.1", port=options.port, print=None)


if __name__ == "__main__":
    main()
