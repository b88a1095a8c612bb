"""Who stands for himself, who belongs to another, and who is not asked at all."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import ClassVar

import pytest

from mgpu.discovery import survey as module
from mgpu.discovery.homes import Home
from mgpu.discovery.listeners import Listener
from mgpu.discovery.survey import Survey, survey
from tests.support.services.base import Service
from tests.support.services.images import ComfyUi, SwarmUi
from tests.support.services.language import LlamaServer, Ollama
from tests.support.services.managers import LlamaSwap

NO_ENGINE = Path("/nonexistent/engine.sock")
Start = Callable[[type[Service]], Awaitable[int]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    started: list[Service] = []

    async def begin(kind: type[Service]) -> int:
        service = kind()
        await service.start()
        started.append(service)
        return int(service.url.rpartition(":")[2])

    yield begin
    for service in started:
        await service.stop()


def listener(port: int, pid: int | None = None, *ancestors: int, broker: bool = False) -> Listener:
    return Listener(
        port, ("127.0.0.1",), exposed=False, pid=pid, ancestors=ancestors, is_broker=broker
    )


async def look(
    folder: Path, *listening: Listener, systemctl: tuple[str, ...] = ("false",)
) -> Survey:
    return await survey(listening, folder, NO_ENGINE, systemctl=systemctl)


async def test_what_another_service_has_started_belongs_to_that_one(
    start: Start, tmp_path: Path
) -> None:
    swarm, comfyui = await start(SwarmUi), await start(ComfyUi)
    swap, llama = await start(LlamaSwap), await start(LlamaServer)

    found = await look(
        tmp_path,
        listener(swarm, 900001, 1),
        listener(comfyui, 900002, 900009, 900001, 1),
        listener(swap, 900003, 1),
        listener(llama, 900004, 900003, 1),
    )

    assert {service.name for service in found.services} == {"swarmui", "llama-swap"}
    assert set(found.parts) == {
        (f"http://127.0.0.1:{comfyui}", "swarmui"),
        (f"http://127.0.0.1:{llama}", "llama-swap"),
    }


async def test_the_ports_of_a_broker_are_not_asked(start: Start, tmp_path: Path) -> None:
    port = await start(ComfyUi)

    found = await look(tmp_path, listener(port, 900001, broker=True))

    assert (found.services, found.brokers, found.asked) == ((), (port,), 0)


async def test_small_ports_are_asked_only_where_a_service_may_have_them(tmp_path: Path) -> None:
    assert (await look(tmp_path, listener(22), listener(80), listener(443))).asked == 1


async def test_no_more_than_so_many_ports_are_asked_the_usual_ones_first(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PORTS", 1)

    found = await look(tmp_path, listener(1025), listener(8188))

    assert (found.asked, found.left_out) == (1, (1025,))


async def test_a_unit_that_several_services_run_in_is_nobodys(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "home", lambda *_, **__: Home(unit="ai.service"))
    ports = [await start(ComfyUi), await start(Ollama)]

    found = await look(tmp_path, *(listener(port, 900000 + port) for port in ports))

    assert [service.home.unit for service in found.services] == [None, None]
    assert "ai.service together with others" in found.services[0].home.note


@pytest.fixture
def own_preset(tmp_path: Path) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "mine.yaml").write_text(
        "service: Mine\nfingerprint: {path: /whoami, contains: mine}\n"
        "consumer: {unload: {path: /unload}}\n"
    )


async def test_a_users_own_preset_is_looked_for_too(
    start: Start, tmp_path: Path, own_preset: None
) -> None:
    class Mine(Service):
        routes: ClassVar = {}
        pages: ClassVar = {"/whoami": "mine 1.0"}

    found = await look(tmp_path, listener(await start(Mine), os.getpid()))

    assert [service.name for service in found.services] == ["mine"]
