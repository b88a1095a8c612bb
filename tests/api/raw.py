"""A client that sends any bytes and reads what comes, for what no HTTP library would do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from dataclasses import dataclass
from typing import Any, Self

DEADLINE_S = 5.0


@dataclass
class Head:
    status: int
    reason: str
    headers: list[tuple[str, str]]

    def get(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        return found[0] if found else None


class RawClient:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 22))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> Head:
        async with asyncio.timeout(DEADLINE_S):
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = text.rstrip("\r\n").split("\r\n")
        _, status, reason = line.split(" ", 2)
        headers = [(name, value) for name, _, value in (each.partition(": ") for each in fields)]
        return Head(int(status), reason, headers)

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.readexactly(size)

    async def rest(self) -> bytes:
        """Everything up to the end of the connection; raises when it is reset."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.reader.read()

    async def chunk(self) -> bytes:
        """One chunk of a chunked body; empty at the end."""
        async with asyncio.timeout(DEADLINE_S):
            size = int((await self.reader.readline()).strip(), 16)
            data = await self.reader.readexactly(size + 2)
        return data[:-2]

    async def problem(self) -> tuple[int, dict[str, Any]]:
        """The status and the document of a problem."""
        head = await self.head()
        assert head.get("Content-Type") == "application/problem+json; charset=utf-8" or (
            head.get("Content-Type") == "application/problem+json"
        )
        return head.status, json.loads(await self.read(int(head.get("Content-Length") or 0)))

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def leave(self) -> None:
        """Close the connection, as a program that ends does."""
        self.writer.transport.abort()

    def reset(self) -> None:
        """Close the connection with a RST."""
        connection: socket.socket = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def half_close(self) -> None:
        """End the sending half."""
        self.writer.write_eof()
