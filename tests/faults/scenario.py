"""A history that can be played: consumers and rules, and a list of what happens when.

It is data alone. Chance is in ``draw`` and nowhere else, so a history can be cut, line by line, and
what is left happens as it did before (``tests.faults.shrink``).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mgpu.core.events import JobKind
from mgpu.core.model import (
    ConsumerPolicy,
    ConsumerState,
    LockMode,
    NothingToEvict,
    Order,
    Policy,
    Victims,
)
from tests.faults.kinds import Fault, label

TOTAL_MIB = 24576
OWN_KEY = "own"
"""What every consumer is loaded with when nobody wants it otherwise."""
LOAD_KEYS = (OWN_KEY, "long", "wide")
NAMES = ("image", "speech", "language", "vision", "music")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One simulated service. ``job_s``: the mean time of the jobs that are drawn for it.

    ``true_mib``: what it takes, where its policy says that this is to be measured.
    """

    policy: ConsumerPolicy
    load_s: float = 2.0
    unload_s: float = 0.4
    job_s: float = 1.5
    true_mib: int = 0

    @property
    def name(self) -> str:
        """Its name in the rules."""
        return self.policy.name

    @property
    def tells(self) -> bool:
        """Whether its probe says that it is resident, or not."""
        return self.policy.tells_residency


@dataclass(frozen=True, slots=True)
class Visit:
    """A client comes with a job that computes for ``run_s``. None: as the rules say."""

    at: float
    job: str
    consumer: str
    run_s: float = 1.0
    kind: JobKind = JobKind.COMPUTE
    priority: int | None = None
    wait_s: float | None = None
    idle_s: float | None = None
    load_key: str | None = None

    def __str__(self) -> str:
        """The line of a story."""
        wish = f", loaded with {self.load_key}" if self.load_key else ""
        what = f"{self.kind} {self.consumer} for {self.run_s} s{wish}"
        return f"{self.at:8.3f}  {self.job} comes: {what}"


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault strikes. ``subject`` is a consumer's name; faults of a GPU use ``gpu``."""

    at: float
    fault: Fault
    subject: str
    gpu: int
    amount: float
    """From 0 to 1: how long, how much, how many, as the fault means it."""

    def __str__(self) -> str:
        """The line of a story."""
        where = f"{self.subject}, GPU {self.gpu}, amount {self.amount}"
        return f"{self.at:8.3f}  FAULT {label(self.fault)} ({where}): {self.fault.value}"


