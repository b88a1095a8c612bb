"""The protocol between systemd and a service it runs: readiness, watchdog, inherited sockets.

Everything is in environment variables that systemd sets for the process it started, and in
datagrams that the process sends back; the sources are the manual pages sd_notify(3),
sd_watchdog_enabled(3) and sd_listen_fds(3). Started by anything else, all of it does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

from mgpu.errors import ConfigError

READY = "READY=1"
RELOADING = "RELOADING=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"

_FIRST_FD = 3
_SEND_TIMEOUT_S = 0.5
"""The service manager reads its socket in microseconds; past this it is stuck, and we would be."""


def status(text: str) -> str:
    """The line that ``systemctl status`` shows, as an argument of ``notify``."""
    return "STATUS=" + " ".join(text.split())


def reloading() -> tuple[str, str]:
    """What to send before a reload, as arguments of ``notify``; ``READY`` is sent after it."""
    return RELOADING, f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"


def notify(*assignments: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send ``READY``, ``STOPPING``, ``WATCHDOG``, a ``status`` or ``reloading`` to systemd.

    True when it was delivered; False when nobody asked for it or nobody took it. Raises
    ``ConfigError`` when $NOTIFY_SOCKET is neither a path nor the name of an abstract socket.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address[0] not in "/@" or len(address) == 1:
        raise ConfigError(f"NOTIFY_SOCKET is {address!r}: must start with / or @")
    name = "\0" + address[1:] if address[0] == "@" else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.settimeout(_SEND_TIMEOUT_S)
        try:
            sender.sendto("\n".join(assignments).encode(), name)
        except OSError:
            return False
    return True


def watchdog_interval_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds within which systemd wants the next ``WATCHDOG``; None when it does not watch.

    Ping at half of it, as sd_watchdog_enabled(3) advises. Raises ``ConfigError`` for a value that
    is no number of microseconds.
    """
    if "WATCHDOG_USEC" not in environ or not _meant_for_us("WATCHDOG_PID", environ, default=True):
        return None
    interval_us = _number("WATCHDOG_USEC", environ)
    if interval_us == 0:
        raise ConfigError("WATCHDOG_USEC is '0': must be a positive number")
    return interval_us / 1e6


def listen_sockets(environ: Mapping[str, str] = os.environ) -> tuple[socket.socket, ...]:
    """The listening sockets that systemd opened for this process, in the unit's order.

    They are the caller's to close, and are not inherited by child processes. Call it once. Raises
    ``ConfigError`` when one of them is not a listening stream socket.
    """
    if "LISTEN_FDS" not in environ or not _meant_for_us("LISTEN_PID", environ, default=False):
        return ()
    count = _number("LISTEN_FDS", environ)
    return tuple(_listening(fd) for fd in range(_FIRST_FD, _FIRST_FD + count))


def _listening(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)  # noqa: FBT003  takes no keyword
        handed = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(f"LISTEN_FDS: file descriptor {fd}: {error.strerror}") from error
    if not handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        handed.detach()
        raise ConfigError(f"LISTEN_FDS: file descriptor {fd} is not a listening stream socket")
    return handed


def _meant_for_us(name: str, environ: Mapping[str, str], *, default: bool) -> bool:
    """Whether the variable that names the process this is all for names this one.

    A child process that inherited the environment must not answer in its parent's place.
    """
    return _number(name, environ) == os.getpid() if name in environ else default


def _number(name: str, environ: Mapping[str, str]) -> int:
    value = environ[name]
    if not (value.isascii() and value.isdigit()):
        raise ConfigError(f"{name} is {value!r}: must be a number")
    return int(value)
