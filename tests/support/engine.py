"""A real container engine for tests: Podman's service of the Docker Engine API, without a network.

It keeps images and containers in a folder of its own and runs in a mount namespace, because its
runtime takes either version of control groups and no mixture of both: where there is one, the part
of version 2 is hidden from it. The one image holds a static busybox, which changes into the
machine's own file system; so a container runs any program of the tests, and its processes are in
control groups of their own. Only root can start one.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiodocker import Docker

IMAGE = "mgpu-test"
START_TIMEOUT_S = 30.0

# Limits that may be kept without privileges: not all of the engine's own defaults may be raised.
_SETTINGS = """
[containers]
netns = "host"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
"""

_HIDE_VERSION_2 = """
set -eu
mount --make-rprivate /
if [ -e /sys/fs/cgroup/unified ]; then umount -l /sys/fs/cgroup/unified; fi
exec "$@"
"""


class Engine:
    """A running one, listening at ``socket``."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "engine.sock"
        self._settings = folder / "containers.conf"
        self._settings.write_text(_SETTINGS)
        self._command = (
            "unshare",
            "--mount",
            *("sh", "-c", _HIDE_VERSION_2, "sh"),
            "podman",
            *("--root", str(folder / "root"), "--runroot", str(folder / "run")),
            *("--storage-driver", "vfs"),
        )

    def podman(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ("timeout", "--kill-after=5", "60", *self._command, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=self._environment,
        )

    def serve(self, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                (*self._command, "system", "service", "--time", "0", f"unix://{self.socket}"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    async def create(self, name: str, *command: str, **host: Any) -> None:
        """Make a container, not started yet, that runs a command of this machine."""
        async with Docker(url=f"unix://{self.socket}") as docker:
            await docker.containers.create(
                {
                    "Image": IMAGE,
                    "Cmd": ["chroot", "/host", *command],
                    "HostConfig": {"NetworkMode": "host", "Binds": ["/:/host"], **host},
                },
                name=name,
            )

    async def do(self, name: str, verb: str, **parameters: Any) -> None:
        """Do to a container what a person would do behind the broker's back."""
        async with Docker(url=f"unix://{self.socket}") as docker:
            container = docker.containers.container(name)
            await getattr(container, verb)(**parameters)

    async def shown(self, name: str) -> dict[str, Any]:
        async with Docker(url=f"unix://{self.socket}") as docker:
            return await docker.containers.container(name).show()

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CONTAINERS_CONF": str(self._settings)}


def missing() -> str:
    """Why no engine can be started here; empty when one may."""
    if os.geteuid() != 0:
        return "starting a container engine takes root"
    tools = [tool for tool in ("unshare", "podman", "crun", "busybox") if not shutil.which(tool)]
    return f"not installed: {', '.join(tools)}" if tools else ""


@contextmanager
def running(folder: Path) -> Iterator[Engine]:
    """An engine that answers, its image made; everything in it has ended afterwards."""
    engine = Engine(folder)
    archive = folder / "image.tar"
    with tarfile.open(archive, "w") as image:
        image.add(str(shutil.which("busybox")), arcname="bin/busybox")
    imported = engine.podman(
        "import", "--change", 'ENTRYPOINT ["/bin/busybox"]', str(archive), IMAGE
    )
    if imported.returncode:
        pytest.skip(f"podman does not work here: {imported.stderr.strip()}")
    tried = engine.podman("run", "--rm", IMAGE, "true")
    if tried.returncode:
        pytest.skip(f"containers cannot be run here: {tried.stderr.strip()}")
    service = engine.serve(folder / "engine.log")
    try:
        _wait_for(engine.socket)
        yield engine
    finally:
        engine.podman("rm", "--all", "--force", "--time", "0")
        os.killpg(service.pid, signal.SIGTERM)
        service.wait(timeout=START_TIMEOUT_S)


def _wait_for(path: Path) -> None:
    """Poll: the service does not tell when it listens."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline, f"nobody listens at {path}"
                time.sleep(0.02)
            else:
                return


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One engine for all the tests of a process; each test brings containers of its own name."""
    if reason := missing():
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp("engine")) as instance:
        yield instance
