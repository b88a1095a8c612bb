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
from mgpu.core.model import Outcome
from mgpu.demo.stage import ROUTES, Stage, stage
from mgpu.demo.summary import JobRecord, summarise
from mgpu.demo.workload import Client
from mgpu.telemetry import logs

DEFAULT_PORT = 7070
"""Where the client commands look; when it is taken, any other will do."""

REFRESH_S = 0.1
PLAIN_REFRESH_S = 1.0


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the command line asks for."""

    jobs: int
    seed: int
    port: int
    output: Path
    keep: bool

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


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
    plan = _Plan(jobs, seed, _port(port), output, keep)
    if port not in {0, plan.port}:
        typer.echo(f"Port {port} is taken: the demo's broker is at {plan.url}", err=True)
    with (output / "broker.log").open("w") as log, tempfile.TemporaryDirectory() as directory:
        asyncio.run(_demo(plan, Path(directory), log))


async def _demo(plan: _Plan, directory: Path, log: TextIO) -> None:
    console = Console()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - asyncio.run made it
    # As Ctrl-C does: the services end before the program.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    logs.configure(stream=log)
    record = _Record()
    console.print(f"Four services, one simulated GPU, {plan.jobs} requests through {plan.url} …")
    console.print("A request for a transcription is two jobs: the speech for it is made first.")
    async with (
        stage(directory, plan.port) as scene,
        bootstrap.running(scene.config, systemctl=scene.systemctl, watch=record.watch) as parts,
    ):
        client = Client(plan.url, plan.output, record.jobs.append)
        started_s = time.monotonic()
        async with _shown(console, plan.url, scene, record):
            await client.run(plan.jobs, plan.seed)
        record.took_s = time.monotonic() - started_s
        record.loads = parts.broker.snapshot().loads
        console.print(
            summarise(
                record.jobs, loads=record.loads, evictions=record.evictions, took_s=record.took_s
            ),
            crop=False,
        )
        console.print(f"\nThe broker's log: {plan.output / 'broker.log'}", soft_wrap=True)
        if plan.keep:
            await _play(console, plan.url)
    if record.outcomes[Outcome.DONE] < len(record.jobs):
        raise typer.Exit(1)
    if not plan.keep:
        console.print("Next: `mgpu demo --keep` to send your own requests, or write a broker.yaml.")


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
