"""The container engines that there are, each running for the tests of one process."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from tests.support.engine import Engine
from tests.support.systemd import Systemd


class Podman(Engine):
    """Podman's service of the Docker Engine API.

    Its runtime takes either version of control groups and no mixture of both: where there is one,
    the part of version 2 is hidden from it in a mount namespace.
    """

    tools = ("podman", "crun")
    group = "libpod-"
    # Limits that may be kept without privileges: not all of its own defaults may be raised. What
    # watches an exec goes on for 5 minutes after its end by default.
    _SETTINGS = """
[containers]
netns = "host"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
exit_command_delay = 0
runtime = "crun"
"""
    _HIDE_VERSION_2 = """
set -eu
mount --make-rprivate /
if [ -e /sys/fs/cgroup/unified ]; then umount -l /sys/fs/cgroup/unified; fi
exec "$@"
"""

    def command(self) -> tuple[str, ...]:
        return (
            *("unshare", "--mount", "sh", "-c", self._HIDE_VERSION_2, "sh"),
            *("podman", "--storage-driver", "vfs"),
            *("--root", str(self._folder / "root"), "--runroot", str(self._folder / "run")),
            *("system", "service", "--time", "0", f"unix://{self.socket}"),
        )

    def environment(self) -> dict[str, str]:
        settings = self._folder / "containers.conf"
        settings.write_text(self._SETTINGS)
        return super().environment() | {"CONTAINERS_CONF": str(settings)}


class Dockerd(Engine):
    """Docker's own, with a containerd of its own and without networks.

    It sees an empty /run, where it would meet another Docker, and makes control groups itself: that
    the machine's systemd makes them takes D-Bus.
    """

    tools: tuple[str, ...] = ("dockerd", "containerd", "runc")
    group = "docker/"
    hierarchies = "as they are"
    _ALONE = """
set -eu
mount --make-rprivate /
if [ "$1" = "version 2" ]; then mount -t cgroup2 cgroup2 /sys/fs/cgroup; fi
mkdir -p "$2"
mount --bind "$2" /run
shift 2
exec "$@"
"""

    def command(self) -> tuple[str, ...]:
        return (
            *("unshare", "--mount", "sh", "-c", self._ALONE, "sh"),
            *(self.hierarchies, str(self._folder / "run")),
            *("dockerd", *self.options("cgroupfs")),
        )

    def options(self, groups: str) -> tuple[str, ...]:
        """What it is told; ``groups`` names who makes its control groups."""
        settings = self._folder / "daemon.json"
        settings.write_text("{}")
        return (
            *("--host", f"unix://{self.socket}", "--config-file", str(settings)),
            *("--data-root", str(self._folder / "data"), "--storage-driver", "vfs"),
            *("--exec-root", str(self._folder / "exec")),
            *("--pidfile", str(self._folder / "dockerd.pid")),
            *("--exec-opt", f"native.cgroupdriver={groups}"),
            *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"),
        )


class DockerdOnVersion2(Dockerd):
    """As ``Dockerd``, where control groups are of version 2 alone.

    On a machine with both it has no controllers then: nothing in it can be limited or paused.
    """

    hierarchies = "version 2"


class DockerdUnderSystemd(Dockerd):
    """As ``Dockerd``, in a unit of a systemd that makes its control groups, as Docker's usual is.

    That takes version 2 of them, or all controllers of version 1, which the tests' systemd has not.
    """

    tools = (*Dockerd.tools, "dbus-daemon")
    _UNITS: ClassVar = {
        "dbus.socket": "[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
        "dbus.service": (
            "[Unit]\nRequires=dbus.socket\n[Service]\nExecStart=/usr/bin/dbus-daemon --system "
            "--address=systemd: --nofork --nopidfile --systemd-activation\n"
        ),
        "docker.service": "[Service]\nExecStart={command}\nDelegate=yes\nKillMode=process\n"
        "StandardOutput=append:{log}\nStandardError=append:{log}\n",
    }

    def __init__(self, folder: Path, systemd: Systemd) -> None:
        super().__init__(folder)
        self._log = folder / "docker.log"
        self._systemd = systemd

    def start(self) -> None:
        command = shlex.join((str(shutil.which("dockerd")), *self.options("systemd")))
        for name, text in self._UNITS.items():
            self._systemd.write_unit(name, text.format(command=command, log=self._log))
        self._systemd.systemctl("start", "dbus.service", "docker.service").check_returncode()
        self.wait_for(lambda: self._systemd.show("docker.service", "ActiveState") == "active")

    def stop(self) -> None:
        self._systemd.systemctl("stop", "docker.service").check_returncode()


ENGINES = ("podman", "docker")
"""The fixtures below."""


@contextmanager
def running(one: Engine) -> Iterator[Engine]:
    """It answers, and its image is made; everything in it has ended afterwards."""
    if reason := one.missing():
        pytest.skip(reason)
    one.start()
    try:
        one.prepare()
        yield one
    finally:
        one.close()


@pytest.fixture(scope="session")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One for all the tests of a process; each test brings containers of its own name.

    Folders are named shortly: Podman takes no path over 50 characters, sockets none over 104.
    """
    with running(Podman(tmp_path_factory.mktemp("p"))) as one:
        yield one


@pytest.fixture(scope="session")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """As ``podman``."""
    with running(Dockerd(tmp_path_factory.mktemp("d"))) as one:
        yield one


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each of them in turn."""
    one: Engine = request.getfixturevalue(request.param)
    return one
