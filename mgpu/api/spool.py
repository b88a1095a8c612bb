"""A queue of bytes between a client that sends and a consumer that may not take anything yet.

It holds a little in memory and the rest in a file without a name. That is what lets the broker go
on reading from a client whose job waits: a client that has left is only seen by reading up to the
end of what it sent, and while nobody reads, its end of the connection is out of sight. Nothing
goes to disk while the other side takes what comes. When the disk has no room the client waits.

One task puts, one gets.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import deque
from collections.abc import Callable
from typing import IO, Any, TypeVar

from mgpu.errors import StorageFull

_PATIENCE_S = 0.1
"""A consumer that takes nothing for this long is one that does not take anything yet."""
_READ_BYTES = 1 << 18

_T = TypeVar("_T")


class DiskBudget:
    """The disk that all spools may use together, in bytes."""

    def __init__(self, limit_bytes: int) -> None:
        self.free_bytes = limit_bytes

    def take(self, size_bytes: int) -> bool:
        """Reserve, if there is room."""
        if size_bytes > self.free_bytes:
            return False
        self.free_bytes -= size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        """Undo ``take``."""
        self.free_bytes += size_bytes


class Spool:
    """A first-in-first-out queue of bytes, bounded in memory and by ``budget`` on disk."""

    def __init__(self, memory_bytes: int, budget: DiskBudget) -> None:
        self._memory_bytes = memory_bytes
        self._budget = budget
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._file: IO[bytes] | None = None
        self._read_at = self._write_at = 0
        self._taken_bytes = 0
        self._ended = False
        self._closed = False
        self._in_thread: set[asyncio.Future[Any]] = set()
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()

    @property
    def on_disk_bytes(self) -> int:
        """What lies in the file, waiting."""
        return self._write_at - self._read_at

    async def put(self, chunk: bytes, *, taken: bool = True) -> None:
        """Add at the end; returns when there was room for it.

        ``taken`` False: nobody will take anything before more has been put. Then it is no use to
        wait for room, and ``errors.StorageFull`` is raised where the disk has none.
        """
        if not self._has_room() and not (taken and await self._room_soon()):
            if await self._overflow(chunk):
                self._filled.set()
                return
            if not taken:
                raise StorageFull("There is no room to keep the request's body until it is read.")
        while not self._has_room():
            await self._emptied_again()
        self._held.append(chunk)
        self._held_bytes += len(chunk)
        self._filled.set()

    def end(self) -> None:
        """Nothing will be put any more."""
        self._ended = True
        self._filled.set()

    async def get(self) -> bytes:
        """Take from the front; empty at the end."""
        while True:
            if self._held:
                chunk = self._held.popleft()
                self._held_bytes -= len(chunk)
            elif self.on_disk_bytes:
                chunk = await self._read()
            elif self._ended:
                return b""
            else:
                self._filled.clear()
                await self._filled.wait()
                continue
            self._emptied.set()
            return chunk

    def close(self) -> None:
        """Give the disk back, as soon as no thread works on the file."""
        self._closed = True
        self._budget.give_back(self._taken_bytes)
        self._taken_bytes = 0
        self._close_file()

    def _has_room(self) -> bool:
        # What lies in the file came earlier than what comes now.
        return self._held_bytes < self._memory_bytes and not self.on_disk_bytes

    async def _emptied_again(self) -> None:
        self._emptied.clear()
        await self._emptied.wait()

    async def _room_soon(self) -> bool:
        if self.on_disk_bytes:
            return False
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not self._has_room():
                    await self._emptied_again()
        except TimeoutError:
            return False
        return True

    async def _overflow(self, chunk: bytes) -> bool:
        if not self._budget.take(len(chunk)):
            return False
        self._taken_bytes += len(chunk)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="mgpu-body-")  # noqa: SIM115
            await self._threaded(_write_all, self._file.fileno(), chunk, self._write_at)
        except OSError:
            # A full disk is no reason to fail: the client waits, as it would without a file.
            self._budget.give_back(len(chunk))
            self._taken_bytes -= len(chunk)
            return False
        self._write_at += len(chunk)
        return True

    async def _read(self) -> bytes:
        assert self._file is not None  # noqa: S101  it holds what is to be read
        size = min(_READ_BYTES, self.on_disk_bytes)
        chunk = await self._threaded(os.pread, self._file.fileno(), size, self._read_at)
        self._read_at += len(chunk)
        return chunk

    async def _threaded(self, work: Callable[..., _T], *arguments: object) -> _T:
        running = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
        self._in_thread.add(running)
        running.add_done_callback(self._thread_done)
        # A thread cannot be cancelled, and the descriptor must stay its file's until it is done.
        return await asyncio.shield(running)

    def _thread_done(self, running: asyncio.Future[Any]) -> None:
        self._in_thread.discard(running)
        if not running.cancelled():
            running.exception()  # told already, unless nobody waits any more
        if self._closed:
            self._close_file()

    def _close_file(self) -> None:
        if self._file is not None and not self._in_thread:
            self._file.close()
            self._file = None


def _write_all(descriptor: int, chunk: bytes, offset: int) -> None:
    rest = memoryview(chunk)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        offset += written
        rest = rest[written:]
