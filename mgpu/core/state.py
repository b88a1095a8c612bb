"""Everything the scheduler knows, in one place. Only ``mgpu.core`` changes it."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from mgpu.core.averages import Averages
from mgpu.core.jobs import Job
from mgpu.core.model import (
    NOTHING_ASKED,
    ByHand,
    ConsumerPolicy,
    ConsumerState,
    GpuProcess,
    Policy,
)
from mgpu.core.waiting import Waiting

HISTORY = 20
"""State changes of a consumer that are kept, to tell its story when something illegal happens."""


THERE = frozenset({ConsumerState.RESIDENT, ConsumerState.DRAINING})
"""States in which jobs may run."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a waiting job may take from consumers that have jobs waiting themselves.

    As a rule that is the place of those whose jobs all have a lower ``priority``; in a strict order
    also of those that came after it (``seq``). Who has waited for too long has no priority but age
    (``priority`` infinite), and takes the place of all that came after it, but for the rest of a
    batch where those are served to their end (``batches``).
    """

    priority: float
    seq: float = math.inf
    batches: bool = False
    over: frozenset[str] = frozenset()
    """Names of consumers that had better wait (``mgpu.core.planning``)."""

    def spares(self, consumer: Consumer) -> bool:
        """Whether a consumer with jobs waiting keeps its place."""
        waiting = consumer.waiting
        if consumer.name in self.over:
            return False
        came_before = waiting.oldest_seq() < self.seq
        first = waiting.first(consumer.held_key)
        if math.isinf(self.priority):
            return came_before or (self.batches and consumer.came_for(first))
        return first.priority > self.priority or (first.priority == self.priority and came_before)


@dataclass(slots=True)
class Unload:
    """An unload under way, or one that failed and left its consumer quarantined."""

    started_at: float
    own_baseline_mib: dict[int, int] = field(default_factory=dict)
    """Per GPU: what its processes held when it was asked, where that was known."""
    asked: bool = False
    """The consumer knows; before, new figures are waited for."""
    baseline_mib: dict[int, int] = field(default_factory=dict)
    """Per GPU: free memory when it was asked, plus what others who left meanwhile gave back."""
    answered: bool = False
    escalated: bool = False
    disturbed: bool = False
    """Somebody else's memory moved on its GPUs, so that free memory says nothing about it."""
    stop: bool = False
    """It may be computing: by the hardest way at once (``mgpu.core.restarting``)."""


@dataclass(slots=True)
class Swap:
    """Making one target resident: its victims leave first, then it loads."""

    target: str
    gpus: tuple[int, ...]
    started_at: float
    claim: Claim
    """Of whom it may take the place although they have jobs waiting."""
    victims: set[str] = field(default_factory=set)
    """Those that are still on their way out."""
    load_started_at: float | None = None
    baseline_mib: dict[int, int] = field(default_factory=dict)
    """Free memory per GPU when the load started."""
    lowest_mib: dict[int, int] = field(default_factory=dict)
    """The least free memory seen since."""
    disturbed: bool = False
    """Somebody else's memory may have moved on its GPUs during the load, if only because it
    computed: nothing is learned from it."""
    blurred: bool = False
    """Somebody else came or went on its GPUs: how far it has got cannot be seen any more."""
    beside_s: float = 0.0
    """For so long its load has not been the only one."""
    filled_at: float | None = None
    """When a job was done that loads its target: figures read since show what it took."""
    forced: bool = False
    """Load even though nothing could be evicted (``when_nothing_to_evict: attempt``)."""


@dataclass(slots=True)
class SwapTimes:
    """When a consumer's last swap was decided, began to load and was ready."""

    started_at: float
    load_started_at: float
    ready_at: float
    first_job_served: bool = False


