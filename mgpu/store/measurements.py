"""What was learned of consumers, kept over restarts in the broker's database.

Only learned footprints need it: what is written in the configuration is known anyway. A row counts
for as long as the consumer is the same, by the fingerprint of what makes it so; another one takes
its place. One that could not be written is no great loss: a footprint that is not kept is measured
again.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing

from mgpu.errors import StorageFull
from mgpu.ports import Measurement
from mgpu.store.writer import Writer


class MeasurementStore:
    """The table of ``measurements.sql``.

    ``fingerprints`` has one for every consumer that may be asked for or kept; see ``configure``.
    """

    def __init__(self, writer: Writer, fingerprints: Mapping[str, str]) -> None:
        self._writer = writer
        self._fingerprints = fingerprints

    def configure(self, fingerprints: Mapping[str, str]) -> None:
        """Know these consumers from now on; what is measured of others is not kept."""
        self._fingerprints = fingerprints

    def load(self) -> dict[str, Measurement]:
        """What is known of the consumers as they are now: of several GPUs the larger figures.

        Raises ``errors.StorageFull`` when the file cannot be read.
        """
        try:
            with closing(self._writer.connect()) as connection:
                rows = connection.execute(
                    "SELECT consumer, fingerprint, max(footprint_mib), max(residual_mib) "
                    "FROM measurements GROUP BY consumer, fingerprint"
                ).fetchall()
        except sqlite3.Error as error:
            raise StorageFull(f"{self._writer.path}: cannot be read: {error}") from error
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

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (consumer, gpu) DO UPDATE SET "
                "fingerprint = excluded.fingerprint, "
                "footprint_mib = excluded.footprint_mib, "
                "residual_mib = excluded.residual_mib, "
                "measured_at = excluded.measured_at",
                row,
            )

        self._writer.put(write, lost="a measurement is not kept", consumer=consumer)
