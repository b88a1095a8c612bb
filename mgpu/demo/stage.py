"""What the demo plays on: a simulated GPU, four services, and a broker's configuration for them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpu.config.model import Config
from mgpu.demo import units
from mgpu.demo.catalogue import CATALOGUE, Kind
from mgpu.errors import ConsumerFailed

TOTAL_MIB = 24 * 1024
TIME_SCALE = 0.4
"""Of the catalogue's times, so that the whole demo ends within half a minute."""

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
UNIT = "demo-stt.service"

ROUTES = {
    "/v1/image": (Kind.IMAGE, "/prompt"),
    "/v1/tts": (Kind.TTS, "/tts"),
    "/v1/transcribe": (Kind.STT, "/v1/audio/transcriptions"),
    "/v1/chat": (Kind.LANGUAGE, "/v1/chat/completions"),
}


@dataclass(frozen=True, slots=True)
class Stage:
    """The configuration of a broker for the demo's services, and the systemctl it is to use."""

    config: Config
    systemctl: tuple[str, ...]


@asynccontextmanager
async def stage(directory: Path, port: int) -> AsyncIterator[Stage]:
    """Start the services; all of them have ended when the body has.

    ``directory`` takes the simulated GPU and the state; the broker is to listen on ``port``.
    Raises ``ConsumerFailed`` when a service does not start.
    """
    vram, unit_files = directory / "vram", directory / "units"
    stt_port = _free_port()
    units.define(unit_files, UNIT, _command(Kind.STT, stt_port, vram))
    async with AsyncExitStack() as stack:
        kinds = (Kind.IMAGE, Kind.TTS, Kind.LANGUAGE)
        started = [await stack.enter_async_context(_service(kind, vram)) for kind in kinds]
        stack.callback(units.stop, unit_files, UNIT)
        ports = dict(zip(kinds, started, strict=True)) | {Kind.STT: stt_port}
        yield Stage(
            Config.model_validate(_config(directory, port, ports)),
            (sys.executable, "-m", "mgpu.demo.units", str(unit_files)),
        )


def _config(directory: Path, port: int, ports: dict[Kind, int]) -> dict[str, Any]:
    loads = {"path": "/load"}
    unloads = {"path": "/unload"}
    status = {"path": "/status", "when": "loaded"}
    health = {"path": "/health"}
    ways: dict[Kind, dict[str, Any]] = {
        Kind.IMAGE: {
            "unload": {"path": "/free", "body": {"unload_models": True, "free_memory": True}},
            "health": {"path": "/system_stats"},
            "not_activity": ["GET /queue", "GET /system_stats"],
        },
        Kind.TTS: {"load": loads, "unload": unloads, "resident": status, "health": health},
        Kind.STT: {"systemd_unit": UNIT, "health": health},
        Kind.LANGUAGE: {"load": loads, "unload": unloads, "resident": status, "health": health},
    }
    consumers = {
        kind.value: {
            "url": f"http://127.0.0.1:{ports[kind]}",
            "footprint_mib": CATALOGUE[kind].footprint_mib,
            "residual_mib": CATALOGUE[kind].residual_mib,
            **ways[kind],
        }
        for kind in Kind
    }
    return {
        "server": {"listen": f"127.0.0.1:{port}", "drain_timeout_s": 5},
        "gpu": {
            "backend": "simulated",
            "simulated": {"total_mib": TOTAL_MIB, "directory": directory / "vram"},
        },
        "consumers": consumers,
        "routes": {
            route: {"consumer": kind.value, "path": path} for route, (kind, path) in ROUTES.items()
        },
        "jobs": {"database": directory / "jobs.db"},
    }


@asynccontextmanager
async def _service(kind: Kind, vram: Path) -> AsyncIterator[int]:
    """One service as a process of its own; yields its port."""
    process = await asyncio.create_subprocess_exec(
        *_command(kind, 0, vram),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        # Ctrl-C is for the demo, which then ends its services in order.
        start_new_session=True,
    )
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            line = await process.stdout.readline()
        if not line:
            raise ConsumerFailed(f"the demo's {kind} service ended at its start")
        port: int = json.loads(line)["port"]
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def _command(kind: Kind, port: int, vram: Path) -> list[str]:
    options = {
        "--port": port,
        "--vram-dir": vram,
        "--time-scale": TIME_SCALE,
        "--ends-with": os.getpid(),
    }
    words = [str(word) for option in options.items() for word in option]
    return [sys.executable, "-m", "mgpu.demo.service", kind.value, *words]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
