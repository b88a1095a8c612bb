"""``mgpu demo`` as a user runs it: a process with a terminal or a pipe, and an empty folder."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from tests.support.png import read_png


@asynccontextmanager
async def demo(directory: Path, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mgpu", "demo", "--port", "0", "--jobs", "8", *options,
        cwd=directory, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def until(process: asyncio.subprocess.Process, text: str) -> str:
    """Read on until a line holds a text; return that line."""
    assert process.stdout is not None
    async with asyncio.timeout(40):
        async for line in process.stdout:
            if text in line.decode():
                return line.decode()
    raise AssertionError(f"the demo ended without {text!r}")


def services_of(pid: int) -> set[int]:
    """The processes that were started to end with this one."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if b"mgpu.demo.service" in words and str(pid).encode() in words:
            found.add(int(entry.name))
    return found


async def until_gone(pids: set[int]) -> None:
    """Return when these processes have ended."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            ended = asyncio.Event()
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
            loop.remove_reader(descriptor)
            os.close(descriptor)


async def test_makes_real_files_and_says_what_it_came_to(tmp_path: Path) -> None:
    async with demo(tmp_path) as process:
        async with asyncio.timeout(40):
            output, _ = await process.communicate()
    text = output.decode()
    assert process.returncode == 0, text

    files = [tmp_path / line.strip() for line in text.splitlines() if " demo-output/" in line]
    pictures = [file for file in files if file.suffix == ".png"]
    sounds = [file for file in files if file.suffix == ".wav"]
    assert pictures
    assert sounds
    for picture in pictures:
        assert read_png(picture.read_bytes()).size == (512, 384)
    for sound in sounds:
        with wave.open(str(sound)) as recording:
            assert recording.getnframes() > recording.getframerate() // 2
    transcripts = [json.loads(f.read_text()) for f in files if f.suffix == ".json"]
    assert all(transcript["text"] for transcript in transcripts)

    evictions = re.search(r"There w\w+ (\d+) eviction", text)
    assert evictions is not None
    assert int(evictions[1]) >= 1
    assert "->" in text
    assert re.search(r"(\d+) of \1 jobs done", text)


async def test_keeps_the_broker_up_when_asked_to(tmp_path: Path) -> None:
    async with demo(tmp_path, "--keep", "--jobs", "1") as process:
        line = await until(process, "stays up at")
        url = re.search(r"http://\S+", line)
        assert url is not None
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url[0]}/v1/tts", json={"text": "Hello."}) as response,
        ):
            assert response.status == 200
            assert (await response.read()).startswith(b"RIFF")
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(15):
            assert await process.wait() == 0


async def test_a_port_that_is_taken_is_said_to_be(tmp_path: Path) -> None:
    taken = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    async with taken, demo(tmp_path, "--jobs", "1", "--port", str(port)) as process:
        line = await until(process, "is taken")
    assert re.search(rf"Port {port} is taken: the demo's broker is at http://127\.0\.0\.1:", line)


async def test_leaves_no_service_behind_when_it_is_told_to_stop(tmp_path: Path) -> None:
    async with demo(tmp_path) as process:
        await until(process, " done")
        services = services_of(process.pid)
        assert len(services) >= 3
        process.terminate()
        async with asyncio.timeout(15):
            await process.wait()
        assert services_of(process.pid) == set()


async def test_leaves_no_service_behind_when_it_is_killed(tmp_path: Path) -> None:
    async with demo(tmp_path) as process:
        await until(process, " done")
        services = services_of(process.pid)
        assert len(services) >= 3
        process.kill()
        await until_gone(services)
