"""A blocking reader behind a deadline: one thread of its own, asked by one request at a time.

A call into a GPU driver can hang for ever, and nothing can end it: not a signal, not a
cancellation. So it gets a thread that may be left behind. The thread is a daemon and nobody joins
it, which is what lets the process exit while it hangs; the executors of ``asyncio`` and
``concurrent.futures`` are joined at exit and would not.

The right to ask (``_turn``) is taken by the caller and given back by the answer, not by the
caller's giving up. As long as a call hangs nobody gets a turn, so no requests pile up behind it,
and when it does return its late answer is dropped and the next caller asks afresh.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from queue import SimpleQueue
from typing import Protocol

from mgpu.core.model import GpuReading
from mgpu.errors import GpuUnhealthy

Readings = tuple[GpuReading, ...]


class Reader(Protocol):
    """What blocks: used by one thread, the same for every call."""

    def read(self) -> Readings:
        """Every GPU; raises ``errors.GpuUnhealthy`` when nothing can be read."""

    def close(self) -> None:
        """Give back what was opened."""


class ThreadedProbe:
    """A ``ports.GpuProbe`` over a blocking reader; belongs to one event loop.

    ``deadline_s`` is how long a caller waits at most, its turn included.
    """

    def __init__(self, reader: Reader, *, deadline_s: float = 2.0) -> None:
        self._reader = reader
        self._deadline_s = deadline_s
        self._turn = asyncio.Lock()
        self._asked_at = 0.0
        self._requests: SimpleQueue[asyncio.Future[Readings] | None] = SimpleQueue()
        self._closed: asyncio.Future[None] | None = None
        self._thread: threading.Thread | None = None

    async def read(self) -> Readings:
        """What the reader reads, begun after this call.

        Raises ``errors.GpuUnhealthy`` at the deadline, and whatever the reader raises.
        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._turn.acquire()
                answer = self._ask(loop)
                return await answer
        except TimeoutError:
            silent_s = loop.time() - min(begun, self._asked_at)
            raise GpuUnhealthy(f"NVML has not answered for {silent_s:.1f} s") from None

    async def close(self) -> None:
        """Close the reader and end the thread; a call that hangs is waited for to its deadline.

        When it returns later, the thread closes the reader by itself.
        """
        loop = asyncio.get_running_loop()
        if self._closed is None:
            self._closed = loop.create_future()
            if self._thread is None:
                self._closed.set_result(None)
            else:
                self._requests.put(None)
        asked_at = self._asked_at if self._turn.locked() else loop.time()
        await asyncio.wait([self._closed], timeout=asked_at + self._deadline_s - loop.time())

    def _ask(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Readings]:
        """Hand a request to the thread; the caller has the turn, the answer will give it back."""
        if self._closed is not None:
            self._turn.release()
            raise GpuUnhealthy("the GPU probe is closed")
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._serve, args=(loop,), name="mgpu-gpu", daemon=True
            )
            self._thread.start()
        self._asked_at = loop.time()
        answer: asyncio.Future[Readings] = loop.create_future()
        self._requests.put(answer)
        return answer

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """The thread. Everything it says is said on the loop, unless the loop has ended."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            while (answer := self._requests.get()) is not None:
                outcome = self._outcome()
                loop.call_soon_threadsafe(self._deliver, answer, outcome)
        self._reader.close()
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._finish)

    def _outcome(self) -> Readings | Exception:
        try:
            return self._reader.read()
        except Exception as error:  # noqa: BLE001 - the thread's border: the caller gets it raised
            return error

    def _deliver(self, answer: asyncio.Future[Readings], outcome: Readings | Exception) -> None:
        self._turn.release()
        if answer.done():
            return  # its caller has given up
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    def _finish(self) -> None:
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)
