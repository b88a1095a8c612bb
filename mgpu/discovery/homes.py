"""What a process runs in: a systemd unit, a container, or neither that is known.

A process's control group tells (cgroups(7), systemd.special(7)): ``/system.slice/NAME.service`` is
a unit of the system's, ``…/user@UID.service/…/NAME.service`` one of a user's, and a container's
group ends in its id. systemd itself is asked whether the unit is one that may be started and
stopped. A port that a container publishes is listened on by a helper of the engine's, so the engine
is asked first.

Units that are there for other things and only happen to contain the process (a shell's, cron's) are
no homes: stopping them would stop more than the service.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp
from aiodocker import Docker, DockerError

from mgpu.gpu import control_groups

ENGINE_TIMEOUT_S = 2.0
SYSTEMCTL_TIMEOUT_S = 2.0

_USER_MANAGER = re.compile(r"user@(\d+)\.service")
_OTHERS = re.compile(
    r"(user@.*|getty@.*|serial-getty@.*|systemd-.*|docker|containerd|podman|crio|kubelet|lxc.*"
    r"|snapd|libvirtd|cron|crond|anacron|atd|ssh|sshd|ssh@.*|supervisord?|dbus.*|display-manager"
    r"|gdm|sddm|lightdm|gnome-.*|plasma-.*|xdg-.*|tmux.*|screen.*)\.service"
)
_ENGINE_TROUBLE = (DockerError, aiohttp.ClientError, OSError, ValueError, LookupError, TypeError)


@dataclass(frozen=True, slots=True)
class Home:
    """Where a service runs. ``note`` says what there is to know about it."""

    unit: str | None = None
    scope: Literal["system", "user"] = "system"
    container: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Containers:
    """The running containers of an engine. ``problem``: why nobody could be asked, if so."""

    by_port: Mapping[int, str] = field(default_factory=dict)
    by_id: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


async def containers(socket: Path) -> Containers:
    """Ask the engine behind ``socket``, within 2 s; none where there is no engine."""
    if not await asyncio.to_thread(socket.is_socket):
        return Containers()
    try:
        async with (
            asyncio.timeout(ENGINE_TIMEOUT_S),
            # The engine's client does not close a connector that it was given.
            aiohttp.UnixConnector(str(socket)) as connector,
            Docker(url="unix://localhost", connector=connector) as engine,
        ):
            by_port, by_id = {}, {}
            for each in await engine.containers.list():
                name = str(each["Names"][0]).lstrip("/")
                by_id[str(each["Id"])] = name
                for port in each["Ports"] or ():
                    if port.get("PublicPort"):
                        by_port[int(port["PublicPort"])] = name
    except TimeoutError:
        return Containers(problem=f"{socket} did not answer within {ENGINE_TIMEOUT_S:g} s")
    except _ENGINE_TROUBLE as error:
        return Containers(problem=f"{socket} cannot be asked for containers: {error}")
    return Containers(by_port, by_id)


def home(
    pid: int | None,
    port: int,
    known: Containers,
    *,
    systemctl: Sequence[str] = ("systemctl",),
    proc: Path = Path("/proc"),
) -> Home:
    """Where what listens at a port runs; ``pid`` is its process, as far as that is known."""
    if port in known.by_port:
        return Home(container=known.by_port[port])
    if pid is None:
        return Home(
            note="its process belongs to another user: run mgpu init as root to see its unit"
        )
    groups = _control_groups(pid, proc)
    for group in groups:
        ids = list(control_groups.containers(group))
        if ids:
            # In a container inside another one, it is the outer one that this engine knows.
            names = [known.by_id[each] for each in ids if each in known.by_id]
            return Home(container=names[-1]) if names else Home(note=_unnamed(ids[-1], known))
    for group in groups:
        unit, scope, uid = unit_of(group)
        if unit is None or _OTHERS.fullmatch(unit):
            continue
        if scope == "user" and uid != os.geteuid():
            return Home(note=f"runs in {unit} of user {uid}: only that user's broker can stop it")
        if _is_loaded(unit, scope, systemctl):
            return Home(unit=unit, scope=scope)
    return Home()


def unit_of(group: str) -> tuple[str | None, Literal["system", "user"], int | None]:
    """The innermost service of a control group, whose it is, and the user's number.

    None where there is none: a scope, as a login's or a terminal's, cannot be started again.
    """
    user: int | None = None
    unit: str | None = None
    for part in group.split("/"):
        manager = _USER_MANAGER.fullmatch(part)
        if manager:
            user, unit = int(manager[1]), None
        elif part.endswith(".service"):
            unit = _unescaped(part)
        elif part.endswith(".scope"):
            unit = None
    return unit, "system" if user is None else "user", user


def _unescaped(part: str) -> str:
    """A unit's name that begins like a file of the kernel's has a ``_`` before it."""
    return part.removeprefix("_")


def _control_groups(pid: int, proc: Path) -> tuple[str, ...]:
    try:
        return control_groups.paths((proc / str(pid) / "cgroup").read_text())
    except OSError:
        return ()


def _unnamed(identity: str, known: Containers) -> str:
    why = known.problem or "no engine that was found knows it"
    return f"runs in container {identity[:12]}, whose name is not known: {why}"


def _is_loaded(unit: str, scope: str, systemctl: Sequence[str]) -> bool:
    user = ("--user",) if scope == "user" else ()
    command = (*systemctl, *user, "--no-pager", "show", "--property=LoadState", "--value", unit)
    try:
        shown = subprocess.run(  # noqa: S603 - the unit's name is one argument, after a fixed verb
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SYSTEMCTL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return shown.stdout.strip() == "loaded"