Line = Visit | Strike


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What a world is made of. ``starts_at``: what the monotonic clock shows at first."""

    seed: int
    policy: Policy
    specs: tuple[Spec, ...]
    lines: tuple[Line, ...]
    gpus: int = 1
    foreign_mib: int = 0
    """What processes of nobody hold on each GPU from the start."""
    attributed: bool = False
    """GPUs tell whose their memory is."""
    starts_at: float = 0.0


def draw(seed: int, *, jobs: int | None = None, kinds: Sequence[Fault] | None = None) -> Scenario:
    """The history of a seed. ``jobs``, ``kinds``: so many and these, not what the seed says."""
    chance = random.Random(seed)
    gpus = chance.choice([1, 1, 1, 2])
    count = chance.choice([2, 3, 3, 4, 5])
    specs = tuple(_to_be_measured(seed, [_spec(chance, name, gpus) for name in NAMES[:count]]))
    number = chance.choice([2, 4, 6, 8, 12] * 2 + [30]) if jobs is None else jobs
    span_s = number * chance.choice([0.3, 1.0, 2.5])
    visits = [_visit(chance, f"j{n}", span_s, specs) for n in range(number)]
    lines: list[Line] = [*_with_keys(seed, visits)]
    if kinds is None:
        kinds = chance.sample(list(Fault), chance.choice([0, 1, 1, 2, 3, 4]))
    lines += [
        _strike(chance, kind, span_s, specs, gpus)
        for kind in kinds
        for _ in range(chance.choice([1, 1, 2, 3]) * max(1, number // 12))
    ]
    lines.sort(key=lambda line: line.at)
    return Scenario(
        seed=seed,
        policy=_policy(chance, specs),
        specs=specs,
        lines=tuple(lines),
        gpus=gpus,
        foreign_mib=chance.choice([0, 0, 0, 1200, 5000]),
        attributed=random.Random(f"attribution of {seed}").random() < 1 / 3,
        starts_at=chance.choice([0.0, 3.5, 1e6]),
    )


def _policy(chance: random.Random, specs: tuple[Spec, ...]) -> Policy:
    return Policy(
        consumers={spec.name: spec.policy for spec in specs},
        order=chance.choice(list(Order)),
        victims=chance.choice(list(Victims)),
        lock=chance.choice([LockMode.EXCLUSIVE, LockMode.EXCLUSIVE, LockMode.SHARED]),
        when_nothing_to_evict=chance.choice(
            [NothingToEvict.REJECT, NothingToEvict.REJECT, NothingToEvict.ATTEMPT]
        ),
        max_queue=chance.choice([4, 50]),
        max_wait_s=chance.choice([20.0, 60.0]),
        max_overtake_s=chance.choice([4.0, 15.0]),
        min_resident_s=chance.choice([0.0, 0.0, 3.0]),
        max_resident=chance.choice([0, 0, 0, 1, 2]),
        prefetch=chance.choice([True, True, False]),
        restore_when_idle=chance.choice([True, False]),
        max_parallel_loads=chance.choice([1, 2, 3]),
        settle_timeout_s=chance.choice([2.0, 5.0]),
    )


def _spec(chance: random.Random, name: str, gpus: int) -> Spec:
    managed = chance.random() < 0.05
    lazy = chance.random() < 0.15
    resident = managed or chance.random() < 0.35
    initially = ConsumerState.RESIDENT if resident else ConsumerState.ABSENT
    homes: list[tuple[int, ...] | None] = [None, None, None, (0,)]
    if gpus == 2:
        homes += [(1,), (0, 1), (0, 1)]
    policy = ConsumerPolicy(
        name=name,
        footprint_mib=chance.choice([2000, 5000, 8000, 8000, 12000, 16000, 20000]),
        residual_mib=chance.choice([0, 0, 400]),
        gpus=chance.choice(homes),
        can_coexist_with=frozenset(
            chance.choice([(), (), (), (), chance.sample(NAMES, 1), ("*",)])
        ),
        vram_managed=managed,
        can_load=not managed and not lazy,
        can_unload=not managed and chance.random() < 0.92,
        can_escalate=chance.random() < 0.5,
        concurrency=chance.choice([1, 1, 1, 2, 3]),
        max_queue=chance.choice([2, 8, 64]),
        priority=chance.choice([0, 0, 0, 1]),
        pinned=chance.random() < 0.08,
        idle_unload_s=chance.choice([None, None, None, 0.0, 2.0, 8.0]),
        initially=chance.choice([ConsumerState.UNKNOWN, initially, initially]),
        load_key=OWN_KEY,
        job_timeout_s=chance.choice([12.0, 30.0]),
        busy_timeout_s=chance.choice([None, None, 6.0]),
    )
    load_s = chance.choice([0.3, 1.0, 2.0, 4.0])
    unload_s = chance.choice([0.05, 0.4, 1.0])
    job_s = chance.choice([0.3, 1.5, 4.0])
    tells = not lazy and chance.random() < 0.8
    policy = replace(policy, tells_residency=tells)
    return Spec(policy=policy, load_s=load_s, unload_s=unload_s, job_s=job_s)


def _visit(chance: random.Random, job: str, span_s: float, specs: tuple[Spec, ...]) -> Visit:
    spec = chance.choice(specs)
    return Visit(
        at=round(chance.uniform(0.0, span_s), 3),
        job=job,
        consumer=spec.name,
        run_s=round(min(8.0, chance.expovariate(1 / spec.job_s)), 3),
        kind=JobKind.LOAD if chance.random() < 0.03 else JobKind.COMPUTE,
        priority=chance.choice([None, None, None, None, 1, 2]),
        wait_s=chance.choice([None, None, None, 3.0, 100.0]),
        idle_s=chance.choice([None, None, None, None, 0.0, 4.0]),
    )


def _to_be_measured(seed: int, specs: Sequence[Spec]) -> Iterator[Spec]:
    """In every third history some footprints are to be measured (``footprint_mib: auto``).

    Their chance is one of their own, as that of the load keys.
    """
    chance = random.Random(f"footprints of {seed}")
    some = chance.random() < 1 / 3
    for spec in specs:
        if some and chance.random() < 0.6 and not spec.policy.vram_managed:
            policy = replace(spec.policy, footprint_mib=0, learns=True)
            yield replace(spec, policy=policy, true_mib=spec.policy.footprint_mib)
        else:
            yield spec


def _with_keys(seed: int, visits: Sequence[Visit]) -> Iterator[Visit]:
    """In every third history some jobs want their consumers loaded in a certain way.

    Their chance is one of their own: without them, these histories are what they were.
    """
    chance = random.Random(f"load keys of {seed}")
    some = chance.random() < 1 / 3
    for visit in visits:
        wanted = some and chance.random() < 0.5
        yield replace(visit, load_key=chance.choice(LOAD_KEYS)) if wanted else visit


def _strike(
    chance: random.Random, fault: Fault, span_s: float, specs: tuple[Spec, ...], gpus: int
) -> Strike:
    return Strike(
        at=round(span_s * chance.random() ** 2, 3),  # most loads are early
        fault=fault,
        subject=chance.choice(specs).name,
        gpu=chance.randrange(gpus),
        amount=round(chance.random(), 2),
    )
