"""A real systemd for tests: PID 1 of namespaces of its own, with nothing but the tests' units.

It sees the machine's files, but /run, /tmp and /var/tmp are empty and its own (its start-up would
clean the machine's), and what it writes below /etc and /var/lib stays in memory. It lives in a
control group of its own, so that several of them do not meet. Only root can start one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
BOOT_TIMEOUT_S = 20.0
COMMAND_TIMEOUT_S = 20
_SYSTEMD = Path("/lib/systemd/systemd")
_NAMESPACES = ("--fork", "--pid", "--mount", "--cgroup", "--ipc", "--uts", "--mount-proc")
_HIDDEN = ("/run", "/tmp", "/var/tmp")  # the folders that get a fresh tmpfs
_TARGETS = {
    "sysinit.target": "[Unit]\nDefaultDependencies=no\n",
    "basic.target": "[Unit]\nDefaultDependencies=no\nRequires=sysinit.target\n",
    "shutdown.target": "[Unit]\nDefaultDependencies=no\n",
    "default.target": "[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n",
}

# Control groups to be made and joined, then --, then the command to become.
_OUTSIDE = """
set -eu
while [ "$1" != -- ]; do
    mkdir "$1"
    echo $$ >"$1/cgroup.procs"
    shift
done
shift
exec "$@"
"""

# $1 is 2 where control groups are to be of version 2 alone; $2, the unit folder, and the rest are
# folders that must stay reachable below the fresh tmpfs.
_INSIDE = """
set -eu
version=$1
shift
units=$1
mount --make-rprivate /
if [ "$version" = 2 ] || [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
fi
mount -t tmpfs tmpfs /run
number=0
for folder in "$@"; do
    number=$((number + 1))
    mkdir -p /run/kept/$number
    mount --bind "$folder" /run/kept/$number
done
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /var/tmp
number=0
for folder in "$@"; do
    number=$((number + 1))
    mkdir -p "$folder"
    mount --bind /run/kept/$number "$folder"
    umount /run/kept/$number
done
for folder in /etc /var/lib; do
    mkdir -p /run/over$folder/upper /run/over$folder/work
    layers=lowerdir=$folder,upperdir=/run/over$folder/upper,workdir=/run/over$folder/work
    mount -t overlay -o $layers overlay $folder
done
exec env -i PATH="$PATH" container=other SYSTEMD_UNIT_PATH="$units" \\
    /lib/systemd/systemd --system --unit=default.target --log-target=console --show-status=0
"""


class Systemd:
    """A running one. ``pid`` is its process seen from outside."""

    def __init__(self, pid: int, units: Path) -> None:
        self.pid = pid
        self.units = units
        namespaces = ("-p", "-m", "-C", "-i", "-u")
        self.enter = ("nsenter", "-t", str(pid), *namespaces)
        self.systemctl_command = (*self.enter, "systemctl")
        """What ``SystemdUnit`` has to call in systemctl's place."""

    def run(
        self, *argv: str, timeout_s: int = COMMAND_TIMEOUT_S, check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside; one that takes longer is killed and exits 124 or 137."""
        return subprocess.run(
            ("timeout", "--kill-after=1", str(timeout_s), *self.enter, *argv),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=check,
        )

    def systemctl(
        self, *args: str, timeout_s: int = COMMAND_TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", "--no-pager", *args, timeout_s=timeout_s)

    def write_unit(self, name: str, text: str) -> None:
        """Write a unit, or a drop-in (``x.service.d/y.conf``), and make it known."""
        path = self.units / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.systemctl("daemon-reload").check_returncode()

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", f"--property={name}", "--value", unit).stdout.strip()

    def wait_for(self, unit: str, name: str, value: str, timeout_s: float = 10.0) -> None:
        """Wait until a property of a unit has this value."""
        _wait(lambda: self.show(unit, name) == value, timeout_s, f"{unit} never had {name}={value}")


def missing() -> str:
    """Why no systemd can be started here; empty when one can."""
    if os.geteuid() != 0:
        return "starting a systemd takes root"
    tools = [tool for tool in ("unshare", "nsenter", "systemctl") if shutil.which(tool) is None]
    if tools:
        return f"not installed: {', '.join(tools)}"
    if not _SYSTEMD.exists():
        return f"there is no {_SYSTEMD}"
    probe = subprocess.run(
        ("unshare", *_NAMESPACES, "true"), capture_output=True, text=True, check=False
    )
    return f"namespaces cannot be made: {probe.stderr.strip()}" if probe.returncode else ""


@contextmanager
def running(folder: Path, *, version: str = "") -> Iterator[Systemd]:
    """A systemd that has finished starting. ``folder`` is the tests' own and stays reachable.

    ``version`` is that of its control groups: "2", or those that the machine has. On a machine with
    both, version 2 has no controllers.
    """
    units = folder / "units"
    units.mkdir()
    for name, text in _TARGETS.items():
        (units / name).write_text(text)
    groups = _control_groups(f"mgpu-test-{os.getpid()}-{folder.name}")
    outer = ("setpriv", "--pdeathsig", "KILL", "unshare", *_NAMESPACES, "--kill-child")
    inner = ("sh", "-c", _INSIDE, "sh", version, str(units), *_kept(folder))
    log = folder / "systemd.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ("sh", "-c", _OUTSIDE, "sh", *groups, "--", *outer, *inner),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _booted(process, units, log)
    finally:
        for child in _children(process.pid):
            os.kill(child, signal.SIGKILL)
        process.wait(timeout=BOOT_TIMEOUT_S)
        _remove(groups)


def _kept(folder: Path) -> list[str]:
    wanted = (folder, CHECKOUT, Path(sys.prefix), Path(sys.base_prefix))
    return [str(path) for path in wanted if any(path.is_relative_to(top) for top in _HIDDEN)]


def _booted(process: subprocess.Popen[bytes], units: Path, log: Path) -> Systemd:
    def is_up() -> bool:
        assert process.poll() is None, f"systemd did not start:\n{log.read_text()}"
        children = _children(process.pid)
        return bool(children) and (
            Systemd(children[0], units).systemctl("is-system-running").stdout.strip() == "running"
        )

    _wait(is_up, BOOT_TIMEOUT_S, f"systemd did not start in time; its log is {log}")
    return Systemd(_children(process.pid)[0], units)


def _children(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def _wait(condition: Callable[[], bool], timeout_s: float, complaint: str) -> None:
    """Poll: systemd offers nothing to wait on from outside its namespaces."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.02)


def _control_groups(name: str) -> list[str]:
    """A group of this name below the current one, in every hierarchy that systemd uses.

    Nested so that what limits the tests limits their systemd too. A new cpuset would have no
    processors (cgroups(7)), so that hierarchy is left out.
    """
    groups = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controller, current = line.split(":", 2)
        folders = {"": ("", "unified"), "name=systemd": ("systemd",), "cpuset": ()}
        for folder in folders.get(controller, (controller,)):
            parent = Path("/sys/fs/cgroup", folder, current.lstrip("/"))
            if (parent / "cgroup.procs").exists():
                groups.append(str(parent / name))
    return groups


def _remove(groups: list[str]) -> None:
    for group in groups:
        for folder, _, _ in os.walk(group, topdown=False):
            Path(folder).rmdir()


@pytest.fixture(scope="session")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Systemd]:
    """One systemd for all the tests of a process; each test brings units of its own name."""
    if reason := missing():
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp("systemd")) as instance:
        yield instance
