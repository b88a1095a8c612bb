"""How a command to a running broker fails."""

from __future__ import annotations

from mgpu.errors import MgpuError


class BrokerSaidNo(MgpuError):  # noqa: N818 - named as its kin in mgpu.errors
    """The broker refused."""


class CannotReach(MgpuError):  # noqa: N818 - the same
    """Nobody who answers like a broker is at the address."""


class TookTooLong(CannotReach):
    """There was no whole answer in time."""
