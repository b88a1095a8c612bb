"""Serving the application: sockets, deadlines of connections, and an end.

A stalled request head is dropped by aiohttp's keep-alive timer: it starts when a connection opens
and again after every answer, nothing that arrives extends it, and when it ends a connection on
which no whole head has come is closed. So ``head_s`` bounds an idle connection too.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
from aiohttp import http_parser, web

from mgpu.api.connection import Connection
from mgpu.config import listen as addresses
from mgpu.errors import ConfigError

BACKLOG = 2048
MAX_HEADER_BYTES = 8190
MAX_HEADERS = 128
READ_BUFSIZE_BYTES = 1 << 18
_SOCKET_MODE = 0o660
_REMEDIES = {
    errno.EADDRINUSE: "another program listens there, or a broker that runs already",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "ports below 1024 are for root, or for a socket of systemd's",
}

_Make = Callable[[], asyncio.Protocol]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Of a connection, in seconds."""

    head_s: float = 25.0
    """From its start, or from the last answer, to a whole request head; 30 s are promised."""
    linger_s: float = 4.0
    """To read off the rest of a request that has been answered already."""
    close_s: float = 2.0
    """For handlers to come to an end when the server closes, before they are cancelled."""


class HttpServer:
    """A server that accepts requests until it is closed."""

    def __init__(self, runner: web.AppRunner) -> None:
        self._runner = runner
        self._listeners: list[asyncio.Server] = []
        self._socket_file: Path | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it listens: ``HOST:PORT`` or ``unix:/PATH``."""
        sockets = (each for listener in self._listeners for each in listener.sockets)
        return tuple(map(_address_of, sockets))

    async def close(self) -> None:
        """Stop listening, wait ``Deadlines.close_s`` for running handlers, cancel the rest."""
        for listener in self._listeners:
            listener.close()
        await self._runner.cleanup()
        if self._socket_file is not None:
            self._socket_file.unlink(missing_ok=True)

    async def _listen(self, listen: str, sockets: Sequence[socket.socket], make: _Make) -> None:
        loop = asyncio.get_running_loop()
        if sockets:
            for each in sockets:
                self._listeners.append(await loop.create_server(make, sock=each, backlog=BACKLOG))
            return
        match addresses.parse(listen):
            case addresses.TcpAddress(host, port):
                self._listeners.append(await loop.create_server(make, host, port, backlog=BACKLOG))
            case addresses.UnixAddress(path):
                _refuse_to_displace(path)
                self._listeners.append(
                    await loop.create_unix_server(make, str(path), backlog=BACKLOG)
                )
                path.chmod(_SOCKET_MODE)
                self._socket_file = path


async def start_server(
    app: web.Application,
    listen: str,
    sockets: Sequence[socket.socket] = (),
    *,
    deadlines: Deadlines | None = None,
    key: str = "server.listen",
) -> HttpServer:
    """Serve ``app`` on ``sockets`` (handed over by systemd), or else on ``listen``.

    ``listen`` is the value of ``key`` in the configuration. Raises ``errors.ConfigError`` when it
    cannot be listened on.
    """
    if not uses_c_parser():
        log.warning("aiohttp runs without its C parser, which is the stricter and faster one")
    deadlines = deadlines or Deadlines()
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=deadlines.close_s)
    await runner.setup()
    assert runner.server is not None  # noqa: S101  it is set up
    make = partial(
        Connection,
        runner.server,
        loop=asyncio.get_running_loop(),
        access_log=None,  # type: ignore[arg-type]  # None is how to have none
        keepalive_timeout=deadlines.head_s,
        lingering_time=deadlines.linger_s,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        max_headers=MAX_HEADERS,
        read_bufsize=READ_BUFSIZE_BYTES,
        auto_decompress=False,
    )
    server = HttpServer(runner)
    try:
        await server._listen(listen, sockets, make)  # noqa: SLF001  one module
    except (OSError, ValueError) as error:
        await server.close()
        raise ConfigError(f"{key}: cannot listen on {listen}: {_why(error)}") from error
    return server


def _why(error: OSError | ValueError) -> str:
    """What is wrong, in words: the event loop's own repeat the address, and the number."""
    if not isinstance(error, OSError) or error.errno not in _REMEDIES:
        return str(error)
    return f"{os.strerror(error.errno)}: {_REMEDIES[error.errno]}"


def uses_c_parser() -> bool:
    """Whether aiohttp's compiled HTTP parser is in use; its Python one takes more for HTTP."""
    return http_parser.HttpRequestParser is not http_parser.HttpRequestParserPy


def _refuse_to_displace(path: Path) -> None:
    """Raise ``OSError`` when another program listens there; what a dead one left is no matter."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
    raise OSError(errno.EADDRINUSE, "another program listens there")


def _address_of(listening: socket.socket) -> str:
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    return str(addresses.TcpAddress(host, port))
