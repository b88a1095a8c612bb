"""What the scheduler wants done, as values; the shell around it does them.

``Effect`` is everything; ``Fact`` is the part that asks for nothing and only tells what was
decided or measured, for logs and metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

from mgpu.core.events import Timer
from mgpu.core.model import ByHand, ConsumerState, Outcome, Refusal


@dataclass(frozen=True, slots=True)
class Phases:
    """Where a job's wait went, in seconds; the three add up to the whole wait."""

    queue_s: float = 0.0
    evict_s: float = 0.0
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StartLoad:
    """Make a consumer resident on these GPUs; answered with ``LoadEnded``.

    ``load_key``: with what a job wants it loaded; None: as it is configured.
    """

    consumer: str
    attempt: int
    gpus: tuple[int, ...]
    load_key: str | None = None


@dataclass(frozen=True, slots=True)
class StartUnload:
    """Make a consumer absent; answered with ``UnloadEnded``. ``escalate``: by the harder way."""

    consumer: str
    attempt: int
    escalate: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """A job may compute: it holds a lease with this fencing token until ``JobEnded``."""

    job: str
    consumer: str
    token: int
    gpus: tuple[int, ...]
    phases: Phases


@dataclass(frozen=True, slots=True)
class Abort:
    """A job that holds a lease is to stop; ``JobEnded`` follows.

    When ``Finish`` comes with it, the lease is void already and nobody waits for that.
    """

    job: str
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Finish:
    """A job has come to its one end. ``refusal`` says why when the scheduler ended it."""

    job: str
    consumer: str
    outcome: Outcome
    refusal: Refusal | None
    phases: Phases
    run_s: float
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A person's request is carried out, or refused."""

    request: str
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Send ``TimerFired`` at that moment."""

    timer: Timer
    at: float


@dataclass(frozen=True, slots=True)
class CancelTimer:
    """That moment is of no interest any more."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class Sample:
    """Read the GPUs now; ``fast`` says whether their memory is expected to change."""

    fast: bool


@dataclass(frozen=True, slots=True)
class Forget:
    """A consumer is not to be dealt with any more: nothing is under way there."""

    consumer: str


@dataclass(frozen=True, slots=True)
class Keep:
    """Write this down for the next start, in the place of what was kept before."""

    by_hand: ByHand


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A consumer went from one state to another."""

    consumer: str
    old: ConsumerState
    new: ConsumerState
    reason: str


@dataclass(frozen=True, slots=True)
class Evicted:
    """A victim was asked to leave for a target that needs ``need_mib`` free on each of its GPUs."""

    victim: str
    target: str
    need_mib: int


@dataclass(frozen=True, slots=True)
class LoadMeasured:
    """A load took this long; None when the first job does the loading, which nobody can time."""

    consumer: str
    ok: bool
    seconds: float | None


@dataclass(frozen=True, slots=True)
class UnloadMeasured:
    """An unload took this long, until its memory showed as free or was given up on."""

    consumer: str
    ok: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class SwapMeasured:
    """From the decision to make room for a target until its first job took this long."""

    target: str
    seconds: float


@dataclass(frozen=True, slots=True)
class SettleTimedOut:
    """A consumer said it had unloaded, and its memory did not show as free in time."""

    consumer: str
    missing_mib: int


@dataclass(frozen=True, slots=True)
class FootprintLearned:
    """A consumer was seen to hold this much, more than was known before."""

    consumer: str
    footprint_mib: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of a consumer by measurement has changed; worth keeping for the next start."""

    consumer: str
    gpus: tuple[int, ...]
    footprint_mib: int
    residual_mib: int


@dataclass(frozen=True, slots=True)
class FootprintWrong:
    """A configured footprint is far from what was measured."""

    consumer: str
    configured_mib: int
    measured_mib: int


@dataclass(frozen=True, slots=True)
class GpuHealthChanged:
    """A GPU stopped answering, or answers again (``error`` None); GPU None: none was ever seen."""

    gpu: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class LockReleased:
    """A consumer computed on a GPU for this long without a break."""

    gpu: int
    consumer: str
    held_s: float


Fact = (
    StateChanged
    | Evicted
    | LoadMeasured
    | UnloadMeasured
    | SwapMeasured
    | SettleTimedOut
    | FootprintLearned
    | Measured
    | FootprintWrong
    | GpuHealthChanged
    | LockReleased
)

Effect = (
    StartLoad
    | StartUnload
    | Grant
    | Abort
    | Finish
    | Answer
    | SetTimer
    | CancelTimer
    | Sample
    | Forget
    | Keep
    | Fact
)
