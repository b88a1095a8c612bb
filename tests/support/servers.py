"""TCP servers that speak HTTP badly, for clients that must not care."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class BadServer:
    """Sends ``prefix`` to whoever has sent a request head, then ``drip`` again and again, for ever.

    With neither it only hangs. Its events tell when a client came and when one went.
    """

    def __init__(self, prefix: bytes = b"", drip: bytes = b"", *, hang_up: bool = False) -> None:
        self._prefix = prefix
        self._drip = drip
        self._hang_up = hang_up
        self.asked = asyncio.Event()
        self.left = asyncio.Event()
        self.requests = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                self.asked.set()
                writer.write(self._prefix)
                dripping = asyncio.create_task(self._keep_dripping(writer))
                if not self._hang_up:
                    await reader.read()
                dripping.cancel()
        finally:
            self.left.set()
            writer.close()

    async def _keep_dripping(self, writer: asyncio.StreamWriter) -> None:
        while self._drip:
            writer.write(self._drip)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(server: BadServer) -> AsyncIterator[BadServer]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    server.url = f"http://127.0.0.1:{port}"
    async with listening:
        yield server


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
