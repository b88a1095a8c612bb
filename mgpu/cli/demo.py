"""``mgpu demo``: the main job without a GPU, on a simulated one.

Four services as processes of their own share 24 GiB that they do not fit in together; a client
sends a mixed workload through a broker; the terminal shows what happens, then what it came to.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TextIO

import aiohttp
import typer
from rich.console import Console
from rich.live import Live

from mgpu import bootstrap
from mgpu.broker.effects import Observed
from mgpu.cli import view
from mgpu.core.effects import Evicted
from mgpu.demo.stage import ROUTES, Stage, stage
from mgpu.demo.summary import JobRecord, summarise
from mgpu.demo.workload import Client
from mgpu.telemetry import logs

DEFAULT_PORT = 7070
"""Where the client commands look; when it is taken, any other will do."""

REFRESH_S = 0.1
PLAIN_REFRESH_S = 1.0


@dataclass(slots=True)
class _Record:
    """What has happened so far."""

    jobs: list[JobRecord] = field(default_factory=list)
    evictions: list[Evicted] = field(default_factory=list)
    took_s: float = 0.0
    loads: int = 0

    def watch(self, fact: Observed) -> None:
        if isinstance(fact, Evicted):
            self.evictions.append(fact)

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(job.outcome.value for job in self.jobs)


def demo(
    *,
    jobs: Annotated[int, typer.Option(min=1, max=10_000, help="How many requests to send.")] = 40,
    seed: Annotated[int, typer.Option(help="The same seed gives the same workload.")] = 1,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where the broker listens; 0: any free port.")
    ] = DEFAULT_PORT,
    output: Annotated[Path, typer.Option(help="Where images and sounds are kept.")] = Path(
        "demo-output"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the broker up to play with.")] = False,
) -> None:
    """Run the main job on a simulated GPU, with services of the demo's own."""
    output.mkdir(parents=True, exist_ok=True)
    with (output / "broker.log").open("w") as log, tempfile.TemporaryDirectory() as directory:
        asyncio.run(_demo(Path(directory), log, _port(port), jobs, seed, output, keep))


async def _demo(  # noqa: PLR0913 - the command's options
    directory: Path,
    log: TextIO,
    port: int,
    jobs: int,
    seed: int,
    output: Path,
    keep: bool,  # noqa: FBT001
) -> None:
    console = Console()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - asyncio.run made it
    # As Ctrl-C does: the services end before the program.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    logs.configure(stream=log)
    record = _Record()
    url = f"http://127.0.0.1:{port}"
    console.print(f"Four services, one simulated GPU, {jobs} requests through {url} …")
    async with stage(directory, port) as scene, _broker(scene, record) as parts:
        client = Client(url, output, record.jobs.append)
        started_s = time.monotonic()
        async with _shown(console, url, scene, record):
            await client.run(jobs, seed)
        record.took_s = time.monotonic() - started_s
        record.loads = parts.broker.snapshot().loads
        console.print(
            summarise(
                record.jobs, loads=record.loads, evictions=record.evictions, took_s=record.took_s
            ),
            crop=False,
        )
        console.print(f"\nThe broker's log: {output / 'broker.log'}", soft_wrap=True)
        if keep:
            await _play(console, url)
    if not keep:
        console.print("Next: `mgpu demo --keep` to send your own requests, or write a broker.yaml.")


@asynccontextmanager
async def _broker(scene: Stage, record: _Record) -> AsyncIterator[bootstrap.Running]:
    running = bootstrap.running(scene.config, systemctl=scene.systemctl, watch=record.watch)
    async with running as parts:
        yield parts


@asynccontextmanager
async def _shown(console: Console, url: str, scene: Stage, record: _Record) -> AsyncIterator[None]:
    """Show the broker's status for as long as the body runs."""
    showing = asyncio.create_task(_show(console, url, scene, record), name="show the status")
    try:
        yield
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)


async def _show(console: Console, url: str, scene: Stage, record: _Record) -> None:
    cushion_mib = scene.config.gpu.cushion_mib
    async with aiohttp.ClientSession(url) as session:
        if not console.is_terminal:
            while True:
                status = await _status(session)
                console.print(view.progress_line(status, record.outcomes), soft_wrap=True)
                await asyncio.sleep(PLAIN_REFRESH_S)
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while True:
                picture = view.render(
                    await _status(session),
                    record.evictions,
                    record.outcomes,
                    cushion_mib=cushion_mib,
                )
                live.update(picture, refresh=True)
                await asyncio.sleep(REFRESH_S)


async def _status(session: aiohttp.ClientSession) -> view.Status:
    async with session.get("/api/status") as response:
        status: view.Status = await response.json()
        return status


async def _play(console: Console, url: str) -> None:
    """Say what can be tried, and wait for Ctrl-C."""
    console.print(f"\nThe broker stays up at {url} until Ctrl-C. Routes: {', '.join(ROUTES)}")
    console.print(
        f'  curl -o image.png {url}/v1/image -d \'{{"prompt": "a lighthouse at night"}}\'\n'
        f'  curl -o speech.wav {url}/v1/tts -d \'{{"text": "Hello there."}}\'\n'
        f"  mgpu status --watch --url {url}",
        highlight=False,
        soft_wrap=True,
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()


def _port(wanted: int) -> int:
    """The port that is wanted, unless it is taken."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            free: int = probe.getsockname()[1]
            return free
    raise OSError("no port is free")
