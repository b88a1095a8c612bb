"""What is asked of a GPU: services, and the jobs that arrive for them.

A ``Trace`` is all that a simulation needs to know, recorded or made up. Made-up ones are drawn from
a mix: jobs arrive as a Poisson process, one by one or in bursts for one service whose sizes are
geometric; which service goes by the mix's weights; how long a job computes is lognormal. The same
seed gives the same trace on every machine. Utilisation counts computing only: at 0.5 the jobs alone
keep the GPU busy for half of the time, and what loading takes comes on top.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from mgpu.core.model import LockMode

SIGMA = 0.5
"""Of the logarithm of a job's time: one in twenty takes over twice the median."""

MEAN_BURST = 4.0
"""Jobs that arrive at once, in the mean."""

CUSHION_MIB = 256
GIB = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a broker's configuration says about a consumer besides; made-up ones have none.

    They are those of ``mgpu.core.model.ConsumerPolicy``, by the same names.
    """

    concurrency: int = 1
    can_coexist_with: frozenset[str] = frozenset()
    residual_mib: int = 0
    vram_managed: bool = False
    can_load: bool = True
    can_unload: bool = True
    pinned: bool = False
    idle_unload_s: float | None = None

    @property
    def leaves_freely(self) -> bool:
        """Whether it comes and goes like one without rules."""
        return replace(self, concurrency=1) == NO_RULES


NO_RULES = Rules()


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One consumer, as far as a simulation needs it. ``gpus`` None: any one GPU."""

    name: str
    footprint_mib: int
    load_s: float
    unload_s: float
    gpus: tuple[int, ...] | None = None
    rules: Rules = NO_RULES

    @property
    def residual_mib(self) -> int:
        """What stays after an unload, which is no more than there was."""
        return min(self.rules.residual_mib, self.footprint_mib)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One job: when it comes, for whom, and how long it computes."""

    at_s: float
    consumer: str
    service_s: float
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A workload with the machine it runs on; arrivals in order of time.

    ``resident``: who is loaded when it begins.
    """

    total_mib: tuple[int, ...]
    """Of each GPU."""
    services: Mapping[str, Service]
    arrivals: tuple[Arrival, ...]
    cushion_mib: int = CUSHION_MIB
    resident: tuple[str, ...] = ()
    lock: LockMode = LockMode.EXCLUSIVE

    @property
    def is_backlog(self) -> bool:
        """Whether all jobs are there at the start."""
        return len({arrival.at_s for arrival in self.arrivals}) <= 1


class Arrivals(StrEnum):
    """How the jobs of a made-up trace come."""

    POISSON = "poisson"
    BURSTS = "bursts"
    BACKLOG = "backlog"
    """All at once, at the start."""


@dataclass(frozen=True, slots=True)
class Demand:
    """A service's part in a mix: the mean time of its jobs, and how often they come."""

    service: Service
    job_s: float
    weight: float


@dataclass(frozen=True, slots=True)
class Mix:
    """Services that share one GPU, and how they are used."""

    name: str
    total_mib: int
    demands: tuple[Demand, ...]

    @property
    def mean_job_s(self) -> float:
        """The mean time of a job, over all services."""
        weight = sum(demand.weight for demand in self.demands)
        return sum(demand.job_s * demand.weight for demand in self.demands) / weight


def _demand(  # noqa: PLR0913, PLR0917 - the columns of a table
    name: str, footprint_gib: int, load_s: float, unload_s: float, job_s: float, weight: float
) -> Demand:
    service = Service(
        name=name, footprint_mib=footprint_gib * GIB, load_s=load_s, unload_s=unload_s
    )
    return Demand(service, job_s, weight)


_SPEECH = _demand("speech", 3, 3.0, 0.5, 1.0, 6)
_TRANSCRIPTION = _demand("transcription", 2, 2.0, 0.5, 2.0, 4)

MIXES: Mapping[str, Mix] = {
    mix.name: mix
    for mix in (
        Mix(
            "homelab",
            24 * GIB,
            (
                _demand("image", 13, 12.0, 1.0, 15.0, 1),
                _SPEECH,
                _TRANSCRIPTION,
                _demand("language", 9, 6.0, 0.7, 4.0, 6),
                _demand("vision", 6, 5.0, 0.6, 2.0, 2),
            ),
        ),
        Mix(
            "tight",
            12 * GIB,
            (
                _demand("image", 10, 12.0, 1.0, 15.0, 1),
                _SPEECH,
                _TRANSCRIPTION,
                _demand("language", 7, 6.0, 0.7, 4.0, 6),
            ),
        ),
        Mix(
            "eight",
            24 * GIB,
            tuple(_demand(f"model-{n}", 8, 6.0, 0.7, 3.0, 1 / n) for n in range(1, 9)),
        ),
    )
}


def make_trace(
    mix: Mix, arrivals: Arrivals, *, utilisation: float, jobs: int, seed: int | str
) -> Trace:
    """Draw a trace of so many jobs; ``utilisation`` is of no account for a backlog."""
    # Text is hashed by SHA-512 here, which keeps neighbouring seeds apart.
    chance = random.Random(f"{mix.name} {arrivals} {utilisation} {seed}")  # noqa: S311 - no secret
    weights = [demand.weight for demand in mix.demands]
    drawn: list[Arrival] = []
    for at_s, count in _moments(chance, arrivals, utilisation / mix.mean_job_s):
        # Who sends several jobs at once sends them to one service.
        [demand] = chance.choices(mix.demands, weights)
        drawn += [
            Arrival(at_s, demand.service.name, _lognormal(chance, demand.job_s))
            for _ in range(min(count, jobs - len(drawn)))
        ]
        if len(drawn) == jobs:
            break
    return Trace(
        total_mib=(mix.total_mib,),
        services={demand.service.name: demand.service for demand in mix.demands},
        arrivals=tuple(drawn),
    )


def _moments(chance: random.Random, arrivals: Arrivals, rate: float) -> Iterator[tuple[float, int]]:
    """When jobs come and how many at once, without end; ``rate`` is jobs per second."""
    at_s = 0.0
    while True:
        match arrivals:
            case Arrivals.BACKLOG:
                yield 0.0, 1
            case Arrivals.POISSON:
                at_s += chance.expovariate(rate)
                yield at_s, 1
            case Arrivals.BURSTS:
                at_s += chance.expovariate(rate / MEAN_BURST)
                yield at_s, _geometric(chance, MEAN_BURST)


def _geometric(chance: random.Random, mean: float) -> int:
    """A whole number from 1 up: how many trials it takes, by inversion."""
    return 1 + int(math.log(1.0 - chance.random()) / math.log(1.0 - 1.0 / mean))


def _lognormal(chance: random.Random, mean: float) -> float:
    # The mean of exp(N(mu, sigma)) is exp(mu + sigma^2 / 2).
    return chance.lognormvariate(math.log(mean) - SIGMA**2 / 2, SIGMA)
