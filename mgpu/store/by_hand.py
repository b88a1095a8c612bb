"""What people have asked for by hand, kept over restarts in the broker's database.

A pause is kept with the time of day at which it began, as the monotonic clock starts anew with the
machine. Every change replaces all that is there: one that could not be written is made good by the
next.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Mapping
from concurrent.futures import Future
from datetime import UTC, datetime

import structlog

from mgpu.core.model import ByHand
from mgpu.ports import Clock
from mgpu.store.writer import Writer

WRITTEN_TIMEOUT_S = 5.0
"""Nobody waits longer for the disk: what was asked for holds in any case until the broker ends."""

log = structlog.get_logger(__name__)


class ByHandStore:
    """The tables of ``by_hand.sql``; a ``ports.Keeper``. ``clock`` is the core's."""

    def __init__(self, writer: Writer, clock: Clock) -> None:
        self._writer = writer
        self._clock = clock
        self._last: Future[None] | None = None

    def load(self, configured: Mapping[str, bool]) -> ByHand:
        """What holds still; ``configured`` says for every consumer whether its section pins it.

        A pin of a consumer that is not configured any more, or is configured so by now, is
        forgotten. The log says what is. Raises ``errors.StorageFull`` when the file cannot be read.
        """
        pauses = self._writer.read("SELECT paused_at FROM pause")
        rows = self._writer.read("SELECT consumer, pinned FROM pins")
        known = {name: bool(pinned) for name, pinned in rows}
        pins = {n: pinned for n, pinned in known.items() if configured.get(n, pinned) is not pinned}
        paused_at = None
        for [since] in pauses:
            paused_at = self._clock.now() - max(0.0, time.time() - since)
            log.warning("paused still: mgpu resume ends it", since=_shown(since))
        for name, pinned in pins.items():
            log.info("pinned still" if pinned else "unpinned still", consumer=name)
        for name in sorted(known.keys() - configured.keys()):
            log.info("a pin by hand is forgotten: it is not configured any more", consumer=name)
        held = ByHand(paused_at, pins)
        if pins != known:
            self.keep(held)
        return held

    def keep(self, by_hand: ByHand) -> None:
        """Have it written down in the place of what was there."""
        since = None
        if by_hand.paused_at is not None:
            since = time.time() - (self._clock.now() - by_hand.paused_at)
        pins = [(name, int(pinned)) for name, pinned in by_hand.pins.items()]

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM pause")
            connection.execute("DELETE FROM pins")
            if since is not None:
                connection.execute("INSERT INTO pause VALUES (1, ?)", (since,))
            connection.executemany("INSERT INTO pins VALUES (?, ?)", pins)

        lost = "what was asked for by hand is not kept: it holds until the broker ends"
        self._last = self._writer.put(write, lost=lost)

    async def written(self) -> None:
        """Wait until what was kept last is on the disk or given up, for a while."""
        if self._last is None:
            return
        try:
            async with asyncio.timeout(WRITTEN_TIMEOUT_S):
                # Whoever waits may be cancelled; what is to be written stays.
                await asyncio.shield(asyncio.wrap_future(self._last))
        except TimeoutError:
            log.warning("the disk hangs: what was asked for by hand is not kept yet")


def _shown(since: float) -> str:
    return datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds")
