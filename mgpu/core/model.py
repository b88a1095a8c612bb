"""The nouns of the scheduler: what a job, a consumer and a GPU are, and the policy they live under.

Values that come from outside (the policy, a reading of a GPU) are frozen; what the scheduler
itself changes (``Job``, ``Consumer``, ``Gpu``) is not, and is changed by ``mgpu.core`` alone.
Memory is in MiB, times are seconds on a monotonic clock whose zero means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class ConsumerState(StrEnum):
    """Where a consumer's weights are, or are on their way to."""

    UNKNOWN = "unknown"
    """Nobody has asked it yet."""
    ABSENT = "absent"
    LOADING = "loading"
    RESIDENT = "resident"
    DRAINING = "draining"
    """To be unloaded as soon as its running jobs have ended; takes no new ones."""
    UNLOADING = "unloading"
    """Asked to unload, or unloaded by its own word while its memory is still to show as free."""
    COOLDOWN = "cooldown"
    """Its load failed; left alone until the cooldown ends."""
    QUARANTINED = "quarantined"
    """Its unload failed, so it may still hold its memory; asked again after a while."""


class Outcome(StrEnum):
    """How a job ended; every job ends exactly once."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REJECTED = "rejected"


class Order(StrEnum):
    """Who is served next; see ``mgpu.core.ordering``."""

    ARRIVAL = "arrival"
    RESIDENT_FIRST = "resident-first"
    PLANNED = "planned"


class Victims(StrEnum):
    """Who leaves first; see ``mgpu.core.eviction``."""

    LRU = "lru"
    RELOAD_COST = "reload-cost"


class LockMode(StrEnum):
    """Whether consumers may compute on one GPU at the same time."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"


class NothingToEvict(StrEnum):
    """What happens to a job for which no permitted set of victims frees enough."""

    REJECT = "reject"
    ATTEMPT = "attempt"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerPolicy:
    """What the configuration says about one consumer, as far as deciding needs it."""

    name: str
    footprint_mib: int
    """VRAM while resident, over all its GPUs together."""
    residual_mib: int = 0
    """VRAM that stays after an unload (a CUDA context)."""
    gpus: tuple[int, ...] | None = None
    """Indexes of the GPUs it lives on, all of them at once; None: any one GPU."""
    can_coexist_with: frozenset[str] = frozenset()
    """Names that are never evicted to make room for this one; ``*`` stands for all."""
    vram_managed: bool = False
    """It evicts by itself: never loaded, evicted or billed here."""
    can_load: bool = True
    """There is a way to load it; otherwise its first job does."""
    can_unload: bool = True
    can_escalate: bool = False
    """A second, harder way to unload it exists (its unit is stopped after its endpoint failed)."""
    concurrency: int = 1
    max_queue: int = 64
    priority: int = 0
    pinned: bool = False
    """Never evicted, and loaded at the start; a person may change that while the broker runs."""
    idle_unload_s: float | None = None
    """Unloaded after so long without a job; None: never."""
    initially: ConsumerState = ConsumerState.UNKNOWN
    """UNKNOWN when a probe will tell."""
    job_timeout_s: float = 600.0
    busy_timeout_s: float | None = None
    """A job that runs longer is cut off, and the consumer stopped; None: never."""
    learns: bool = False
    """Its footprint is what is measured (``footprint_mib: auto``); the one given here is 0."""
    load_key: str = ""
    """What its load makes resident: with another one, what it holds is not what it is to hold."""
    tells_residency: bool = False
    """Its probe says whether it is resident, so that nothing is to be concluded from its memory."""

    def coexists_with(self, other: str) -> bool:
        """Whether ``other`` must stay when this consumer needs room."""
        return "*" in self.can_coexist_with or other in self.can_coexist_with


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules of one broker; replaced whole, never changed."""

    consumers: Mapping[str, ConsumerPolicy]
    cushion_mib: int = 256
    lock: LockMode = LockMode.EXCLUSIVE
    order: Order = Order.PLANNED
    victims: Victims = Victims.LRU
    when_nothing_to_evict: NothingToEvict = NothingToEvict.REJECT
    max_queue: int = 512
    max_wait_s: float = 600.0
    max_overtake_s: float = 120.0
    min_resident_s: float = 0.0
    max_resident: int = 0
    prefetch: bool = True
    """Load consumers while others compute."""
    max_parallel_loads: int = 2
    restore_when_idle: bool = False
    """Bring consumers back while nobody waits."""
    settle_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class ByHand:
    """What people have asked for and not taken back, which holds when the program starts again."""

    paused_at: float | None = None
    """Since when everything is held, perhaps since before the program started; None: it is not."""
    pins: Mapping[str, bool] = field(default_factory=dict)
    """The consumers that are pinned, or not, where their configuration says otherwise."""


NOTHING_ASKED = ByHand()
"""Nobody has asked for anything."""


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """What one process holds on a GPU; None: it is there, and nobody says with how much."""

    pid: int
    mib: int | None
    name: str = ""
    """The program's short name, never its command line; empty when it cannot be seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One GPU as measured at one moment. A failed measurement carries an error and no figures.

    ``processes``: those that hold its memory; None: it does not tell. ``held_mib``: what the
    processes of a consumer hold together, for the consumers of which that is known; ``foreign``
    are the processes of none. Both are empty where nobody has looked whose processes they are.
    """

    index: int
    uuid: str = ""
    name: str = ""
    total_mib: int = 0
    free_mib: int = 0
    error: str | None = None
    processes: tuple[GpuProcess, ...] | None = None
    held_mib: Mapping[str, int] = field(default_factory=dict)
    foreign: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a job was not served: a code of ``mgpu.errors``, a sentence, and when to come back."""

    code: str
    detail: str
    retry_after_s: float | None = None