@dataclass(slots=True)
class Consumer:
    """One consumer, as the scheduler believes it to be."""

    policy: ConsumerPolicy
    state: ConsumerState
    name: str = field(init=False)
    """Its name in the configuration: the same under every policy."""
    healthy: bool = True
    busy: bool = False
    """It computes for somebody who did not come through the broker: it may not be evicted."""
    attempt: int = 0
    """Number of the last load or unload asked of it; answers to older ones are void."""
    gpus: tuple[int, ...] = ()
    """Where it lives, or lived last."""
    running: dict[str, Job] = field(default_factory=dict)
    waiting: Waiting = field(default_factory=Waiting)
    credit: float = 0.0
    """What it is worth keeping, by ``mgpu.core.eviction``."""
    last_used_at: float = -math.inf
    """End of its last finished job."""
    resident_since: float = -math.inf
    measured_mib: int | None = None
    """The most it was seen to hold while resident, over all its GPUs; see ``core.measuring``."""
    peak_mib: int = 0
    """The most its processes were seen to hold since it became resident."""
    assumed_mib: int = 0
    """What it is taken to need while nobody knows (``mgpu.core.unmeasured``)."""
    own_mib: dict[int, int] = field(default_factory=dict)
    """Per GPU: what its processes hold now; a GPU of which that is not known is not in it."""
    kept_seen_mib: int = 0
    """What its processes kept after its last unload."""
    fading_until: float = -math.inf
    """Its processes may hold until then what it has given up, as it left a moment ago."""
    told_mib: int = 0
    """The measured footprint that was last told to be kept."""
    warned_mib: int | None = None
    """The measured footprint that its configured one was last said to be wrong by."""
    leftover_mib: int = 0
    """What it did not give back although it said it had unloaded, beyond its residual."""
    failures: int = 0
    """Loads or unloads that failed in a row."""
    retrying: bool = False
    """Its last load failed and is being tried once more."""
    held_off_until: float = 0.0
    """End of its cooldown or quarantine."""
    deaf_since: float | None = None
    """When it was found running with nothing that listens; None: it was not, when last asked."""
    loaded_key: str = ""
    """With what it was loaded last; empty: nobody knows, as it was not the broker that did it."""
    loaded_by: str = field(init=False)
    """Its policy's ``load_key`` when it was loaded, or found."""
    unload: Unload | None = None
    unload_requests: list[str] = field(default_factory=list)
    """People who wait for it to be unloaded."""
    swap_times: SwapTimes | None = None
    averages: Averages = field(default_factory=Averages)
    pinned: bool = field(init=False)
    retired: bool = False
    """The configuration does not name it any more: it takes no jobs, and is to leave."""
    kept_running: int = 0
    """Jobs that ran when its limit was changed; they may be more than it allows."""
    kept_waiting: int = 0
    """Jobs that waited then."""
    idle_wish_s: float | None = None
    """How long its last finished job wants it kept when idle; None: as the policy says."""
    idle_until: float | None = None
    """When it is to be unloaded, if it stays idle; None while it is not idle."""
    unloaded_by_hand: bool = False
    """A person did not want it in VRAM, and nothing has loaded it since."""
    preload_job: str = ""
    """The broker's own last job that was to load it."""
    preload_tries: int = 0
    preload_after: float = -math.inf
    restore_after: float = -math.inf
    """When it may be brought back (again), by ``mgpu.core.restoring``."""
    unasked: bool = False
    """It was brought back, and no job of its has come since."""
    history: deque[str] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def __post_init__(self) -> None:
        """Begin as the policy says."""
        self.name = self.policy.name
        self.pinned = self.policy.pinned
        self.loaded_by = self.policy.load_key

    def came_for(self, job: Job) -> bool:
        """Whether a job of its waited already when it came into memory: it is of that batch.

        One that wants it loaded otherwise is not.
        """
        return job.arrived_at <= self.resident_since and self.suits(job)

    @property
    def can_be_unloaded(self) -> bool:
        """Whether the broker has a way to unload it, and any business to."""
        return self.policy.can_unload and not self.policy.vram_managed

    @property
    def can_be_reloaded(self) -> bool:
        """Whether the broker has a way to load it otherwise than it is loaded."""
        return self.policy.can_load and self.can_be_unloaded

    @property
    def outdated(self) -> bool:
        """Whether it was loaded by other rules than the present ones, which can be mended."""
        return self.loaded_by != self.policy.load_key and self.can_be_reloaded

    @property
    def held_key(self) -> str | None:
        """With what it is loaded now; None: it is not."""
        return self.loaded_key if self.state is ConsumerState.RESIDENT else None

    def suits(self, job: Job) -> bool:
        """Whether what it holds while resident is what a job asks for."""
        return (job.load_key is None or job.load_key == self.loaded_key) and not self.outdated

    @property
    def stopping(self) -> bool:
        """Whether it was stopped at its work and may not have noticed yet."""
        unload = self.unload
        return (
            self.state is ConsumerState.UNLOADING
            and unload is not None
            and unload.stop
            and not unload.answered
        )

    @property
    def footprint_mib(self) -> int:
        """VRAM while resident: the larger of configured and measured."""
        return max(self.policy.footprint_mib, self.measured_mib or 0, self.assumed_mib)

    @property
    def needs_unknown(self) -> bool:
        """Whether nobody knows yet what it needs: it is to be measured, and never was."""
        return self.policy.learns and self.measured_mib is None

    @property
    def own_total_mib(self) -> int | None:
        """What its processes hold on all its GPUs together; None when that is not known."""
        if not self.gpus or any(index not in self.own_mib for index in self.gpus):
            return None
        return sum(self.own_mib[index] for index in self.gpus)


