"""What listens for TCP connections on this machine's own addresses.

Of processes of other users only the port is known, not the process, unless root asks: that is the
kernel's rule for ``/proc/PID/fd``, through which ``psutil`` finds a socket's process.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

import psutil

_LOOPBACKS = ("127.0.0.1", "::1")
_ANYWHERE = {"0.0.0.0": ("127.0.0.1",), "::": _LOOPBACKS}  # noqa: S104 - known, not bound
"""Where what listens everywhere is to be asked; ``::`` may take IPv4 as well, and may not."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A port. ``hosts`` are the loopback addresses to ask at, the likeliest first."""

    port: int
    hosts: tuple[str, ...]
    exposed: bool
    """Other machines may reach it, too."""
    pid: int | None = None
    """None: the process is another user's."""
    process: str = ""
    """The process's name."""
    ancestors: tuple[int, ...] = ()
    is_broker: bool = False
    """The process is a broker: what answers there is somebody behind it."""


def listeners() -> tuple[Listener, ...]:
    """Every port that can be asked on loopback, by number.

    Raises ``psutil.AccessDenied`` where the system tells nobody but root.
    """
    connections = psutil.net_connections(kind="tcp")
    ports: dict[int, list[tuple[str, int | None]]] = {}
    for each in connections:
        if each.status == psutil.CONN_LISTEN and each.laddr:
            ports.setdefault(each.laddr.port, []).append((each.laddr.ip, each.pid))
    found = []
    for port, bound in sorted(ports.items()):
        hosts = _hosts(ip for ip, _ in bound)
        if hosts:
            pid = next((pid for _, pid in bound if pid), None)
            found.append(
                _described(port, hosts, exposed=any(_is_exposed(b[0]) for b in bound), pid=pid)
            )
    return tuple(found)


def family(pid: int | None) -> frozenset[int]:
    """A process and all its descendants; empty when it is not known or has ended."""
    with contextlib.suppress(psutil.Error):
        if pid is not None:
            children = psutil.Process(pid).children(recursive=True)
            return frozenset({pid, *(child.pid for child in children)})
    return frozenset()


def _hosts(ips: Iterable[str]) -> tuple[str, ...]:
    """Loopback addresses only: an address of the network might be somebody else's tomorrow."""
    wanted = {
        host
        for ip in ips
        for host in _ANYWHERE.get(ip, (ip,))
        if ipaddress.ip_address(host.partition("%")[0]).is_loopback
    }
    return tuple(sorted(wanted, key=lambda host: (host != _LOOPBACKS[0], ":" in host, host)))


def _is_exposed(ip: str) -> bool:
    return not ipaddress.ip_address(ip.partition("%")[0]).is_loopback


def _described(port: int, hosts: tuple[str, ...], *, exposed: bool, pid: int | None) -> Listener:
    name, is_broker = "", False
    ancestors: tuple[int, ...] = ()
    with contextlib.suppress(psutil.Error):  # it ended just now, or is hidden
        if pid is not None:
            process = psutil.Process(pid)
            name = process.name()
            is_broker = _runs_a_broker(process.cmdline())
            ancestors = tuple(parent.pid for parent in process.parents())
    return Listener(port, hosts, exposed, pid, name, ancestors, is_broker)


def _runs_a_broker(command: list[str]) -> bool:
    """``…/mgpu serve``, or ``python -m mgpu serve``."""
    return any(
        PurePath(program).name == "mgpu" and verb == "serve"
        for program, verb in itertools.pairwise(command)
    )
