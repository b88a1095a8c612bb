"""``mgpu measure`` on a running broker: the figures are those of the services that hold memory."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from tests.acceptance.conftest import Machine
from tests.support.measuring import command, measure
from tests.support.standin_consumer import StandinConsumer

FOOTPRINT, EXTRA, RESIDUAL = 4000, 700, 300
NOT_SUPPORTED = 3


class Hungry(StandinConsumer):
    """Its jobs take more than its weights, and give it back afterwards."""

    async def _job(self, request: web.Request) -> web.Response:
        if await request.read() == b"fail":
            return web.Response(status=422, text="no such voice")
        self.hold(self.footprint_mib + EXTRA)
        response = await super()._job(request)
        self.hold(self.footprint_mib)
        return response


def written(file: Path) -> str:
    return file.read_text()


def write(file: Path, text: str) -> None:
    file.write_text(text)


async def hungry(machine: Machine, **how: Any) -> StandinConsumer:
    config = {"footprint_mib": 100, "residual_mib": 0}
    return await machine.service(
        Hungry, "tts", FOOTPRINT, config=config, **{"residual_mib": RESIDUAL, **how}
    )


def blind(machine: Machine) -> None:
    """The driver does not tell whose memory it is, as in WSL."""
    machine.nvml.fail("nvmlDeviceGetComputeRunningProcesses_v3", NOT_SUPPORTED)


@pytest.mark.parametrize("sees_processes", [True, False])
async def test_footprint_and_residual_are_what_it_holds(
    machine: Machine, tmp_path: Path, sees_processes: bool
) -> None:
    if not sees_processes:
        blind(machine)
    tts = await hungry(machine)
    broker = await machine.broker()

    run = await measure(broker, "tts", "--cycles", "2", folder=tmp_path)

    assert run.code == 0, run.output
    assert run.row("1").startswith(f"1 {FOOTPRINT} MiB")
    assert run.row("2").startswith(f"2 {FOOTPRINT} MiB")
    assert run.row("median").startswith(f"median {FOOTPRINT} MiB {RESIDUAL} MiB")
    assert ("by the GPUs' free memory" in run.output) is not sees_processes
    assert (tts.loads, tts.jobs) == (2, 0)
    assert (await broker.consumer("tts"))["state"] == "absent"


@pytest.mark.parametrize("sees_processes", [True, False])
async def test_what_a_job_takes_besides_belongs_to_the_footprint(
    machine: Machine, tmp_path: Path, sees_processes: bool
) -> None:
    if not sees_processes:
        blind(machine)
    tts = await hungry(machine, job_s=0.8)
    broker = await machine.broker()

    run = await measure(
        broker, "tts", "--cycles", "1", "--request", "POST /job", "--data", "{}", folder=tmp_path
    )

    assert run.code == 0, run.output
    assert run.row("median").startswith(f"median {FOOTPRINT + EXTRA} MiB {RESIDUAL} MiB")
    assert tts.jobs == 1


async def test_what_is_stored_is_what_was_measured_and_comments_stay(
    machine: Machine, tmp_path: Path
) -> None:
    await hungry(machine)
    broker = await machine.broker()
    file = tmp_path / "mine.yaml"
    section = yaml.safe_load((machine.directory / "broker.yaml").read_text())["consumers"]["tts"]
    text = (
        "# mine\nconsumers:\n  tts:  # the voice\n"
        f"    url: {section['url']}  # cellar\n    footprint_mib: 100  # guessed\n"
        "    load: {path: /load}\n    unload: {path: /unload}\n"
    )
    write(file, text)

    run = await measure(broker, "tts", "--cycles", "1", "--store", "-c", str(file), folder=tmp_path)

    assert run.code == 0, run.output
    assert written(file) == text.replace("100", str(FOOTPRINT)).replace(
        "# cellar\n", f"# cellar\n    residual_mib: {RESIDUAL}\n"
    )
    assert f"wrote footprint_mib: {FOOTPRINT}, residual_mib: {RESIDUAL}" in run.output


async def test_one_that_was_resident_is_so_again_and_its_residual_is_not_guessed(
    machine: Machine, tmp_path: Path
) -> None:
    blind(machine)
    tts = await hungry(machine, resident=True)
    broker = await machine.broker()
    await broker.until("c['tts']['state'] == 'resident'")

    run = await measure(broker, "tts", "--cycles", "1", folder=tmp_path)

    assert run.code == 0, run.output
    assert run.row("median").startswith(f"median {FOOTPRINT - RESIDUAL} MiB -")
    assert "was not to be seen" in run.output
    assert (await broker.consumer("tts"))["state"] == "resident"
    assert tts.loaded


class Besieged(Hungry):
    """Whenever it loads, somebody else takes some memory, too."""

    game: StandinConsumer

    async def _load(self, request: web.Request) -> web.Response:
        self.game.hold(100 * (self.loads + 1))
        return await super()._load(request)


async def test_figures_that_somebody_else_disturbed_are_not_stored(
    machine: Machine, tmp_path: Path
) -> None:
    blind(machine)
    tts = await machine.service(Besieged, "tts", FOOTPRINT, config={"footprint_mib": 100})
    broker = await machine.broker()
    tts.game = await machine.consumer("game", 100)  # not the broker's: it came later
    file = tmp_path / "broker.yaml"
    before = written(file)

    run = await measure(broker, "tts", "--cycles", "2", "--store", "-c", str(file), folder=tmp_path)

    assert run.code == 1, run.output
    assert run.row("5").endswith("somebody else took 100 MiB meanwhile")
    assert "Nothing was stored" in run.output
    assert written(file) == before


async def test_one_that_others_wait_for_is_left_alone(machine: Machine, tmp_path: Path) -> None:
    tts = await hungry(machine)
    broker = await machine.broker()
    tts.job_gate.close()
    async with asyncio.TaskGroup() as group:
        post = broker.session.post(f"{broker.url}/v1/tts", data=b"work")
        sent = group.create_task(_status(post))
        await tts.job_gate.reached()
        run = await measure(broker, "tts", folder=tmp_path)
        tts.job_gate.open()

    assert run.code == 1
    assert "tts computes: measure later, or with --force" in run.output
    assert sent.result() == 200
    assert tts.unloads == 0


async def test_a_pinned_one_is_left_alone_unless_forced(machine: Machine, tmp_path: Path) -> None:
    tts = await hungry(machine)
    broker = await machine.broker()
    await _status(broker.session.post(f"{broker.url}/api/consumers/tts/pin"))
    await broker.until("c['tts']['state'] == 'resident'")

    refused = await measure(broker, "tts", folder=tmp_path)
    assert refused.code == 1
    assert "tts is pinned" in refused.output
    assert tts.unloads == 0

    forced = await measure(broker, "tts", "--cycles", "1", "--force", folder=tmp_path)
    assert forced.code == 0, forced.output
    view = await broker.until("c['tts']['state'] == 'resident'")
    assert view["consumers"]["tts"]["pinned"]


async def test_a_job_that_fails_ends_it_and_the_consumer_is_as_before(
    machine: Machine, tmp_path: Path
) -> None:
    await hungry(machine)
    broker = await machine.broker()

    run = await measure(broker, "tts", "--request", "POST /job", "--data", "fail", folder=tmp_path)

    assert run.code == 1
    assert "the job failed with HTTP 422: no such voice" in run.output
    assert (await broker.consumer("tts"))["state"] == "absent"


async def test_who_interrupts_it_finds_the_consumer_as_before(
    machine: Machine, tmp_path: Path
) -> None:
    tts = await hungry(machine, resident=True)
    broker = await machine.broker()
    await broker.until("c['tts']['state'] == 'resident'")
    process = await asyncio.create_subprocess_exec(
        *command(broker, "tts", "--cycles", "5"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await tts.unload_gate.reached()
    await broker.until("c['tts']['state'] == 'absent'")

    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):
        code = await process.wait()

    assert code not in {0, None}
    assert (await broker.consumer("tts"))["state"] == "resident"


async def _status(request: Any) -> int:
    async with request as response:
        status: int = response.status
        return status
