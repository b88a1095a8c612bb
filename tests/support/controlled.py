"""The small GPU service under each kind of control, for tests that hold for all of them."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mgpu.config.model import ConsumerConfig
from mgpu.consumers import make_controller
from mgpu.ports import ConsumerController
from tests.support.engine import Engine
from tests.support.servers import free_port
from tests.support.systemd import CHECKOUT, Systemd

SERVICE = CHECKOUT / "tests" / "support" / "gpu_service.py"
ENDPOINTS: dict[str, Any] = {
    "load": {"path": "/load", "timeout_s": 10},
    "unload": {"path": "/unload", "timeout_s": 0.5},
    "health": {"path": "/health"},
    "resident": {"path": "/status", "when": "loaded"},
}


class Controlled(ABC):
    """One service on a port of its own that a controller is made for."""

    comes_back = True
    """Somebody other than the broker starts it again when it has died."""
    starts_within_s = 2.0
    """What a deadline allows for its start, on a machine that others use as well."""

    def __init__(self, name: str, session: aiohttp.ClientSession) -> None:
        self.name = name
        self.session = session
        self.url = f"http://127.0.0.1:{free_port()}"
        self._controllers: list[ConsumerController] = []

    def command(self, *options: str) -> tuple[str, ...]:
        return (sys.executable, str(SERVICE), self.url.rpartition(":")[2], *options)

    def controller(self, **config: Any) -> ConsumerController:
        given = {"url": self.url, "stop_grace_s": 1.0} | self.way() | config
        made = ConsumerConfig.model_validate(given)
        controller = make_controller(self.name, made, self.session, **self.options())
        self._controllers.append(controller)
        return controller

    async def close(self) -> None:
        """Leave nothing behind."""
        for controller in self._controllers:
            await controller.close()
        await self.remove()

    def options(self) -> dict[str, Any]:
        return {}

    def environment(self, folder: Path) -> dict[str, str]:
        """What a broker process needs to control it; may put files into the test's folder."""
        return {}

    def shared(self, folder: Path) -> Path:
        """A folder that the service sees as well: the test's, unless it cannot."""
        return folder

    async def heard(self) -> list[str]:
        """What this process of the service was asked for."""
        async with self.session.get(f"{self.url}/heard") as response:
            heard: list[str] = await response.json()
            return heard

    async def has_restarted(self) -> None:
        """Return when a process listens that was asked for nothing yet."""
        async with asyncio.timeout(20):
            while True:
                with suppress(aiohttp.ClientError):
                    if not await self.heard():
                        return
                await asyncio.sleep(0.02)

    async def listens(self) -> None:
        """Return when the service accepts connections."""
        async with asyncio.timeout(20):
            while True:
                try:
                    async with self.session.get(f"{self.url}/heard"):
                        return
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.02)

    @abstractmethod
    def way(self) -> dict[str, Any]:
        """The key by which the configuration names who starts it."""

    @abstractmethod
    async def install(self, *options: str) -> None:
        """Make it known, with options of the service's."""

    @abstractmethod
    async def start(self) -> None:
        """Start it behind the broker's back, where that can be."""

    @abstractmethod
    async def runs(self) -> bool:
        """Whether a process of it is there."""

    @abstractmethod
    async def kill(self) -> None:
        """End its process as a crash does."""

    @abstractmethod
    async def remove(self) -> None:
        """End it, if somebody other than its controller has to."""


class OverHttp(Controlled):
    """A service that somebody runs, and nobody but its endpoints can be asked."""

    comes_back = False
    starts_within_s = 1.0
    """It runs already."""
    _process: asyncio.subprocess.Process | None = None
    _arguments: tuple[str, ...] = ()

    def way(self) -> dict[str, Any]:
        return {}

    async def install(self, *options: str) -> None:
        self._arguments = self.command(*options)
        await self.start()
        await self.listens()

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(*self._arguments)

    async def runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def remove(self) -> None:
        if await self.runs():
            await self.kill()


