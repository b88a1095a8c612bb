"""A demo consumer as the demo starts it: a process of its own on a simulated GPU."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from mgpu.demo.catalogue import CATALOGUE, Kind, Profile
from mgpu.gpu.simulated import held_mib

TIME_SCALE = 0.05
DEADLINE_S = 20.0


@dataclass
class DemoService:
    """``http`` has the service's address as its base."""

    kind: Kind
    profile: Profile
    process: asyncio.subprocess.Process
    http: aiohttp.ClientSession
    directory: Path

    def held_mib(self) -> int:
        return held_mib(self.directory).get(self.kind, 0)

    async def holds(self, mib: int) -> None:
        """Wait until it holds exactly that."""
        await until(lambda: self.held_mib() == mib)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def demo_service(
    kind: Kind, directory: Path, time_scale: float = TIME_SCALE
) -> AsyncIterator[DemoService]:
    command = [sys.executable, "-m", "mgpu.demo.service", kind, "--vram-dir", str(directory)]
    process = await asyncio.create_subprocess_exec(
        *command, "--time-scale", str(time_scale), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = json.loads(await asyncio.wait_for(process.stdout.readline(), DEADLINE_S))
        assert line["kind"] == kind
        async with aiohttp.ClientSession(f"http://127.0.0.1:{line['port']}") as http:
            profile = CATALOGUE[kind].scaled(time_scale)
            yield DemoService(kind, profile, process, http, directory)
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), DEADLINE_S)
