"""Consumers with a unit, under a real systemd and with a real service in it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from mgpu.config.model import ConsumerConfig
from mgpu.consumers import make_controller, supervised
from mgpu.errors import LoadFailed, UnloadDeclined, UnloadFailed
from mgpu.ports import ConsumerController, Located, Placement, ProbeReport, Whereabouts
from tests.support.servers import free_port
from tests.support.systemd import CHECKOUT, Systemd

NOWHERE = Placement()
SERVICE = CHECKOUT / "tests" / "support" / "gpu_service.py"


class Service:
    """A unit that runs a small GPU service on a port of its own, and its controller."""

    def __init__(self, systemd: Systemd, session: aiohttp.ClientSession, name: str) -> None:
        self.systemd = systemd
        self.session = session
        self.name = name
        self.url = f"http://127.0.0.1:{free_port()}"

    def install(self, *options: str, extra: str = "") -> None:
        command = " ".join([sys.executable, str(SERVICE), self.url.rpartition(":")[2], *options])
        self.systemd.write_unit(f"{self.name}.service", f"[Service]\nExecStart={command}\n{extra}")

    def controller(self, **config: Any) -> ConsumerController:
        made = ConsumerConfig(url=self.url, systemd_unit=self.name, **config)
        return make_controller(
            self.name, made, self.session, systemctl=self.systemd.systemctl_command
        )

    async def heard(self) -> list[str]:
        """What the service was asked for, probes left out."""
        async with self.session.get(f"{self.url}/heard") as response:
            heard: list[str] = await response.json()
            return heard

    @property
    def active(self) -> str:
        return self.systemd.show(f"{self.name}.service", "ActiveState")


@pytest.fixture
async def service(
    systemd: Systemd, session: aiohttp.ClientSession, request: pytest.FixtureRequest
) -> AsyncIterator[Service]:
    name = request.node.name.removeprefix("test_").replace("_", "-")
    made = Service(systemd, session, name)
    yield made
    systemd.systemctl("kill", "--signal=KILL", name)


BUSY = {"path": "/status", "when": "loaded"}
HEALTH = {"path": "/health"}
LOAD = {"path": "/load", "timeout_s": 20}
UNLOAD = {"path": "/unload", "timeout_s": 0.5}
RESIDENT = {"path": "/status", "when": "loaded"}


async def test_a_unit_alone_is_loaded_by_its_start_and_unloaded_by_its_stop(
    service: Service,
) -> None:
    service.install()
    alone = service.controller(health=HEALTH)
    assert await alone.probe() == ProbeReport(
        reachable=False,
        healthy=False,
        resident=False,
        detail=f"{service.name}.service is inactive (dead)",
    )

    await alone.load(NOWHERE)
    assert service.active == "active"
    assert await alone.probe() == ProbeReport(
        reachable=True, healthy=True, resident=True, alive=True
    )

    await alone.unload()
    assert service.active == "inactive"
    assert (await alone.probe()).resident is False
    await alone.close()


async def test_a_unit_alone_is_stopped_when_it_does_not_compute_any_more(service: Service) -> None:
    service.install()
    alone = service.controller(health=HEALTH, busy=BUSY)
    await alone.load(NOWHERE)
    await service.session.post(f"{service.url}/load")

    unloading = asyncio.create_task(alone.unload())
    done, _ = await asyncio.wait({unloading}, timeout=0.3)
    assert not done
    assert service.active == "active"
    await service.session.post(f"{service.url}/unload")

    await unloading
    assert service.active == "inactive"


async def test_a_unit_alone_that_goes_on_computing_is_left_alone(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "IDLE_TIMEOUT_S", 0.3)
    service.install()
    alone = service.controller(health=HEALTH, busy=BUSY)
    await alone.load(NOWHERE)
    await service.session.post(f"{service.url}/load")

    with pytest.raises(
        UnloadDeclined, match=r"\.service was not stopped, as the consumer computes"
    ):
        await alone.unload()
    assert service.active == "active"

    await alone.escalate()
    assert service.active == "inactive"


async def test_a_load_returns_only_when_the_service_answers(service: Service) -> None:
    service.install("--deaf-s", "0.3")
    await service.controller().load(NOWHERE)
    assert await service.heard() == []  # would be refused if it did not listen yet


async def test_a_unit_whose_service_dies_at_its_start_fails_the_load_at_once(
    service: Service,
) -> None:
    service.install("--exit", "3")
    began = time.monotonic()
    with pytest.raises(LoadFailed) as caught:
        await service.controller(health=HEALTH).load(NOWHERE)
    assert time.monotonic() - began < 10
    assert caught.value.detail == (
        f"consumer {service.name}: {service.name}.service: ended after its start, "
        "it is failed (failed, result exit-code)"
    )


async def test_a_service_that_never_gets_healthy_is_stopped_again_at_the_deadline(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "START_TIMEOUT_S", 1.0)
    service.install()
    with pytest.raises(LoadFailed, match="runs, but the service did not become healthy after"):
        await service.controller(health={"path": "/health", "ok": [299]}).load(NOWHERE)
    assert service.active in {"inactive", "failed"}


async def test_with_endpoints_the_unit_is_started_first_and_then_only_the_endpoints_are_used(
    service: Service,
) -> None:
    service.install()
    both = service.controller(load=LOAD, unload=UNLOAD, health=HEALTH, resident=RESIDENT)
    await both.load(NOWHERE)
    assert await service.heard() == ["POST /load"]
    assert (await both.probe()).resident is True

    await both.unload()
    assert await both.probe() == ProbeReport(
        reachable=True, healthy=True, resident=False, alive=True
    )
    assert service.active == "active"

    await both.load(NOWHERE, {"ctx": 2})
    assert await service.heard() == ["POST /load", "POST /unload", "POST /load"]


async def test_when_the_unload_endpoint_fails_escalating_stops_the_unit(
    service: Service,
) -> None:
    service.install("--hang", "/unload")
    both = service.controller(load=LOAD, unload=UNLOAD)
    await both.load(NOWHERE)
    with pytest.raises(UnloadFailed, match="POST /unload did not end within"):
        await both.unload()
    assert service.active == "active"
    await both.escalate()
    assert service.active == "inactive"


async def test_a_failed_load_unloads_a_unit_that_ran_before_and_leaves_it_running(
    service: Service,
) -> None:
    service.install("--fail", "/load")
    service.systemd.systemctl("start", service.name).check_returncode()
    with pytest.raises(LoadFailed, match="POST /load answered 500"):
        await service.controller(load=LOAD, unload=UNLOAD).load(NOWHERE)
    assert await service.heard() == ["POST /load", "POST /unload"]
    assert service.active == "active"


async def test_a_failed_load_stops_a_unit_that_it_has_started(service: Service) -> None:
    service.install("--fail", "/load")
    with pytest.raises(LoadFailed, match="POST /load answered 500"):
        await service.controller(load=LOAD, unload=UNLOAD).load(NOWHERE)
    assert service.active == "inactive"


async def test_a_unit_that_cannot_be_stopped_fails_the_unload(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "STOP_MARGIN_S", 0.3)
    service.install(extra="ExecStop=/bin/sleep infinity\n")
    stubborn = service.controller(stop_grace_s=0)
    await stubborn.load(NOWHERE)
    with pytest.raises(UnloadFailed) as caught:
        await stubborn.unload()
    assert caught.value.detail == (
        f"consumer {service.name}: {service.name}.service: not stopped within 0.3 s, "
        "it is deactivating (stop)"
    )
    report = await stubborn.probe()
    assert (report.reachable, report.resident) == (False, None)


async def test_a_unit_that_is_not_there_fails_the_load_and_its_clean_up_is_logged(
    service: Service,
) -> None:
    with capture_logs() as logs, pytest.raises(LoadFailed, match=r"Unit .* not found"):
        await service.controller().load(NOWHERE)
    assert [line["event"] for line in logs] == ["clean_up_failed"]


async def test_a_systemctl_that_is_missing_makes_the_consumer_unreachable(
    session: aiohttp.ClientSession,
) -> None:
    config = ConsumerConfig(url="http://127.0.0.1:1", systemd_unit="tts")
    report = await make_controller("tts", config, session, systemctl=("/nowhere/ctl",)).probe()
    assert (report.reachable, report.healthy, report.resident) == (False, False, None)
    assert report.detail.startswith("tts.service: cannot run /nowhere/ctl")


async def test_a_cancelled_load_leaves_no_task(service: Service) -> None:
    service.install("--hang", "/load")
    before = asyncio.all_tasks()
    loading = asyncio.create_task(service.controller(load=LOAD).load(NOWHERE))
    async with asyncio.timeout(20):
        await asyncio.to_thread(
            service.systemd.wait_for, f"{service.name}.service", "ActiveState", "active"
        )
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
    assert asyncio.all_tasks() == before


async def test_its_control_group_is_known_as_soon_as_it_was_asked(
    service: Service,
) -> None:
    service.install()
    controller = service.controller(health=HEALTH)
    assert isinstance(controller, Located)
    assert controller.whereabouts == Whereabouts()
    await controller.load(NOWHERE)
    group = service.systemd.show(f"{service.name}.service", "ControlGroup")
    assert group
    assert controller.whereabouts == Whereabouts(control_group=group)
