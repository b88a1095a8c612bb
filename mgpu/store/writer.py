"""The thread that writes to the broker's database, so that nobody else ever waits for the disk.

One thing is written after the other, each in a transaction of its own. What cannot be written is
given up with a warning: the broker goes on without it.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from mgpu.errors import StorageFull

MOST_WAITING = 1000
CLOSE_TIMEOUT_S = 5.0
_BUSY_TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)

Write = Callable[[sqlite3.Connection], object]


@dataclass(frozen=True, slots=True)
class _Work:
    write: Write
    lost: str
    details: dict[str, str]
    over: Future[None] = field(default_factory=Future)

    def give_up(self, error: str) -> None:
        log.warning(self.lost, error=error, **self.details)


class Writer:
    """Writes to the file ``path``, which ``SqliteFenceStore`` has brought up to date."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._work: queue.Queue[_Work | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="write the database", daemon=True)
        self._thread.start()

    def read(self, query: str) -> list[Any]:
        """The rows of a query, in the calling thread.

        Raises ``errors.StorageFull`` when the file cannot be read.
        """
        try:
            with closing(self._connect()) as connection:
                return connection.execute(query).fetchall()
        except sqlite3.Error as error:
            raise StorageFull(f"{self.path}: cannot be read: {error}") from error

    def execute(self, statement: str, *values: object, lost: str, **details: str) -> None:
        """Have one statement carried out, as ``put`` does it."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(statement, values)

        self.put(write, lost=lost, **details)

    def put(self, write: Write, *, lost: str, **details: str) -> Future[None]:
        """Have something written, and return at once.

        What is returned is done when it is on the disk or given up: then the log says ``lost``,
        with ``details``.
        """
        work = _Work(write, lost, details)
        try:
            self._work.put_nowait(work)
        except queue.Full:
            work.give_up("the disk hangs")
            work.over.set_result(None)
        return work.over

    def close(self) -> None:
        """Write what waits; a disk that hangs is left alone after a while."""
        with suppress(queue.Full):
            self._work.put(None, timeout=CLOSE_TIMEOUT_S)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=_BUSY_TIMEOUT_S)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                # As a context a connection commits, or rolls back; it does not close.
                with closing(self._connect()) as connection, connection:
                    work.write(connection)
            except sqlite3.Error as error:
                work.give_up(str(error))
            work.over.set_result(None)
