"""What happens, for those who follow it live: every fact, and word that the queue has changed.

A reader that is slower than the facts come loses them and is told to look at everything anew, so
that none takes more memory than its bound. That the queue has changed is one flag and no list:
whoever reads it then makes the picture of that moment, and older ones are nobody's loss.

Everything here is to be called from one thread, the loop's.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mgpu.core.effects import (
    Evicted,
    Fact,
    Finish,
    FootprintLearned,
    FootprintWrong,
    GpuHealthChanged,
    Grant,
    LoadMeasured,
    LockReleased,
    Measured,
    SettleTimedOut,
    StateChanged,
    SwapMeasured,
    UnloadMeasured,
)
from mgpu.errors import QueueFull

MOST_WAITING = 256
"""Facts that one reader may be behind."""
MOST_READERS = 64

_KINDS: dict[type[Fact], str] = {
    StateChanged: "state",
    Evicted: "eviction",
    LoadMeasured: "load",
    UnloadMeasured: "unload",
    SwapMeasured: "swap",
    SettleTimedOut: "settle-timeout",
    FootprintLearned: "footprint",
    Measured: "measured",
    FootprintWrong: "footprint-wrong",
    GpuHealthChanged: "gpu",
    LockReleased: "lock-released",
}


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happened: its kind, and what there is to say as JSON."""

    kind: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class News:
    """What there is for a reader: ``happenings`` in order.

    ``anew``: some were lost, or none were ever seen; look at everything. ``queue``: the queue is
    another one than at the last time. All empty: nothing happened for as long as was waited.
    """

    happenings: tuple[Happening, ...] = ()
    anew: bool = False
    queue: bool = False


class Reader:
    """One who follows; its first news is to look at everything."""

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._happenings: deque[Happening] = deque()
        self._anew = True
        self._queue = False
        self._ended = False
        self._wake = asyncio.Event()
        self._wake.set()

    async def news(self, timeout_s: float) -> News | None:
        """What happened since the last time, after ``timeout_s`` at the latest; None: the end."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return News()
        self._wake.clear()
        if self._ended:
            return None
        news = News(tuple(self._happenings), self._anew, self._queue)
        self._happenings.clear()
        self._anew = self._queue = False
        return news

    def tell(self, happening: Happening) -> None:
        """Something happened."""
        if len(self._happenings) >= self._most_waiting:
            self._happenings.clear()
            self._anew = True
        elif not self._anew:
            self._happenings.append(happening)
        self._wake.set()

    def queue_changed(self) -> None:
        """The queue is another one."""
        self._queue = True
        self._wake.set()

    def end(self) -> None:
        """Nothing will happen any more."""
        self._ended = True
        self._wake.set()


class Feed:
    """Tells every reader what happens."""

    def __init__(
        self, *, most_waiting: int = MOST_WAITING, most_readers: int = MOST_READERS
    ) -> None:
        self._most_waiting = most_waiting
        self._most_readers = most_readers
        self._readers: set[Reader] = set()
        self._revision: Hashable = None
        self._closed = False

    @property
    def readers(self) -> int:
        """How many follow."""
        return len(self._readers)

    @contextmanager
    def follow(self) -> Iterator[Reader]:
        """Follow while the body runs; raise ``QueueFull`` when too many do."""
        if len(self._readers) >= self._most_readers:
            raise QueueFull(f"{self._most_readers} clients follow the events already")
        reader = Reader(self._most_waiting)
        if self._closed:
            reader.end()
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    def observe(self, fact: Fact | Finish | Grant) -> None:
        """Pass a fact on."""
        if self._readers:
            happening = _happening(fact)
            for reader in self._readers:
                reader.tell(happening)

    def look(self, revision: Hashable) -> None:
        """Say so when the queue is another one: when ``revision`` is not what it was."""
        if revision != self._revision:
            self._revision = revision
            for reader in self._readers:
                reader.queue_changed()

    def close(self) -> None:
        """Let everybody go."""
        self._closed = True
        for reader in self._readers:
            reader.end()


def _happening(fact: Fact | Finish | Grant) -> Happening:
    match fact:
        case Grant(job, consumer, token, gpus):
            data = {"state": "running", "token": token, "gpus": list(gpus)}
            return Happening("job", {"job": job, "consumer": consumer, **data})
        case Finish(job, consumer, outcome, refusal):
            code = None if refusal is None else refusal.code
            data = {"state": outcome.value, "code": code, "run_s": round(fact.run_s, 3)}
            return Happening("job", {"job": job, "consumer": consumer, **data})
        case _:
            return Happening(_KINDS[type(fact)], dataclasses.asdict(fact))
