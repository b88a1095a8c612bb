"""Consumers with placeholders: each place has requests and a unit of its own."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from mgpu.config.model import ConsumerConfig
from mgpu.consumers import make_controller
from mgpu.errors import UnloadFailed
from mgpu.ports import ConsumerController, Placement, ProbeReport
from tests.support.servers import free_port
from tests.support.systemd import CHECKOUT, Systemd

Serve = Callable[[web.Application], Awaitable[TestServer]]

FIRST, SECOND = Placement((0,), ("GPU-a",)), Placement((1,), ("GPU-b",))
SERVICE = CHECKOUT / "tests" / "support" / "gpu_service.py"


async def test_requests_name_the_gpu_that_was_chosen_and_later_the_one_it_lives_on(
    session: aiohttp.ClientSession, aiohttp_server: Serve
) -> None:
    heard: list[tuple[str, Any]] = []

    async def hear(request: web.Request) -> web.Response:
        heard.append((request.path, await request.json()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/{tail:.*}", hear)
    server = await aiohttp_server(app)
    config = ConsumerConfig.model_validate(
        {
            "url": str(server.make_url("")).rstrip("/"),
            "load": {"path": "/load/{gpu_index}", "body": {"gpu": "{gpu_index}"}},
            "unload": {"path": "/unload", "body": {"gpus": ["{gpu_uuid}"]}},
        }
    )
    places = [SECOND, FIRST]
    placed = make_controller("tts", config, session, places=lambda: places)

    await placed.load(SECOND)
    await placed.unload()
    places.reverse()
    await placed.unload()
    await placed.load(FIRST, {"gpu": "{gpu_index}", "ctx": 2})

    assert heard == [
        ("/load/1", {"gpu": 1}),
        ("/unload", {"gpus": ["GPU-b"]}),
        ("/unload", {"gpus": ["GPU-a"]}),
        ("/load/0", {"gpu": 0, "ctx": 2}),
    ]
    assert (await placed.probe()).gpus is None
    await placed.close()


async def test_before_a_gpu_was_read_nobody_can_be_asked(session: aiohttp.ClientSession) -> None:
    config = ConsumerConfig(url="http://127.0.0.1:1", systemd_unit="llm@{gpu_index}")
    placed = make_controller("llm", config, session)
    assert not (await placed.probe()).asked
    with pytest.raises(UnloadFailed, match="no GPU has been read"):
        await placed.unload()


class Instances:
    """A template of units, each a small GPU service on one port: only one can run at a time."""

    def __init__(self, systemd: Systemd, session: aiohttp.ClientSession) -> None:
        self.systemd = systemd
        self.url = f"http://127.0.0.1:{free_port()}"
        self.session = session
        command = " ".join([sys.executable, str(SERVICE), self.url.rpartition(":")[2]])
        systemd.write_unit("placed@.service", f"[Service]\nExecStart={command}\n")

    def controller(self, *places: Placement) -> ConsumerController:
        config = ConsumerConfig.model_validate(
            {
                "url": self.url,
                "systemd_unit": "placed@{gpu_uuid}",
                "health": {"path": "/health"},
            }
        )
        return make_controller(
            "placed",
            config,
            self.session,
            systemctl=self.systemd.systemctl_command,
            places=lambda: places,
        )

    def active(self, instance: str) -> bool:
        return self.systemd.show(f"placed@{instance}.service", "ActiveState") == "active"


@pytest.fixture
def instances(systemd: Systemd, session: aiohttp.ClientSession) -> Iterator[Instances]:
    yield Instances(systemd, session)
    systemd.systemctl("kill", "--signal=KILL", "placed@*")


async def test_the_instance_of_the_chosen_gpu_is_started_and_stopped(instances: Instances) -> None:
    placed = instances.controller(SECOND, FIRST)

    await placed.load(SECOND)
    assert instances.active(r"GPU\x2db")
    assert not instances.active(r"GPU\x2da")

    await placed.unload()
    assert not instances.active(r"GPU\x2db")


async def test_a_new_broker_finds_the_instance_that_runs(instances: Instances) -> None:
    await instances.controller(FIRST, SECOND).load(SECOND)

    report = await instances.controller(FIRST, SECOND).probe()

    assert report == ProbeReport(reachable=True, healthy=True, resident=True, alive=True, gpus=(1,))


async def test_when_no_instance_runs_the_consumer_is_absent(instances: Instances) -> None:
    report = await instances.controller(FIRST, SECOND).probe()
    assert (report.reachable, report.resident, report.gpus) == (False, False, None)


async def test_a_program_is_started_for_the_gpu_that_was_chosen(
    session: aiohttp.ClientSession,
) -> None:
    port = free_port()
    config = ConsumerConfig.model_validate(
        {
            "url": f"http://127.0.0.1:{port}",
            "command": [
                sys.executable,
                str(SERVICE.with_name("program.py")),
                "--environment=CUDA_VISIBLE_DEVICES",
                "--say={gpu_index}",
                "--serve",
                str(port),
            ],
            "environment": {"CUDA_VISIBLE_DEVICES": "{gpu_uuid}"},
        }
    )
    placed = make_controller("llm", config, session, places=lambda: (FIRST, SECOND))
    with capture_logs() as logs:
        await placed.load(SECOND)
        report = await placed.probe()
        await placed.close()

    assert (report.reachable, report.alive, report.gpus) == (True, True, (1,))
    said = {line.get("line") for line in logs}
    assert {"CUDA_VISIBLE_DEVICES=GPU-b", "1"} <= said
    assert (await placed.probe()).gpus is None
