"""What the scheduler knows about one job."""

from __future__ import annotations

from dataclasses import dataclass

from mgpu.core.effects import Phases
from mgpu.core.events import JobKind
from mgpu.core.model import Refusal

NONE_YET = Phases()
"""Nothing can change it: all share it."""


@dataclass(slots=True)
class Job:
    """A job between its arrival and its end. ``token`` is 0 until it holds a lease."""

    id: str
    consumer: str
    kind: JobKind
    priority: int
    seq: int
    """Number of its arrival: the smaller one came first."""
    arrived_at: float
    token: int = 0
    granted_at: float = 0.0
    phases: Phases = NONE_YET
    idle_unload_s: float | None = None
    """How long its consumer may be idle after it; None: as the policy says."""
    load_key: str | None = None
    """With what its consumer must be loaded; None: with anything."""
    aborted: Refusal | None = None
    """Why it was told to stop, if it was."""
