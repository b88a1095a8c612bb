"""What was learned of consumers, kept over restarts in the broker's database.

Only learned footprints need it: what is written in the configuration is known anyway. A row counts
for as long as the consumer is the same, by the fingerprint of what makes it so; another one takes
its place. Writing is left to one thread, and what it cannot write is given up with a warning: a
footprint that is not kept is measured again.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path

import structlog

from mgpu.errors import StorageFull
from mgpu.ports import Measurement

MOST_WAITING = 1000
CLOSE_TIMEOUT_S = 5.0
_BUSY_TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)

_Row = tuple[str, str, str, int, int, float]


class MeasurementStore:
    """The table in the file ``path``, which ``SqliteFenceStore`` has brought up to date.

    ``fingerprints`` has one for every consumer that may be asked for or kept; see ``configure``.
    """

    def __init__(self, path: Path, fingerprints: Mapping[str, str]) -> None:
        self._path = path
        self._fingerprints = fingerprints
        self._rows: queue.Queue[_Row | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="keep measurements", daemon=True)
        self._thread.start()

    def configure(self, fingerprints: Mapping[str, str]) -> None:
        """Know these consumers from now on; what is measured of others is not kept."""
        self._fingerprints = fingerprints

    def load(self) -> dict[str, Measurement]:
        """What is known of the consumers as they are now: of several GPUs the larger figures.

        Raises ``errors.StorageFull`` when the file cannot be read.
        """
        try:
            with closing(self._connect()) as connection:
                rows = connection.execute(
                    "SELECT consumer, fingerprint, max(footprint_mib), max(residual_mib) "
                    "FROM measurements GROUP BY consumer, fingerprint"
                ).fetchall()
        except sqlite3.Error as error:
            raise StorageFull(f"{self._path}: cannot be read: {error}") from error
        return {
            consumer: Measurement(footprint_mib, residual_mib)
            for consumer, fingerprint, footprint_mib, residual_mib in rows
            if self._fingerprints.get(consumer) == fingerprint
        }

    def keep(self, consumer: str, gpu: str, measurement: Measurement) -> None:
        """Write down what was measured on the GPU of this UUID; returns at once."""
        if consumer not in self._fingerprints:
            return
        row = (
            consumer,
            gpu,
            self._fingerprints[consumer],
            measurement.footprint_mib,
            measurement.residual_mib,
            time.time(),
        )
        # With so many waiting the disk hangs, and the next measurement will be as good.
        with suppress(queue.Full):
            self._rows.put_nowait(row)

    def close(self) -> None:
        """Write what waits; a disk that hangs is left alone after a while."""
        with suppress(queue.Full):
            self._rows.put(None, timeout=CLOSE_TIMEOUT_S)
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while (row := self._rows.get()) is not None:
            try:
                with closing(self._connect()) as connection:
                    connection.execute(
                        "INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?) "
                        "ON CONFLICT (consumer, gpu) DO UPDATE SET "
                        "fingerprint = excluded.fingerprint, "
                        "footprint_mib = excluded.footprint_mib, "
                        "residual_mib = excluded.residual_mib, "
                        "measured_at = excluded.measured_at",
                        row,
                    )
            except sqlite3.Error as error:
                log.warning("a measurement is not kept", consumer=row[0], error=str(error))

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
