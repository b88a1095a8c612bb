"""Rows that say something of a consumer, and count for as long as it is the same.

What makes it so is its fingerprint (``mgpu.config.fingerprint``): a row of another one is left
until what is kept of the present one takes its place.
"""

from __future__ import annotations

from collections.abc import Mapping

from mgpu.store.writer import Writer


class OfConsumers:
    """What such tables have in common.

    ``fingerprints`` has one for every consumer that may be asked for or kept; see ``configure``.
    """

    def __init__(self, writer: Writer, fingerprints: Mapping[str, str]) -> None:
        self.writer = writer
        self.fingerprints = fingerprints

    def configure(self, fingerprints: Mapping[str, str]) -> None:
        """Know these consumers from now on; nothing is kept of others."""
        self.fingerprints = fingerprints

    def is_current(self, consumer: str, fingerprint: str) -> bool:
        """Whether a row with this fingerprint is of the consumer as it is now."""
        return self.fingerprints.get(consumer) == fingerprint
