"""Consumers that the broker runs itself, and what happens to their memory when they misbehave."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.broker_process import BrokerProcess, serving
from tests.support.servers import free_port

FOOTPRINT_MIB = 3072
RESIDUAL_MIB = 256
TOTAL_MIB = 24576


class Speech:
    """The demo's speech service as a command, which holds memory on the simulated GPU."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        options = f"--port {self.port} --vram-dir {directory / 'vram'} --time-scale 0.05"
        self.command = f"{sys.executable} -m mgpu.demo.service tts {options}"

    def config(self, **more: Any) -> dict[str, Any]:
        tts = {
            "url": self.url,
            "footprint_mib": FOOTPRINT_MIB,
            "residual_mib": RESIDUAL_MIB,
            "command": self.command,
            "stop_grace_s": 3,
            "load": {"path": "/load"},
            "unload": {"path": "/unload"},
            "resident": {"path": "/status", "when": "loaded"},
            "health": {"path": "/health"},
        }
        return {
            "gpu": {"backend": "simulated", "simulated": {"directory": f"{self.directory}/vram"}},
            "consumers": {"tts": tts | more},
            "routes": {"/v1/tts": {"consumer": "tts", "path": "/tts"}},
        }

    def pids(self) -> list[int]:
        """The service's processes; not their reapers."""
        found = subprocess.run(
            ["pgrep", "-f", "-x", self.command], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in found.stdout.split()]


@pytest.fixture
async def speech(tmp_path: Path) -> AsyncIterator[Speech]:
    service = Speech(tmp_path)
    yield service
    async with asyncio.timeout(15):  # the broker was killed: its reapers are giving their grace
        while service.pids():  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.05)


async def say(broker: BrokerProcess) -> tuple[int, bytes]:
    async with broker.session.post(
        f"{broker.url}/v1/tts", json={"text": "hello"}, timeout=aiohttp.ClientTimeout(total=50)
    ) as response:
        return response.status, await response.read()


async def test_a_job_starts_it_an_unload_keeps_it_running_and_the_brokers_end_is_its_own(
    speech: Speech,
) -> None:
    async with serving(speech.directory, speech.config()) as broker:
        assert (await say(broker))[0] == 200
        assert len(speech.pids()) == 1
        await broker.unload("tts")
        assert len(speech.pids()) == 1
        await broker.until(f"s['gpus'][0]['free_mib'] == {TOTAL_MIB - RESIDUAL_MIB}")
        assert (await say(broker))[0] == 200
        assert await broker.stop() == 0


async def test_an_unload_that_lies_ends_the_program_and_frees_the_memory(speech: Speech) -> None:
    lie = {"method": "GET", "path": "/health"}
    config = speech.config(unload=lie, resident=None)
    config["gpu"]["settle_timeout_s"] = 0.5
    async with serving(speech.directory, config) as broker:
        assert (await say(broker))[0] == 200
        await broker.until(f"s['gpus'][0]['free_mib'] == {TOTAL_MIB - FOOTPRINT_MIB}")
        await broker.unload("tts")
        status = await broker.until(f"s['gpus'][0]['free_mib'] == {TOTAL_MIB}")
        assert status["consumers"]["tts"]["state"] == "absent"
        assert speech.pids() == []


async def test_one_that_dies_is_noticed_at_once_and_started_again(speech: Speech) -> None:
    async with serving(speech.directory, speech.config()) as broker:
        assert (await say(broker))[0] == 200
        (first,) = speech.pids()
        os.kill(first, signal.SIGKILL)
        await broker.until("c['tts']['state'] == 'absent'", within_s=3.0)
        assert "program ended" in broker.log
        assert (await say(broker))[0] == 200
        assert speech.pids() != [first]


async def test_a_program_that_cannot_start_is_told_with_its_last_words(speech: Speech) -> None:
    broken = f"{sys.executable} -c 'import sys; sys.exit(\"no such model: qwen.gguf\")'"
    async with serving(speech.directory, speech.config(command=broken)) as broker:
        status, body = await say(broker)
        assert status == 502
        assert b"urn:mgpu:load-failed" in body
        assert b"ended with exit status 1, it said last: no such model: qwen.gguf" in body


async def test_one_that_runs_and_does_not_listen_any_more_is_started_afresh(
    speech: Speech, tmp_path: Path
) -> None:
    # Serves once, then closes its socket and lives on.
    script = tmp_path / "deaf.py"
    script.write_text(
        "import http.server, time\n"
        "class Once(http.server.BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        self.send_response(200)\n"
        "        self.end_headers()\n"
        "        self.server.served = True\n"
        f"server = http.server.HTTPServer(('127.0.0.1', {speech.port}), Once)\n"
        "server.served = False\n"
        "while not server.served:\n"
        "    server.handle_request()\n"
        "server.server_close()\n"
        "time.sleep(1000)\n"
    )
    keys = {"load": None, "unload": None, "resident": None, "health": None}
    config = speech.config(command=f"{sys.executable} {script}", **keys)
    del config["gpu"]["simulated"]
    async with serving(speech.directory, config) as broker:
        assert (await say(broker))[0] == 200
        await broker.until("c['tts']['state'] == 'absent'", within_s=20.0)
        assert "runs, but nothing listens" in broker.log
        assert (await say(broker))[0] == 200
