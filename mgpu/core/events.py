"""What can happen to the scheduler. Each event says when it happened (``at``, monotonic seconds).

An answer to an effect carries the attempt number of that effect, so that an answer which comes
after its question was given up changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from mgpu.core.model import GpuReading, Outcome, Policy


class JobKind(StrEnum):
    """What a job wants of its consumer."""

    COMPUTE = "compute"
    """Hold the GPU lock and compute."""
    LOAD = "load"
    """Only that the consumer becomes resident; ends when it is."""


class TimerKind(StrEnum):
    """What a timer reminds the scheduler of."""

    WAIT = "wait"
    """A job has waited for as long as it may. Subject: the job."""
    RUN = "run"
    """A job has run for as long as it may. Subject: the job."""
    SETTLE = "settle"
    """Memory given back should have shown by now. Subject: the consumer."""
    COOLDOWN = "cooldown"
    """A consumer whose load failed may be tried again."""
    QUARANTINE = "quarantine"
    """A consumer whose unload failed is asked again."""
    MIN_RESIDENT = "min-resident"
    """A freshly loaded consumer may be evicted from now on."""
    BUSY = "busy"
    """A job has run for so long that its consumer must be hanging. Subject: the job."""
    IDLE = "idle"
    """A consumer has been idle for as long as it may."""
    PRELOAD = "preload"
    """A pinned consumer may be asked for again."""


@dataclass(frozen=True, slots=True)
class Timer:
    """A timer's name: two timers that are equal are one timer."""

    kind: TimerKind
    subject: str
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class JobArrived:
    """A job asks for its consumer. None stands for what the policy says.

    ``idle_unload_s``: how long its consumer may be idle after it; infinity is for ever.
    ``load_key``: with what its consumer must be loaded; None: with anything.
    """

    at: float
    job: str
    consumer: str
    kind: JobKind = JobKind.COMPUTE
    priority: int | None = None
    max_wait_s: float | None = None
    idle_unload_s: float | None = None
    load_key: str | None = None


@dataclass(frozen=True, slots=True)
class JobLeft:
    """Nobody wants a job's result any more: its client left, or somebody cancelled it."""

    at: float
    job: str


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A job that held a lease is over: nothing of it computes or streams any more."""

    at: float
    job: str
    token: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class LoadEnded:
    """A load is over; ``error`` is None when the consumer is ready to work.

    ``begun`` False: the consumer did not even take the request, as when nothing listens.
    """

    at: float
    consumer: str
    attempt: int
    error: str | None = None
    begun: bool = True


@dataclass(frozen=True, slots=True)
class UnloadEnded:
    """An unload was answered; ``error`` is None when it was accepted. No memory is free yet.

    ``declined``: the consumer was not even asked, since it computes for somebody else.
    """

    at: float
    consumer: str
    attempt: int
    error: str | None = None
    declined: bool = False


@dataclass(frozen=True, slots=True)
class ConsumerProbed:
    """What a consumer says of itself. ``attempt`` is the consumer's when the question was put.

    ``reachable`` False: nothing listens there. ``resident`` None: it does not tell. ``alive``: it
    runs all the same, says whoever starts and stops it. ``busy``: it
    computes, for whomever, as of some time after ``asked_at``. ``gpus`` None: it does not tell
    where it lives.
    """

    at: float
    consumer: str
    attempt: int
    reachable: bool
    healthy: bool
    resident: bool | None = None
    alive: bool = False
    busy: bool = False
    asked_at: float = -math.inf
    gpus: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class GpusRead:
    """All GPUs as measured just now; one that is missing here has gone away."""

    at: float
    readings: tuple[GpuReading, ...]
    asked_at: float | None = None
    """When the reading began: it may lack what came later. None: in the same moment."""


@dataclass(frozen=True, slots=True)
class GpusLost:
    """No reading came in time; every GPU's figures are stale from now on."""

    at: float
    error: str


@dataclass(frozen=True, slots=True)
class UnloadRequested:
    """A person wants a consumer out of VRAM; answered with ``Answer`` to ``request``."""

    at: float
    request: str
    consumer: str


@dataclass(frozen=True, slots=True)
class RestartRequested:
    """A person wants a consumer stopped, its jobs with it; answered with ``Answer``."""

    at: float
    request: str
    consumer: str


@dataclass(frozen=True, slots=True)
class PinRequested:
    """A person wants a consumer to stay in VRAM from now on, or not any more."""

    at: float
    consumer: str
    pinned: bool


@dataclass(frozen=True, slots=True)
class PauseRequested:
    """A person wants the GPU; answered with ``Answer`` when everybody has left."""

    at: float
    request: str


@dataclass(frozen=True, slots=True)
class ResumeRequested:
    """A person does not want the GPU any more."""

    at: float


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """Other rules hold from now on, for everything but what is under way."""

    at: float
    policy: Policy


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The broker shuts down: nothing new is taken, nobody waits any longer, running jobs go on."""

    at: float


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that was set is due."""

    at: float
    timer: Timer


Event = (
    JobArrived
    | JobLeft
    | JobEnded
    | LoadEnded
    | UnloadEnded
    | ConsumerProbed
    | GpusRead
    | GpusLost
    | UnloadRequested
    | RestartRequested
    | PinRequested
    | PauseRequested
    | ResumeRequested
    | PolicyChanged
    | DrainRequested
    | TimerFired
)
