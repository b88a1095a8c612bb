"""What a service runs in: control groups, a real systemd, a real container engine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from mgpu.discovery import homes
from mgpu.discovery.homes import Containers, Home, containers, home, unit_of
from tests.support.engine import Engine
from tests.support.engines import docker, engine, podman
from tests.support.servers import free_port
from tests.support.systemd import Systemd, systemd

__all__ = ["docker", "engine", "podman", "systemd"]

ID = "0123456789abcdef" * 4
NO_SYSTEMCTL = ("/nonexistent/systemctl",)
SAYS_LOADED = ("sh", "-c", "echo loaded", "sh")


def proc(folder: Path, *lines: str, pid: int = 7) -> Path:
    (folder / str(pid)).mkdir()
    (folder / str(pid) / "cgroup").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("group", "unit", "scope", "uid"),
    [
        ("/system.slice/comfyui.service", "comfyui.service", "system", None),
        ("/system.slice/comfyui.service/worker", "comfyui.service", "system", None),
        ("/system.slice/system-tts.slice/tts@1.service", "tts@1.service", "system", None),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/tts.service",
            "tts.service",
            "user",
            1000,
        ),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/term.scope", None, "user", 1000),
        ("/user.slice/user-1000.slice/session-3.scope", None, "system", None),
        ("/system.slice/_cpu.service", "cpu.service", "system", None),
        ("/", None, "system", None),
    ],
)
def test_a_control_group_names_the_innermost_unit_that_can_be_started(
    group: str, unit: str | None, scope: str, uid: int | None
) -> None:
    assert unit_of(group) == (unit, scope, uid)


def test_a_unit_that_systemd_does_not_know_is_no_home(tmp_path: Path) -> None:
    folder = proc(tmp_path, "0::/system.slice/comfyui.service")

    assert home(7, 8188, Containers(), systemctl=NO_SYSTEMCTL, proc=folder) == Home()
    known = home(7, 8188, Containers(), systemctl=SAYS_LOADED, proc=folder)
    assert known == Home(unit="comfyui.service")


def test_control_groups_of_version_1_are_read_as_systemd_keeps_them(tmp_path: Path) -> None:
    folder = proc(
        tmp_path, "4:memory:/other.service", "1:name=systemd:/system.slice/tts.service", "0::/"
    )

    assert home(7, 1, Containers(), systemctl=SAYS_LOADED, proc=folder) == Home(unit="tts.service")


@pytest.mark.parametrize(
    "unit", ["cron.service", "ssh.service", "docker.service", "tmux-x.service"]
)
def test_a_unit_that_is_there_for_other_things_is_no_home(tmp_path: Path, unit: str) -> None:
    folder = proc(tmp_path, f"0::/system.slice/{unit}")

    assert home(7, 1, Containers(), systemctl=SAYS_LOADED, proc=folder) == Home()


def test_the_unit_of_another_user_is_told_and_not_used(tmp_path: Path) -> None:
    group = "/user.slice/user-9.slice/user@{}.service/app.slice/tts.service"
    folder = proc(tmp_path, f"0::{group.format(os.geteuid() + 1)}")
    proc(tmp_path, f"0::{group.format(os.geteuid())}", pid=8)

    other = home(7, 1, Containers(), systemctl=SAYS_LOADED, proc=folder)
    assert other.unit is None
    assert "tts.service of user" in other.note
    mine = home(8, 1, Containers(), systemctl=SAYS_LOADED, proc=folder)
    assert mine == Home(unit="tts.service", scope="user")


@pytest.mark.parametrize(
    "group",
    [
        f"/system.slice/docker-{ID}.scope",
        f"/docker/{ID}",
        f"/machine.slice/libpod-{ID}.scope",
        f"/system.slice/tts.service/libpod-payload-{ID}",
    ],
)
def test_a_container_is_known_by_the_id_in_its_control_group(tmp_path: Path, group: str) -> None:
    folder = proc(tmp_path, f"0::{group}")

    named = home(7, 1, Containers(by_id={ID: "whisper"}), proc=folder, systemctl=SAYS_LOADED)
    assert named == Home(container="whisper")
    unnamed = home(7, 1, Containers(), proc=folder, systemctl=SAYS_LOADED)
    assert (unnamed.container, unnamed.unit) == (None, None)
    assert ID[:12] in unnamed.note


def test_a_published_port_is_its_containers_whoever_listens(tmp_path: Path) -> None:
    folder = proc(tmp_path, "0::/system.slice/docker.service")
    known = Containers(by_port={8000: "vllm"})

    assert home(7, 8000, known, proc=folder) == Home(container="vllm")
    assert home(None, 8000, known, proc=folder) == Home(container="vllm")


def test_a_hidden_process_is_said_to_be_one(tmp_path: Path) -> None:
    assert "as root" in home(None, 1, Containers(), proc=tmp_path).note
    assert home(7, 1, Containers(), proc=tmp_path) == Home()


def test_a_real_unit_is_found_by_its_process(systemd: Systemd) -> None:
    port = free_port()
    systemd.write_unit(
        "found.service",
        f"[Service]\nExecStart={sys.executable} -m http.server --bind 127.0.0.1 {port}\n"
        "WorkingDirectory=/run\n",
    )
    systemd.systemctl("start", "found.service").check_returncode()
    pid = int(systemd.show("found.service", "MainPID"))
    # The namespaces' own /proc has the control group as that systemd sees it.
    folder = Path(f"/proc/{systemd.pid}/root/proc")

    found = home(pid, port, Containers(), systemctl=systemd.systemctl_command, proc=folder)

    systemd.systemctl("stop", "found.service")
    assert found == Home(unit="found.service")


async def test_a_real_engine_tells_its_running_containers(engine: Engine) -> None:
    await engine.create("found", "/bin/sleep", "60")
    await engine.do("found", "start")
    identity = (await engine.shown("found"))["Id"]

    known = await containers(engine.socket)

    await engine.do("found", "delete", force=True)
    assert known.by_id[identity] == "found"
    assert known.problem == ""


async def test_published_ports_are_taken_as_the_engine_tells_them(tmp_path: Path) -> None:
    listed = [
        {
            "Id": ID,
            "Names": ["/vllm"],
            "Ports": [
                {"PrivatePort": 8000, "PublicPort": 18000, "Type": "tcp"},
                {"PrivatePort": 9000, "Type": "tcp"},
            ],
        }
    ]
    async with _engine(tmp_path / "engine.sock", listed) as socket:
        known = await containers(socket)

    assert known == Containers({18000: "vllm"}, {ID: "vllm"})


async def test_an_engine_that_answers_nonsense_is_a_problem_and_no_failure(tmp_path: Path) -> None:
    async with _engine(tmp_path / "engine.sock", [{"Names": None}]) as socket:
        assert "cannot be asked" in (await containers(socket)).problem


async def test_an_engine_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homes, "ENGINE_TIMEOUT_S", 0.1)
    async with _engine(tmp_path / "engine.sock", None) as socket:
        assert "did not answer" in (await containers(socket)).problem


async def test_where_there_is_no_engine_there_are_no_containers(tmp_path: Path) -> None:
    assert await containers(tmp_path / "nothing") == Containers()


@asynccontextmanager
async def _engine(socket: Path, listed: Any) -> AsyncIterator[Path]:
    """What answers as an engine does; None: never."""

    async def answer(request: web.Request) -> web.Response:
        if listed is None:
            await asyncio.Event().wait()
        if request.path.endswith("/version"):
            return web.json_response({"ApiVersion": "1.41"})
        return web.json_response(listed)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    yield socket
    await runner.cleanup()
