"""``mgpu measure`` of a service that answers at once and computes later, as ComfyUI does."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from mgpu.gpu.simulated import HeldMemory
from tests.acceptance.conftest import Machine
from tests.support.broker_process import BrokerProcess
from tests.support.comfyui import Graph, StandinComfyUI, broken_picture, slow_picture
from tests.support.measuring import SETTLE_S, command, measure

FIRST, SECOND, RESIDUAL = 4000, 9000, 400
GUESSED = 12000
PAUSE_S = 2 * SETTLE_S
STEPS = 3


class TwoPeaks(StandinComfyUI):
    """Its weights come in, much later what it computes with; it gives both back when asked to."""

    def __init__(self, memory: HeldMemory) -> None:
        super().__init__()
        self.memory = memory

    async def _run(self, entry: list[Any]) -> None:
        self.running = [entry]
        self.memory.hold("comfyui", FIRST)
        await asyncio.sleep(PAUSE_S)  # longer than memory must stand still
        self.memory.hold("comfyui", SECOND)
        await asyncio.sleep(SETTLE_S)
        await super()._run(entry)

    async def _post_free(self, request: web.Request) -> web.Response:
        assert not self.running
        self.memory.hold("comfyui", RESIDUAL)
        return await super()._post_free(request)


@pytest.fixture
async def comfyui(machine: Machine) -> AsyncIterator[TwoPeaks]:
    with HeldMemory(machine.nvml.held_directory(0)) as memory:
        standin = TwoPeaks(memory)
        await standin.start()
        yield standin
        await standin.close()


@pytest.fixture
async def broker(machine: Machine, comfyui: TwoPeaks) -> BrokerProcess:
    section = {"url": comfyui.url, "preset": "comfyui", "footprint_mib": GUESSED}
    return await machine.broker(consumers={"comfyui": section})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A broker.yaml to store into."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "consumers:\n  comfyui:\n    url: http://127.0.0.1:8188\n    preset: comfyui\n"
        f"    footprint_mib: {GUESSED}\n"
    )
    return path


def written(file: Path) -> str:
    return file.read_text()


def exported(folder: Path, graph: Graph) -> tuple[str, ...]:
    """The job of a workflow as ComfyUI's "Export (API)" saves it."""
    file = folder / "workflow.json"
    file.write_text(json.dumps(graph))
    return ("--request", "POST /prompt", "--data", str(file))


async def test_a_peak_long_after_the_answer_is_seen_in_every_cycle(
    broker: BrokerProcess, comfyui: TwoPeaks, file: Path, tmp_path: Path
) -> None:
    job = exported(tmp_path, slow_picture(STEPS))

    run = await measure(
        broker, "comfyui", "--cycles", "2", *job, "--store", "-c", str(file), folder=tmp_path
    )

    assert run.code == 0, run.output
    for row in ("1", "2", "median"):
        assert run.row(row).startswith(f"{row} {SECOND} MiB {RESIDUAL} MiB")
        assert run.seconds(row, "job") >= PAUSE_S
    stored = yaml.safe_load(written(file))["consumers"]["comfyui"]
    assert (stored["footprint_mib"], stored["residual_mib"]) == (SECOND, RESIDUAL)
    assert [prompt.keys() for prompt in comfyui.prompts] == [{"prompt"}, {"prompt"}]
    assert (await broker.consumer("comfyui"))["state"] == "absent"


async def test_a_workflow_that_fails_ends_it_and_nothing_is_stored(
    broker: BrokerProcess, file: Path, tmp_path: Path
) -> None:
    before = written(file)
    job = exported(tmp_path, broken_picture())

    run = await measure(broker, "comfyui", *job, "--store", "-c", str(file), folder=tmp_path)

    assert run.code == 1, run.output
    assert "the job failed with HTTP 500" in run.output
    assert "DefaultCPUAllocator: can't allocate memory" in run.output
    assert written(file) == before
    assert (await broker.consumer("comfyui"))["state"] == "absent"


async def test_a_job_that_somebody_cancels_ends_it_and_nothing_is_stored(
    broker: BrokerProcess, comfyui: TwoPeaks, file: Path, tmp_path: Path
) -> None:
    before = written(file)
    job = exported(tmp_path, slow_picture(STEPS))
    comfyui.gate.close()
    measuring = asyncio.create_task(
        measure(broker, "comfyui", *job, "--store", "-c", str(file), folder=tmp_path)
    )
    await comfyui.gate.reached()

    (running,) = (await broker.status())["gpus"][0]["lock"]["jobs"]
    async with broker.session.delete(f"{broker.url}/api/jobs/{running}") as response:
        assert response.status == 200
    comfyui.gate.open()
    run = await measuring

    assert run.code == 1, run.output
    assert "cancelled" in run.output
    assert written(file) == before


async def test_who_interrupts_it_at_work_leaves_no_work_behind(
    broker: BrokerProcess, comfyui: TwoPeaks, tmp_path: Path
) -> None:
    job = exported(tmp_path, slow_picture(STEPS))
    comfyui.gate.close()
    process = await asyncio.create_subprocess_exec(
        *command(broker, "comfyui", *job),
        cwd=tmp_path,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await comfyui.gate.reached()

    process.send_signal(signal.SIGINT)
    await broker.until("c['comfyui']['state'] == 'draining'")
    comfyui.gate.open()
    async with asyncio.timeout(20):
        code = await process.wait()

    assert code == 130
    assert comfyui.interrupts
    status = await broker.status()
    assert status["gpus"][0]["lock"]["jobs"] == []
    assert status["consumers"]["comfyui"]["state"] == "absent"
