"""Which services were asked to unload last, kept over restarts in the broker's database.

It matters only where nobody can be asked what a service holds and asking twice does harm. The key
is a service's fingerprint, the value the run of it that was asked: what a later run holds is not
told by it. It need not survive the machine, as no service does.
"""

from __future__ import annotations

from collections import UserDict

from mgpu.store.writer import Writer

_LOST = "what a service was asked last is not kept"


class UnloadedStore(UserDict[str, str]):
    """The table of ``unloaded.sql``.

    A change returns at once and is written by a thread. Raises ``errors.StorageFull`` when the file
    cannot be read.
    """

    def __init__(self, writer: Writer) -> None:
        rows = writer.read("SELECT service, run FROM unloaded")
        super().__init__()
        self.data.update(rows)
        self._writer = writer

    def __setitem__(self, service: str, run: str) -> None:
        if self.data.get(service) != run:
            statement = "REPLACE INTO unloaded VALUES (?, ?)"
            self._writer.execute(statement, service, run, lost=_LOST)
        super().__setitem__(service, run)

    def __delitem__(self, service: str) -> None:
        super().__delitem__(service)
        self._writer.execute("DELETE FROM unloaded WHERE service = ?", service, lost=_LOST)
