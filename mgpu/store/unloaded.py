"""Which services were asked to unload last, kept over restarts in the broker's database.

It matters only where nobody can be asked what a service holds and asking twice does harm. The key
is a service's fingerprint, the value the run of it that was asked: what a later run holds is not
told by it. It need not survive the machine, as no service does.
"""

from __future__ import annotations

import sqlite3
from collections import UserDict
from contextlib import closing

from mgpu.errors import StorageFull
from mgpu.store.writer import Writer

_LOST = "what a service was asked last is not kept"


class UnloadedStore(UserDict[str, str]):
    """The table of ``unloaded.sql``.

    A change returns at once and is written by a thread. Raises ``errors.StorageFull`` when the file
    cannot be read.
    """

    def __init__(self, writer: Writer) -> None:
        try:
            with closing(writer.connect()) as connection:
                rows = connection.execute("SELECT service, run FROM unloaded").fetchall()
        except sqlite3.Error as error:
            raise StorageFull(f"{writer.path}: cannot be read: {error}") from error
        super().__init__()
        self.data.update(rows)
        self._writer = writer

    def __setitem__(self, service: str, run: str) -> None:
        if self.data.get(service) != run:
            self._write("REPLACE INTO unloaded VALUES (?, ?)", service, run)
        super().__setitem__(service, run)

    def __delitem__(self, service: str) -> None:
        super().__delitem__(service)
        self._write("DELETE FROM unloaded WHERE service = ?", service)

    def _write(self, statement: str, *values: str) -> None:
        def write(connection: sqlite3.Connection) -> None:
            connection.execute(statement, values)

        self._writer.put(write, lost=_LOST)
