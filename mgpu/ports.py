"""What the broker needs of the world, as protocols: the shell is written against these alone.

Whoever implements one may take its time but never for ever: each call has a deadline of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mgpu.core.model import ByHand, GpuReading


@dataclass(frozen=True, slots=True)
class Placement:
    """The GPUs a consumer is to be loaded on, index and UUID in the same order."""

    gpus: tuple[int, ...] = ()
    uuids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What a consumer says of itself when asked.

    ``reachable`` False: nothing listens at its address, or its unit is not running.
    ``resident`` None: it has no way to tell. ``alive``: whoever starts and stops it (its unit, its
    container, the broker) says that it runs, whether or not anything listens. ``busy``: it says
    that it computes. ``gpus``: where it lives, when it can tell that. ``asked`` False: there was
    nobody to ask yet, and the report says nothing.
    """

    reachable: bool
    healthy: bool
    resident: bool | None = None
    detail: str = ""
    alive: bool = False
    busy: bool = False
    gpus: tuple[int, ...] | None = None
    asked: bool = True


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a consumer's processes are to be found on this machine, as far as is known."""

    port: int | None = None
    """It listens on this TCP port."""
    control_group: str = ""
    """Its systemd unit's, as ``systemctl show -p ControlGroup`` says."""
    container: str = ""
    """Its container's id, all 64 digits."""
    root_pid: int | None = None
    """The process that it was started as; the others descend from it."""


@runtime_checkable
class Located(Protocol):
    """A controller that knows more of where its consumer runs than the URL tells."""

    @property
    def whereabouts(self) -> Whereabouts:
        """What is known now; may be asked from any thread, and answers at once."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was learned of a consumer, and of which consumer just that was learned."""

    footprint_mib: int
    residual_mib: int


class ConsumerController(Protocol):
    """One consumer's own ways to be loaded, unloaded and asked.

    Every call ends within the deadline that the consumer's configuration sets for it, and a call
    that is cancelled leaves no task, connection or child process behind, save for a program that
    is the consumer itself: that ends with ``close``.
    """

    async def load(self, placement: Placement, body: Any = None) -> None:
        """Return when the consumer is ready to work; raise ``errors.LoadFailed`` otherwise.

        ``errors.LoadNotBegun`` when the consumer did not take the request: nobody is to make room
        for it once more.
        ``body``: what its load request is to say, placeholders included; None: what is configured.
        """

    async def unload(self) -> None:
        """Return when the consumer has accepted to unload; raise ``errors.UnloadFailed``.

        ``errors.UnloadDeclined`` when it was not asked, since it computes for somebody else.
        The memory is not free yet when this returns: only the GPU can tell.
        """

    async def escalate(self) -> None:
        """Unload by the harder way (stop it as a whole); raise ``errors.UnloadFailed``."""

    async def probe(self) -> ProbeReport:
        """Ask how it is, without waking it or counting as use; never raises for a dead one."""

    async def close(self) -> None:
        """Give back connections; end the consumer if it is a program of the broker's."""


class GpuProbe(Protocol):
    """Where the free memory is read."""

    async def read(self) -> tuple[GpuReading, ...]:
        """Every GPU as it is now, the failing ones with their error.

        Raises ``errors.GpuUnhealthy`` when nothing can be read at all, or not in time. A read that
        hangs never blocks the caller past the deadline, nor the process's exit.
        """

    async def close(self) -> None:
        """Give back what was opened; does not wait for a read that hangs."""


class Keeper(Protocol):
    """Where it is written down what people have asked for, so that it holds at the next start."""

    def keep(self, by_hand: ByHand) -> None:
        """Write it down in the place of what was there; returns at once, whatever the disk does."""

    async def written(self) -> None:
        """Return when what was kept last is on the disk, or has been given up on with a warning."""


class Clock(Protocol):
    """Monotonic time."""

    def now(self) -> float:
        """Seconds since a moment that means nothing."""