class InAUnit(Controlled):
    """A systemd service that is started again when it dies."""

    def __init__(self, name: str, session: aiohttp.ClientSession, systemd: Systemd) -> None:
        super().__init__(name, session)
        self._systemd = systemd

    def way(self) -> dict[str, Any]:
        return {"systemd_unit": self.name}

    def options(self) -> dict[str, Any]:
        return {"systemctl": self._systemd.systemctl_command}

    def environment(self, folder: Path) -> dict[str, str]:
        command = (*self._systemd.enter, str(shutil.which("systemctl")))
        script = folder / "bin" / "systemctl"
        script.parent.mkdir()
        script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        script.chmod(0o755)
        return {"PATH": f"{script.parent}:{os.environ['PATH']}"}

    def shared(self, folder: Path) -> Path:
        return self._systemd.units.parent / self.name

    async def install(self, *options: str) -> None:
        # Tests let it die more often than systemd has patience for (5 starts in 10 s).
        text = (
            "[Unit]\nStartLimitIntervalSec=0\n"
            f"[Service]\nExecStart={' '.join(self.command(*options))}\nRestart=always\n"
        )
        await asyncio.to_thread(self._systemd.write_unit, f"{self.name}.service", text)

    async def start(self) -> None:
        await asyncio.to_thread(self._systemd.systemctl, "start", self.name)

    async def runs(self) -> bool:
        shown = await asyncio.to_thread(self._systemd.show, f"{self.name}.service", "ActiveState")
        return shown not in {"inactive", "failed"}

    async def kill(self) -> None:
        await asyncio.to_thread(self._systemd.systemctl, "kill", "--signal=KILL", self.name)

    async def remove(self) -> None:
        await asyncio.to_thread(self._systemd.systemctl, "stop", self.name)


class InAContainer(Controlled):
    """A container that its engine starts again when it dies."""

    starts_within_s = 4.0

    def __init__(self, name: str, session: aiohttp.ClientSession, engine: Engine) -> None:
        super().__init__(name, session)
        self._engine = engine

    def way(self) -> dict[str, Any]:
        return {"container": self.name, "container_socket": str(self._engine.socket)}

    async def install(self, *options: str) -> None:
        command = self.command(*options)
        await self._engine.create(self.name, *command, RestartPolicy={"Name": "always"})

    async def start(self) -> None:
        await self._engine.do(self.name, "start")

    async def runs(self) -> bool:
        return bool((await self._engine.shown(self.name))["State"]["Running"])

    async def kill(self) -> None:
        # The engine's own kill counts as a stop that was wanted: it would not start it again.
        os.kill((await self._engine.shown(self.name))["State"]["Pid"], signal.SIGKILL)

    async def remove(self) -> None:
        await asyncio.to_thread(self._engine.remove, self.name)


class AsAProgram(Controlled):
    """A program of the broker's own."""

    comes_back = False
    _arguments: tuple[str, ...] = ()

    def way(self) -> dict[str, Any]:
        return {"command": self._arguments}

    async def install(self, *options: str) -> None:
        self._arguments = self.command(*options)

    async def start(self) -> None:
        raise AssertionError("nobody but the broker starts it")

    async def runs(self) -> bool:
        return await self._pid() is not None

    async def kill(self) -> None:
        pid = await self._pid()
        assert pid is not None
        killed = await asyncio.create_subprocess_exec("kill", "-KILL", str(pid))
        await killed.wait()

    async def remove(self) -> None:
        assert not await self.runs()

    async def _pid(self) -> int | None:
        """The service's process, found by its command line."""
        line = " ".join(self._arguments)
        search = await asyncio.create_subprocess_exec(
            "pgrep", "-f", "-x", line, stdout=asyncio.subprocess.PIPE
        )
        found, _ = await search.communicate()
        return int(found.split()[0]) if found else None


def controlled(
    kind: str, request: pytest.FixtureRequest, session: aiohttp.ClientSession
) -> Controlled:
    """One of this kind for a test, named after it."""
    words = request.node.originalname.removeprefix("test_").split("_")
    name = "-".join((kind, *words))[:60]
    match kind:
        case "http":
            return OverHttp(name, session)
        case "systemd":
            systemd: Systemd = request.getfixturevalue("systemd")
            return InAUnit(name, session, systemd)
        case "podman" | "docker":
            engine: Engine = request.getfixturevalue(kind)
            return InAContainer(name, session, engine)
        case _:
            return AsAProgram(name, session)
