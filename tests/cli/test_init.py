"""``mgpu init``: from services that run here to a broker in front of them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import pytest
import yaml

from mgpu.cli import init
from mgpu.config.load import load
from mgpu.config.problems import InvalidConfig
from mgpu.discovery import fingerprints
from mgpu.discovery.listeners import Listener, listeners
from mgpu.errors import ConfigError
from tests.support.servers import BadServer, free_port, serving
from tests.support.services.base import Service
from tests.support.services.images import ComfyUi
from tests.support.services.language import KoboldCpp, Ollama, TabbyApi, Vllm
from tests.support.services.speech import Speaches

Mgpu = Callable[..., Awaitable[Any]]


class Site:
    """The services of a test; ``mgpu init`` sees these listeners of the machine and no others."""

    def __init__(self) -> None:
        self.ports: set[int] = set()
        self.started: list[Service] = []

    async def start(self, *kinds: type[Service]) -> list[Service]:
        services = [kind() for kind in kinds]
        for service in services:
            await service.start()
            self.started.append(service)
            self.add(service.url)
        return services

    def add(self, url: str) -> None:
        self.ports.add(int(url.rpartition(":")[2]))

    def listeners(self) -> tuple[Listener, ...]:
        return tuple(each for each in listeners() if each.port in self.ports)


@pytest.fixture
async def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Site]:
    made = Site()
    monkeypatch.setattr(init, "listeners", made.listeners)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-engine.sock")
    yield made
    for service in made.started:
        await service.stop()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "broker.yaml"


def written(path: Path) -> str:
    return path.read_text()


def write(path: Path, text: str) -> None:
    path.write_text(text)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def test_what_runs_becomes_a_file_that_is_valid_and_says_what_is_next(
    mgpu: Mgpu, site: Site, file: Path
) -> None:
    comfyui, ollama = await site.start(ComfyUi, Ollama)

    result = await mgpu("init", "-o", str(file))

    assert result.exit_code == 0
    assert "ComfyUI" in result.stdout
    assert comfyui.url in result.stdout
    assert f"wrote {file}\n" in result.stdout
    assert result.stdout.endswith(f"mgpu check -c {file} and mgpu serve -c {file}\n")
    config = load(file)
    assert {name: each.url for name, each in config.consumers.items()} == {
        "comfyui": comfyui.url,
        "ollama": ollama.url,
    }
    assert config.routes["/v1/image"].consumer == "comfyui"
    checked = await mgpu("check", "-c", str(file))
    assert checked.exit_code == 0, checked.stdout
    assert comfyui.changes == ollama.changes == [], "only GET was asked"


async def test_every_service_gets_a_port_of_its_own_at_the_broker(
    mgpu: Mgpu, site: Site, file: Path
) -> None:
    services = await site.start(ComfyUi, Vllm, KoboldCpp)
    await mgpu("init", "-o", str(file))

    listens = [each.listen for each in load(file).consumers.values()]
    ports = [int(str(listen).removeprefix("127.0.0.1:")) for listen in listens]
    assert len(set(ports)) == len(ports)
    assert not set(ports) & site.ports
    text = written(file)
    for service, port in zip(sorted(services, key=lambda each: each.url), ports, strict=True):
        assert f"http://127.0.0.1:{port} in the place of {service.url}" in text


async def test_two_of_a_kind_are_told_apart_by_their_ports(
    mgpu: Mgpu, site: Site, file: Path
) -> None:
    first, second = await site.start(Vllm, Vllm)
    await mgpu("init", "-o", str(file))

    assert {name: each.url for name, each in load(file).consumers.items()} == {
        f"vllm-{service.url.rpartition(':')[2]}": service.url for service in (first, second)
    }


async def test_models_that_are_told_take_the_place_of_openai_routes(
    mgpu: Mgpu, site: Site, file: Path
) -> None:
    await site.start(Ollama, Vllm, KoboldCpp)
    await mgpu("init", "-o", str(file))

    assert "/v1/chat/completions" not in load(file).routes
    assert "/v1/chat/completions goes to whom the request's model belongs" in written(file)


async def test_a_model_that_two_have_goes_to_the_first(mgpu: Mgpu, site: Site, file: Path) -> None:
    await site.start(Ollama, Ollama)
    await mgpu("init", "-o", str(file))

    config = load(file)
    first = next(iter(config.consumers))
    assert dict(config.models) == {"qwen3:8b": first, "llava": first}


async def test_a_required_parameter_is_there_to_be_filled_in(
    mgpu: Mgpu, site: Site, file: Path
) -> None:
    await site.start(TabbyApi)
    result = await mgpu("init", "-o", str(file))

    lines = written(file).splitlines()
    number = next(n for n, line in enumerate(lines, 1) if "CHANGE-ME" in line)
    where = f"{file}:{number}: consumers.tabbyapi.parameters.model: still says CHANGE-ME"
    said = "".join(result.stdout.split())
    assert result.exit_code == 0
    assert "".join(f"To be filled in: {where}: the folder name".split()) in said
    assert "".join(f"Next: fill that in, then mgpu check -c {file}".split()) in said
    checked = await mgpu("check", "-c", str(file))
    assert checked.exit_code == 2
    assert "".join(where.split()) in "".join(checked.stdout.split())
    assert yaml.safe_load(written(file))["consumers"]["tabbyapi"]["parameters"] == {
        "model": "CHANGE-ME"
    }
    assert "the folder name of the model to load" in written(file)


async def test_what_to_look_out_for_stands_with_the_service(
    mgpu: Mgpu, site: Site, file: Path
) -> None:
    await site.start(Vllm)
    await mgpu("init", "-o", str(file))

    assert "must have been started with VLLM_SERVER_DEV_MODE=1" in written(file)


async def test_decoys_and_dead_ends_are_named_and_not_configured(
    mgpu: Mgpu, site: Site, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprints, "QUESTION_TIMEOUT_S", 0.3)
    await site.start(Speaches, KoboldCpp)
    hello = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
    async with (
        serving(BadServer()) as hanging,
        serving(BadServer(b"220 mail ESMTP\r\n", hang_up=True)) as mail,
        serving(BadServer(hello, hang_up=True)) as stranger,
    ):
        for server in (hanging, mail, stranger):
            site.add(server.url)
        result = await mgpu("init", "-o", str(file))

    assert result.exit_code == 0
    assert set(load(file).consumers) == {"speaches", "koboldcpp"}
    assert f"{stranger.url} (" in result.stdout
    assert f"{stranger.url} (" in written(file)
    assert hanging.url not in result.stdout
    assert mail.url not in result.stdout


async def test_two_that_cannot_be_told_apart_are_both_named_and_neither_is_taken(
    mgpu: Mgpu, site: Site, file: Path
) -> None:
    class Both(ComfyUi):
        pages: ClassVar = {"/running": {"running": []}}

    (service,) = await site.start(Both)
    result = await mgpu("init", "-o", str(file))

    assert result.exit_code == 0
    assert "ComfyUI or llama-swap: not clear which" in result.stdout
    assert not load(file).consumers
    text = written(file)
    assert f"#   url: {service.url}" in text
    assert "#   preset: comfyui" in text
    assert "#   preset: llama-swap" in text


async def test_where_nothing_is_found_nothing_is_written(
    mgpu: Mgpu, site: Site, file: Path
) -> None:
    result = await mgpu("init", "-o", str(file))

    assert result.exit_code == 1
    assert "nothing was written" in result.stdout
    assert "ComfyUI" in result.stdout
    assert "Next: start your services" in result.stdout
    assert entries(file.parent) == []


async def test_a_file_that_is_there_is_replaced_only_by_force(
    mgpu: Mgpu, site: Site, file: Path
) -> None:
    await site.start(ComfyUi)
    write(file, "mine")

    refused = await mgpu("init", "-o", str(file))
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert written(file) == "mine"

    assert (await mgpu("init", "-o", str(file), "--force")).exit_code == 0
    assert "comfyui" in load(file).consumers
    assert entries(file.parent) == [file]


def test_a_file_that_is_wrong_in_another_way_is_not_written(file: Path) -> None:
    text = (
        "consumers:\n  t: {url: 'http://127.0.0.1:1', preset: tabbyapi, "
        "parameters: {model: CHANGE-ME}, pinned: 5}\n"
    )
    with pytest.raises(InvalidConfig, match="pinned"):
        init.write(file, text, force=False)

    assert entries(file.parent) == []


def test_one_who_is_faster_is_not_overwritten(file: Path) -> None:
    file.write_text("theirs")

    with pytest.raises(ConfigError, match="cannot be written: File exists"):
        init.write(file, "consumers: {}\n", force=False)

    assert written(file) == "theirs"
    assert entries(file.parent) == [file]


async def test_a_folder_that_is_not_there_is_said_so(
    mgpu: Mgpu, site: Site, tmp_path: Path
) -> None:
    result = await mgpu("init", "-o", str(tmp_path / "no" / "broker.yaml"))

    assert result.exit_code == 2
    assert "there is no folder" in result.stderr


async def test_the_broker_starts_with_it_and_its_clients_need_only_a_new_port(
    mgpu: Mgpu, site: Site, file: Path
) -> None:
    _comfyui, ollama = await site.start(ComfyUi, Ollama)
    await mgpu("init", "-o", str(file))
    port = free_port()
    env = {
        **os.environ,
        "MGPU_SERVER__LISTEN": f"127.0.0.1:{port}",
        "MGPU_GPU__BACKEND": "simulated",
        "MGPU_JOBS__DATABASE": str(file.with_name("jobs.db")),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mgpu", "serve", "-c", str(file), env=env
    )
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(20):
            own = load(file).consumers["ollama"].listen
            while not await _answers(session, f"http://127.0.0.1:{port}/readyz"):
                assert process.returncode is None
                await asyncio.sleep(0.02)
            async with session.get(f"http://{own}/") as response:
                assert await response.text() == "Ollama is running"
            async with session.get(f"http://127.0.0.1:{port}/v1/models") as response:
                listed = [each["id"] for each in (await response.json())["data"]]
            assert listed == ["qwen3:8b", "llava"]
            body = {"model": "qwen3:8b", "prompt": "hi"}
            async with session.post(f"http://{own}/api/generate", json=body) as response:
                assert response.status == 200
    finally:
        process.terminate()
        await process.wait()
    assert "POST /api/generate" in ollama.calls


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200
    except aiohttp.ClientConnectionError:
        return False
