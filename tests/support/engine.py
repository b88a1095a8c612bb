"""A real container engine for tests: what answers the Docker Engine API on a socket.

It keeps images and containers in a folder of its own and has no network. Its one image
holds a static busybox, which changes into the machine's own file system; so a container runs any
program of the tests, and its processes are in control groups of their own. Only root can start one.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiodocker import Docker

IMAGE = "mgpu-test"
START_TIMEOUT_S = 30.0


class Engine(ABC):
    """One that is started in a folder of its own and listens at ``socket``."""

    tools: tuple[str, ...]
    """The programs that it takes."""
    group: str
    """What stands before a container's id in the path of its control group."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "engine.sock"
        self._folder = folder
        self._log = folder / "engine.log"
        self._service: subprocess.Popen[bytes] | None = None

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be started here; empty when it may."""
        if os.geteuid() != 0:
            return "starting a container engine takes root"
        tools = [tool for tool in ("unshare", "busybox", *cls.tools) if not shutil.which(tool)]
        return f"not installed: {', '.join(tools)}" if tools else ""

    def start(self) -> None:
        """Return when it answers; skip the test, with its last words, when it does not."""
        with self._log.open("wb") as output:
            self._service = service = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                start_new_session=True,
            )
        self.wait_for(lambda: service.poll() is None)

    def wait_for(self, runs: Callable[[], bool]) -> None:
        """Poll until it answers, of which it does not tell, for as long as it runs."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if not runs():
                words = self._log.read_text(errors="replace").strip().splitlines()[-1:]
                pytest.skip(f"{type(self).__name__} does not run here: {' '.join(words)}")
            assert time.monotonic() < deadline, f"nobody answers at {self.socket}; see {self._log}"
            time.sleep(0.02)

    def stop(self) -> None:
        """End it as the machine's shutdown does; whether its containers go on is its own affair."""
        assert self._service is not None
        self._service.terminate()
        self._service.wait(timeout=START_TIMEOUT_S)

    def prepare(self) -> None:
        """Make the image; skip the test where no container can be run."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as image:
            image.add(str(shutil.which("busybox")), arcname="bin/busybox")
        self._call("POST", f"/images/create?fromSrc=-&repo={IMAGE}", archive.getvalue())
        described = json.dumps(_described(("/bin/busybox", "true"), {})).encode()
        self._call("POST", "/containers/create?name=tried", described)
        status, answer = self._call("POST", "/containers/tried/start")
        if status >= http.client.BAD_REQUEST:
            pytest.skip(f"{type(self).__name__} runs no containers here: {answer}")
        self.remove("tried")

    def remove(self, name: str) -> None:
        """End a container at once and forget it, if it is there."""
        self._call("POST", f"/containers/{name}/kill")
        self._call("DELETE", f"/containers/{name}?force=true")

    def close(self) -> None:
        """End it and everything in it."""
        _, listed = self._call("GET", "/containers/json?all=true")
        for container in json.loads(listed):
            self.remove(container["Id"])
        self.stop()

    async def create(self, name: str, *command: str, **other: Any) -> None:
        """Make a container, not started yet, that runs a command of this machine.

        ``other`` is of its ``HostConfig``, save for ``Healthcheck``.
        """
        described = _described(("/bin/busybox", "chroot", "/host", *command), other)
        async with Docker(url=f"unix://{self.socket}") as docker:
            await docker.containers.create(described, name=name)

    async def do(self, name: str, verb: str, **parameters: Any) -> None:
        """Do to a container what a person would do behind the broker's back."""
        async with Docker(url=f"unix://{self.socket}") as docker:
            container = docker.containers.container(name)
            await getattr(container, verb)(**parameters)

    async def shown(self, name: str) -> dict[str, Any]:
        async with Docker(url=f"unix://{self.socket}") as docker:
            return await docker.containers.container(name).show()

    async def execute(self, name: str, *command: str) -> int:
        """Run a program of the image beside the container's own; the process's number here."""
        async with Docker(url=f"unix://{self.socket}") as docker:
            running = await docker.containers.container(name).exec(command)
            await running.start(detach=True)
            return int((await running.inspect())["Pid"])

    async def output(self, name: str) -> str:
        """Start a container, wait for its end, and return what it wrote."""
        async with Docker(url=f"unix://{self.socket}") as docker:
            container = docker.containers.container(name)
            await container.start()
            await container.wait(timeout=START_TIMEOUT_S)
            return "".join(await container.log(stdout=True, stderr=True))

    @abstractmethod
    def command(self) -> tuple[str, ...]:
        """What runs it, in the foreground."""

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def _answers(self) -> bool:
        # An engine listens before it can do anything, and may give up after that.
        try:
            return self._call("GET", "/_ping")[0] == http.client.OK
        except (OSError, http.client.HTTPException):
            return False

    def _call(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        """One request, from wherever the test is: its event loop need not run, nor stand still."""
        kind = "application/json" if "json" in path or "containers" in path else "application/x-tar"
        headers = {"Content-Type": kind, "Connection": "close"}
        with closing(http.client.HTTPConnection("localhost")) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(START_TIMEOUT_S)
            connection.sock.connect(str(self.socket))
            connection.request(method, path, body, headers)
            with connection.getresponse() as response:
                return response.status, response.read().decode()


def _described(command: tuple[str, ...], other: dict[str, Any]) -> dict[str, Any]:
    check = {name: other.pop(name) for name in ("Healthcheck",) if name in other}
    return {
        "Image": IMAGE,
        "Entrypoint": list(command[:1]),
        "Cmd": list(command[1:]),
        "StopTimeout": 1,
        "HostConfig": {"NetworkMode": "host", "Binds": ["/:/host"], **other},
        **check,
    }