@dataclass(slots=True)
class Gpu:
    """One GPU as last measured."""

    index: int
    uuid: str = ""
    name: str = ""
    total_mib: int = 0
    free_mib: int = 0
    error: str | None = None
    read_at: float = -math.inf
    """When the figures came, or could not be had."""
    asked_at: float = -math.inf
    """When their reading began; they may lack what came later."""
    owed_mib: int = 0
    """What somebody has given up and what does not show as free yet; see ``vram.owed_mib``."""
    owed_until: float = -math.inf
    foreign: tuple[GpuProcess, ...] = ()
    """The processes of no consumer that hold its memory."""
    holders: dict[str, float] = field(default_factory=dict)
    """Consumers that compute here, and since when; at most one under the exclusive lock."""

    @property
    def healthy(self) -> bool:
        """Whether its figures can be trusted; nothing is admitted to a GPU whose cannot."""
        return self.error is None

    @property
    def used_mib(self) -> int:
        """Memory in use, by whomever."""
        return self.total_mib - self.free_mib


@dataclass(slots=True)
class State:
    """The whole."""

    policy: Policy
    consumers: dict[str, Consumer]
    next_token: int
    gpus: dict[int, Gpu] = field(default_factory=dict)
    gpus_error: str | None = None
    """Why no GPU could be read at all, when none has been seen yet."""
    jobs: dict[str, Job] = field(default_factory=dict)
    """Every job that has not ended."""
    waiting: int = 0
    awaited: dict[str, Consumer] = field(default_factory=dict)
    """The consumers that these jobs wait for, by name."""
    leaving: dict[str, Consumer] = field(default_factory=dict)
    """The consumers with an ``unload``, by name: who is quarantined is among them."""
    kept_waiting: int = 0
    """Jobs that waited when the limit was changed; they may be more than it allows."""
    next_seq: int = 0
    swaps: dict[str, Swap] = field(default_factory=dict)
    """Swaps under way, by target."""
    loaded: dict[str, Swap] = field(default_factory=dict)
    """Swaps whose load is over, by target, until the GPUs have been read since."""
    rooms: dict[str, Swap] = field(default_factory=dict)
    """Swaps that made room for a consumer that its first job loads, until a job of it was done
    and the GPUs have been read since."""
    draining: bool = False
    paused_at: float | None = None
    """Since when everything is held for a person, perhaps since before the program started."""
    pause_kept: bool = False
    """It was paused when the program last ended, and has been since."""
    kept: ByHand = NOTHING_ASKED
    """What people asked for, as it was last written down (``mgpu.core.by_hand``)."""
    pause_requests: list[str] = field(default_factory=list)
    """People who wait for everybody to have left."""
    sampling_fast: bool = False
    handled_at: float = 0.0
    """When the last event happened."""
    load_loss: float = 0.0
    """What each second beside another load costs a load, 0 to 1 (``mgpu.core.bandwidth``)."""
    credit_floor: float = 0.0
    """The largest credit that anybody was evicted with."""
    restoring: str = ""
    """The consumer that is being brought back (``mgpu.core.restoring``), and the job for it."""
    restore_job: str = ""
    restore_keeps: frozenset[str] = frozenset()
    """Names of those that must not leave for it."""
    evictions: int = 0
    loads: int = 0

    @property
    def paused(self) -> bool:
        """Whether everything is held for a person."""
        return self.paused_at is not None

    def unfilled(self) -> list[Consumer]:
        """Consumers whose room was made and that no job has been seen to load yet."""
        rooms = [self.consumers[name] for name in self.rooms]
        return [c for c in rooms if c.state in THERE]
