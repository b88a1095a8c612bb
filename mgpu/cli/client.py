"""Requests to a running broker, one at a time; every one of them has a deadline."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

import aiohttp
import typer
from yarl import URL

from mgpu.cli.failures import BrokerSaidNo, CannotReach
from mgpu.config import api_key

CONNECT_TIMEOUT_S = 5.0
MAX_ANSWER_BYTES = 16 * 1024 * 1024
_QUOTED_BYTES = 300


@dataclass(frozen=True, slots=True)
class Client:
    """A broker's address: ``url`` for requests, ``socket`` when they go through a Unix socket."""

    url: URL
    socket: str | None
    headers: dict[str, str]

    @classmethod
    def at(cls, address: str) -> Client:
        """Take ``http://HOST:PORT`` or ``unix:/PATH``, and the key in ``MGPU_API_KEY``.

        Raises ``typer.BadParameter`` for what is neither.
        """
        if address.startswith("unix:"):
            socket = "/" + address.removeprefix("unix:").lstrip("/")
            return cls(URL("http://localhost"), socket, _authorization())
        try:
            url = URL(address)
            sound = url.scheme in {"http", "https"} and url.host and not url.user
        except ValueError:
            sound = False
        if not sound:
            raise typer.BadParameter("the broker's address must be http://HOST:PORT or unix:/PATH")
        return cls(url.with_query(None).with_fragment(None), None, _authorization())

    def get(self, path: str, *, timeout_s: float) -> Any:
        """Return the JSON answer; raise ``BrokerSaidNo`` or ``CannotReach``."""
        return asyncio.run(self.ask("GET", path, timeout_s=timeout_s))

    def post(self, path: str, *, timeout_s: float) -> Any:
        """Return the JSON answer, None for an empty one; raise as ``get`` does."""
        return asyncio.run(self.ask("POST", path, timeout_s=timeout_s))

    def delete(self, path: str, *, timeout_s: float) -> Any:
        """Return the JSON answer; raise as ``get`` does."""
        return asyncio.run(self.ask("DELETE", path, timeout_s=timeout_s))

    async def ask(self, method: str, path: str, *, timeout_s: float) -> Any:
        """Do what ``get`` and ``post`` do, in an event loop."""
        async with self._exchange(method, path, timeout_s) as response:
            body = await _bounded(response)
            return self._judged(response.status, response.content_type, body)

    async def send(
        self, method: str, path: str, body: bytes, content_type: str, *, timeout_s: float
    ) -> None:
        """Send a job and take its answer, however long, without keeping it; raise as ``get`` does.

        An error of the consumer's own is ``BrokerSaidNo`` as well.
        """
        headers = {"Content-Type": content_type} if body else {}
        async with self._exchange(method, path, timeout_s, body or None, headers) as response:
            if response.status < HTTPStatus.BAD_REQUEST:
                async for _ in response.content.iter_any():
                    pass
                return
            answer = await _bounded(response)
            if response.content_type == "application/problem+json":
                self._judged(response.status, response.content_type, answer)
            said = " ".join(answer[:_QUOTED_BYTES].decode(errors="replace").split())
            raise BrokerSaidNo(f"the job failed with HTTP {response.status}: {said}")

    @asynccontextmanager
    async def _exchange(
        self,
        method: str,
        path: str,
        timeout_s: float,
        body: bytes | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        connector = aiohttp.UnixConnector(self.socket) if self.socket else aiohttp.TCPConnector()
        target = URL(str(self.url).rstrip("/") + path, encoded=True)
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector, timeout=timeout, trust_env=False
                ) as session,
                session.request(
                    method,
                    target,
                    data=body,
                    headers={**self.headers, **headers},
                    allow_redirects=False,
                ) as response,
            ):
                yield response
        except TimeoutError as error:
            raise CannotReach(f"{self} did not answer in time") from error
        except aiohttp.ClientError as error:
            raise CannotReach(
                f"cannot reach the broker at {self}: {_reason(error)}; "
                "start it with mgpu serve, or give its address with --url"
            ) from error

    def _judged(self, status: int, content_type: str, body: bytes) -> Any:
        try:
            answer = json.loads(body) if body else None
        except ValueError as error:
            raise self._stranger(status) from error
        if status < HTTPStatus.MULTIPLE_CHOICES:
            return answer
        if content_type != "application/problem+json" or not isinstance(answer, dict):
            raise self._stranger(status)
        title, detail = answer.get("title"), answer.get("detail")
        raise BrokerSaidNo(": ".join(str(part) for part in (title, detail) if part))

    def _stranger(self, status: int) -> CannotReach:
        return CannotReach(f"what answers at {self} (HTTP {status}) is no mgpu broker")

    def __str__(self) -> str:
        return f"unix:{self.socket}" if self.socket else str(self.url)


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


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise aiohttp.ClientPayloadError(f"the answer is over {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _reason(error: aiohttp.ClientError) -> str:
    if isinstance(error, aiohttp.ClientOSError) and error.errno:
        resolver = error.errno < 0  # getaddrinfo numbers its errors below zero
        return str(error.strerror) if resolver else os.strerror(error.errno)
    return str(error) or type(error).__name__
