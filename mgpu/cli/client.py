"""Requests to a running broker, one at a time; every one of them has a deadline.

They are made with the standard library: to import an HTTP client that can do more takes as long as
everything else that a command does.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPResponse,
    HTTPSConnection,
    RemoteDisconnected,
)
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import typer

from mgpu.cli.failures import BrokerSaidNo, CannotReach, TookTooLong
from mgpu.config import api_key
from mgpu.errors import MgpuError

CONNECT_TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 16 * 1024 * 1024
_PIECE_BYTES = 64 * 1024
_QUOTED_BYTES = 300
_THE_RESULT = {"X-MGPU-Answer": "result"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Client:
    """A broker's address: ``url`` for requests, ``socket`` when they go through a Unix socket."""

    url: str
    socket: str | None
    headers: dict[str, str]

    @classmethod
    def at(cls, address: str) -> Client:
        """Take ``http://HOST:PORT`` or ``unix:/PATH``, and the key in ``MGPU_API_KEY``.

        Raises ``typer.BadParameter`` for what is neither.
        """
        if address.startswith("unix:"):
            path = "/" + address.removeprefix("unix:").lstrip("/")
            return cls("http://localhost", path, _authorization())
        try:
            url = urlsplit(address)
            sound = url.scheme in {"http", "https"} and url.hostname and not url.username
            _ = url.port  # which raises where it is no number
        except ValueError:
            sound = False
        if not sound:
            raise typer.BadParameter("the broker's address must be http://HOST:PORT or unix:/PATH")
        return cls(url._replace(query="", fragment="").geturl(), None, _authorization())

    def get(self, path: str, *, timeout_s: float) -> Any:
        """Return the JSON answer; raise ``BrokerSaidNo`` or ``CannotReach``."""
        return self._exchange("GET", path, timeout_s).run(self._judge)

    def post(
        self, path: str, document: Mapping[str, Any] | None = None, *, timeout_s: float
    ) -> Any:
        """Send JSON, if any; return the JSON answer, None for an empty one; raise as ``get``."""
        body = None if document is None else json.dumps(document).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        return self._exchange("POST", path, timeout_s, body, headers).run(self._judge)

    def delete(self, path: str, *, timeout_s: float) -> Any:
        """Return the JSON answer; raise as ``get`` does."""
        return self._exchange("DELETE", path, timeout_s).run(self._judge)

    async def ask(self, method: str, path: str, *, timeout_s: float) -> Any:
        """Do what ``get`` and ``post`` do, beside other tasks; broken off when it is cancelled."""
        return await _in_thread(self._exchange(method, path, timeout_s), self._judge)

    async def send(
        self, method: str, path: str, body: bytes, content_type: str, *, timeout_s: float
    ) -> None:
        """Send a job and take its answer, however long, without keeping it; raise as ``get`` does.

        Where the work goes on after the consumer's own answer, this is what comes of the work. An
        error of the consumer's is ``BrokerSaidNo`` as well. Being cancelled ends the job.
        """
        headers = _THE_RESULT | ({"Content-Type": content_type} if body else {})
        exchange = self._exchange(method, path, timeout_s, body or None, headers)
        await _in_thread(exchange, self._take)

    def _exchange(
        self,
        method: str,
        path: str,
        timeout_s: float,
        body: bytes | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> _Exchange:
        target = urlsplit(self.url).path.rstrip("/") + path
        request = _Request(method, target, body, {**self.headers, **headers})
        return _Exchange(self, request, timeout_s)

    def _judge(self, response: HTTPResponse) -> Any:
        return self._judged(response, _bounded(response))

    def _take(self, response: HTTPResponse) -> None:
        if response.status < HTTPStatus.BAD_REQUEST:
            while response.read1(_PIECE_BYTES):
                pass
            return
        answer = _bounded(response)
        if response.headers.get_content_type() == "application/problem+json":
            self._judged(response, answer)
        said = " ".join(answer[:_QUOTED_BYTES].decode(errors="replace").split())
        raise BrokerSaidNo(f"the job failed with HTTP {response.status}: {said}")

    def _judged(self, response: HTTPResponse, body: bytes) -> Any:
        try:
            answer = json.loads(body) if body else None
        except ValueError as error:
            raise self._stranger(response.status) from error
        if response.status < HTTPStatus.MULTIPLE_CHOICES:
            return answer
        content_type = response.headers.get_content_type()
        if content_type != "application/problem+json" or not isinstance(answer, dict):
            raise self._stranger(response.status)
        title, detail = answer.get("title"), answer.get("detail")
        said = ": ".join(str(part) for part in (title, detail) if part)
        if response.status == HTTPStatus.UNAUTHORIZED:
            said += " MGPU_API_KEY holds another." if self.headers else " Put it into MGPU_API_KEY."
        raise BrokerSaidNo(said)

    def _stranger(self, status: int) -> CannotReach:
        return CannotReach(f"what answers at {self} (HTTP {status}) is no mgpu broker")

    def __str__(self) -> str:
        return f"unix:{self.socket}" if self.socket else self.url


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    target: str
    body: bytes | None
    headers: Mapping[str, str]


class _Exchange:
    """One request and its answer, which a deadline or another thread can break off."""

    def __init__(self, client: Client, request: _Request, timeout_s: float) -> None:
        self._client = client
        self._request = request
        self._timeout_s = timeout_s
        self._broken_off = threading.Event()
        self._connection = _connection(client, min(timeout_s, CONNECT_TIMEOUT_S))
        self._socket: socket.socket | None = None
        """The connection's, which forgets it when an answer ends with it."""

    def run(self, read: Callable[[HTTPResponse], T]) -> T:
        """Return what ``read`` makes of the response; raise ``CannotReach`` and what it raises."""
        deadline = threading.Timer(self._timeout_s, self.break_off)
        deadline.daemon = True
        deadline.start()
        request = self._request
        try:
            self._connect()
            self._connection.request(
                request.method, request.target, request.body, dict(request.headers)
            )
            # Its file keeps the socket open, however the connection is closed.
            with self._connection.getresponse() as response:
                answer = read(response)
        except (OSError, HTTPException, MgpuError) as error:
            if self._broken_off.is_set() or isinstance(error, TimeoutError):
                raise self._late() from error
            if isinstance(error, MgpuError):
                raise
            raise CannotReach(
                f"cannot reach the broker at {self._client}: {_reason(error)}; "
                "start it with mgpu serve, or give its address with --url"
            ) from error
        finally:
            deadline.cancel()
            self._connection.close()
        if self._broken_off.is_set():
            raise self._late()  # an answer that was cut off may look like a whole one
        return answer

    def break_off(self) -> None:
        """Let ``run`` end soon, wherever it is."""
        self._broken_off.set()
        self._shut_down()

    def _connect(self) -> None:
        self._connection.connect()
        self._socket = self._connection.sock
        self._socket.settimeout(None)
        if self._broken_off.is_set():
            self._shut_down()

    def _shut_down(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # it is closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def _late(self) -> TookTooLong:
        return TookTooLong(f"{self._client} did not answer in time")


class _UnixConnection(HTTPConnection):
    """HTTP through a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _connection(client: Client, timeout_s: float) -> HTTPConnection:
    if client.socket is not None:
        return _UnixConnection(client.socket, timeout_s)
    url = urlsplit(client.url)
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    return kind(url.hostname or "", url.port, timeout=timeout_s)


async def _in_thread(exchange: _Exchange, read: Callable[[HTTPResponse], T]) -> T:
    try:
        return await asyncio.to_thread(exchange.run, read)
    finally:
        exchange.break_off()


def action(name: str, verb: str) -> str:
    """Return the path that does ``verb`` to the consumer ``name``."""
    return f"/api/consumers/{quote(name, safe='')}/{verb}"


def _authorization() -> dict[str, str]:
    key = os.environ.get("MGPU_API_KEY", "").strip()
    if not key:
        return {}
    if not api_key.can_be_sent(key):
        raise typer.BadParameter(f"MGPU_API_KEY: {api_key.WHAT_A_KEY_IS}")
    return {"Authorization": f"Bearer {key}"}


def _bounded(response: HTTPResponse) -> bytes:
    body = response.read(MAX_ANSWER_BYTES + 1)
    if len(body) > MAX_ANSWER_BYTES:
        raise HTTPException(f"the answer is over {MAX_ANSWER_BYTES} bytes")
    return body


def _reason(error: OSError | HTTPException) -> str:
    if isinstance(error, RemoteDisconnected):
        return "Server disconnected"
    if isinstance(error, OSError) and error.errno:
        resolver = error.errno < 0  # getaddrinfo numbers its errors below zero
        return str(error.strerror) if resolver else os.strerror(error.errno)
    return str(error) or type(error).__name__
