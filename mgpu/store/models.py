"""Which models each consumer told of, kept over restarts in the broker's database.

A consumer that is not running when the broker starts cannot be asked, and its models are what has
it started. Its next answer takes the row's place.
"""

from __future__ import annotations

import json
import time

from mgpu.store.of_consumers import OfConsumers

_KEEP = (
    "INSERT INTO models VALUES (?, ?, ?, ?) ON CONFLICT (consumer) DO UPDATE SET "
    "fingerprint = excluded.fingerprint, names = excluded.names, told_at = excluded.told_at"
)


class ModelStore(OfConsumers):
    """The table of ``models.sql``."""

    def load(self) -> dict[str, tuple[str, ...]]:
        """The models of each consumer as it is now.

        Raises ``errors.StorageFull`` when the file cannot be read.
        """
        rows = self.writer.read("SELECT consumer, fingerprint, names FROM models")
        return {
            consumer: tuple(json.loads(names))
            for consumer, fingerprint, names in rows
            if self.is_current(consumer, fingerprint)
        }

    def keep(self, consumer: str, names: tuple[str, ...]) -> None:
        """Write down what a consumer told; returns at once."""
        if consumer in self.fingerprints:
            row = (consumer, self.fingerprints[consumer], json.dumps(names), time.time())
            lost = "a list of models is not kept"
            self.writer.execute(_KEEP, *row, lost=lost, consumer=consumer)
