"""Which models each consumer told of, kept over restarts in the broker's database.

A consumer that is not running when the broker starts cannot be asked, and its models are what has
it started. A row counts for as long as the consumer is the same, by its fingerprint; its next
answer takes the row's place.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing

from mgpu.errors import StorageFull
from mgpu.store.writer import Writer

_KEEP = (
    "INSERT INTO models VALUES (?, ?, ?, ?) ON CONFLICT (consumer) DO UPDATE SET "
    "fingerprint = excluded.fingerprint, names = excluded.names, told_at = excluded.told_at"
)


class ModelStore:
    """The table of ``models.sql``.

    ``fingerprints`` has one for every consumer that may be asked for or kept; see ``configure``.
    """

    def __init__(self, writer: Writer, fingerprints: Mapping[str, str]) -> None:
        self._writer = writer
        self._fingerprints = fingerprints

    def configure(self, fingerprints: Mapping[str, str]) -> None:
        """Know these consumers from now on; what others tell is not kept."""
        self._fingerprints = fingerprints

    def load(self) -> dict[str, tuple[str, ...]]:
        """The models of each consumer as it is now.

        Raises ``errors.StorageFull`` when the file cannot be read.
        """
        try:
            with closing(self._writer.connect()) as connection:
                rows = connection.execute("SELECT consumer, fingerprint, names FROM models")
                return {
                    consumer: tuple(json.loads(names))
                    for consumer, fingerprint, names in rows
                    if self._fingerprints.get(consumer) == fingerprint
                }
        except sqlite3.Error as error:
            raise StorageFull(f"{self._writer.path}: cannot be read: {error}") from error

    def keep(self, consumer: str, names: tuple[str, ...]) -> None:
        """Write down what a consumer told; returns at once."""
        if consumer not in self._fingerprints:
            return
        row = (consumer, self._fingerprints[consumer], json.dumps(names), time.time())

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(_KEEP, row)

        self._writer.put(write, lost="a list of models is not kept", consumer=consumer)
