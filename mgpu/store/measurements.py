"""What was learned of consumers, kept over restarts in the broker's database.

Only learned footprints need it: what is written in the configuration is known anyway. One that
could not be written is no great loss: a footprint that is not kept is measured again.
"""

from __future__ import annotations

import time

from mgpu.ports import Measurement
from mgpu.store.of_consumers import OfConsumers

_KEEP = (
    "INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (consumer, gpu) DO UPDATE SET "
    "fingerprint = excluded.fingerprint, "
    "footprint_mib = excluded.footprint_mib, "
    "residual_mib = excluded.residual_mib, "
    "measured_at = excluded.measured_at"
)


class MeasurementStore(OfConsumers):
    """The table of ``measurements.sql``."""

    def load(self) -> dict[str, Measurement]:
        """What is known of the consumers as they are now: of several GPUs the larger figures.

        Raises ``errors.StorageFull`` when the file cannot be read.
        """
        rows = self.writer.read(
            "SELECT consumer, fingerprint, max(footprint_mib), max(residual_mib) "
            "FROM measurements GROUP BY consumer, fingerprint"
        )
        return {
            consumer: Measurement(footprint_mib, residual_mib)
            for consumer, fingerprint, footprint_mib, residual_mib in rows
            if self.is_current(consumer, fingerprint)
        }

    def keep(self, consumer: str, gpu: str, measurement: Measurement) -> None:
        """Write down what was measured on the GPU of this UUID; returns at once."""
        if consumer in self.fingerprints:
            whose = (consumer, gpu, self.fingerprints[consumer])
            figures = (measurement.footprint_mib, measurement.residual_mib, time.time())
            lost = "a measurement is not kept"
            self.writer.execute(_KEEP, *whose, *figures, lost=lost, consumer=consumer)
