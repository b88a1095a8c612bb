"""Cycling a consumer through a running broker and watching how much memory it takes.

A cycle is an unload, a load, a job if there is one, and an unload. Where the broker tells what the
consumer's own processes hold (``held_mib``), that is what is measured. Elsewhere only the free
memory of the GPUs is known, so the figure is a difference, and good only while nobody else takes or
gives any: a cycle in which somebody did is doubtful, and is done again.

A difference says nothing of what the consumer held before it began. One that was found absent, and
whose first load left something behind, held nothing; otherwise it is taken to have held the
residual that is configured.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import quote

from mgpu.cli.client import BrokerSaidNo, Client, action
from mgpu.config.problems import did_you_mean
from mgpu.core.model import ConsumerState

STATUS_TIMEOUT_S = 10.0
POLL_S = 0.05
MORE_TRIES = 3
"""Cycles beyond those asked for, when some are doubtful."""
TOLERANCE_MIB = 16
"""Free memory may differ by this much without anybody being suspected."""
_STEADY_TIMES = 20
_CALM = frozenset({ConsumerState.RESIDENT, ConsumerState.ABSENT})

Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """A request to the consumer itself."""

    method: str
    path: str
    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Cycle:
    """What was seen. Figures of free memory are sums over all GPUs.

    ``held_peak_mib`` and ``held_after_mib`` are what its processes held; None: nobody can tell.
    ``doubts`` say why the differences of free memory are not to be trusted.
    """

    free_before_mib: int
    free_low_mib: int
    free_after_mib: int
    held_peak_mib: int | None
    held_after_mib: int | None
    load_s: float
    job_s: float | None
    unload_s: float
    doubts: tuple[str, ...] = ()

    @property
    def by_process(self) -> bool:
        """Whether its own processes' figures are known."""
        return self.held_peak_mib is not None and self.held_after_mib is not None


@dataclass(frozen=True, slots=True)
class Figures:
    """The result: medians over the cycles that can be trusted.

    ``residual_mib`` None: without figures by process it could not be seen.
    """

    counted: tuple[tuple[Cycle, int], ...]
    """The cycles, each with its footprint."""
    footprint_mib: int
    residual_mib: int | None
    load_s: float
    job_s: float | None
    unload_s: float
    doubts: tuple[str, ...]


@dataclass(slots=True)
class _Watch:
    """The extremes of what the status said while it was looked at."""

    name: str
    free_low_mib: int = 1 << 62
    held_peak_mib: int | None = None
    others: set[tuple[str, ...]] = field(default_factory=set)

    def see(self, status: Status) -> None:
        self.free_low_mib = min(self.free_low_mib, free_mib(status))
        held = status["consumers"][self.name].get("held_mib")
        if held is not None:
            self.held_peak_mib = max(held, self.held_peak_mib or 0)
        self.others.add(_others(status, self.name))


@dataclass(frozen=True, slots=True)
class Bench:
    """What measures: a broker, the consumer's name, and how long memory must stand still.

    ``settle_s`` has to be longer than the broker takes between two measurements when it is idle
    (``gpu.sample_interval_s``).
    """

    client: Client
    name: str
    settle_s: float
    timeout_s: float

    async def status(self) -> Status:
        """The broker's; raise ``BrokerSaidNo`` when there is no such consumer or a GPU is ill."""
        status: Status = await self.client.ask("GET", "/api/status", timeout_s=STATUS_TIMEOUT_S)
        if self.name not in status["consumers"]:
            hint = did_you_mean(self.name, status["consumers"], what="consumers")
            raise BrokerSaidNo(f"there is no consumer {self.name}; {hint}")
        ill = [gpu["index"] for gpu in status["gpus"] if not gpu["healthy"]]
        if ill or not status["gpus"]:
            raise BrokerSaidNo(f"GPU {', '.join(map(str, ill)) or 'none'}: no measurements")
        return status

    async def act(self, verb: str) -> float:
        """Load, unload, pin or unpin; return the seconds it took."""
        return await _timed(
            self.client.ask("POST", action(self.name, verb), timeout_s=self.timeout_s)
        )

    async def steady(self) -> Status:
        """Wait until the memory has stood still for ``settle_s``; return the last status.

        After twenty times as long it is taken as it is.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _STEADY_TIMES * self.settle_s
        last, since = None, loop.time()
        while True:
            status = await self.status()
            seen = (free_mib(status), status["consumers"][self.name].get("held_mib"))
            if seen != last:
                last, since = seen, loop.time()
            if loop.time() - since >= self.settle_s or loop.time() >= deadline:
                return status
            await asyncio.sleep(POLL_S)

    async def cycle(self, job: Job | None, advance: Callable[[str], None]) -> Cycle:
        """Load, compute and unload one that is absent."""
        advance("waiting for the memory to stand still")
        before = await self.steady()
        watch = _Watch(self.name)
        watch.see(before)
        async with self._watching(watch):
            advance("loading")
            load_s = await self.act("load")
            await self.steady()
            job_s = None
            if job is not None:
                advance("computing")
                job_s = await _timed(self._send(job))
                await self.steady()
        advance("unloading")
        unload_s = await self.act("unload")
        after = await self.steady()
        watch.others.add(_others(after, self.name))
        return Cycle(
            free_before_mib=free_mib(before),
            free_low_mib=watch.free_low_mib,
            free_after_mib=free_mib(after),
            held_peak_mib=watch.held_peak_mib,
            held_after_mib=after["consumers"][self.name].get("held_mib"),
            load_s=load_s,
            job_s=job_s,
            unload_s=unload_s,
            doubts=("other consumers worked, came or went",) if len(watch.others) > 1 else (),
        )

    async def _send(self, job: Job) -> None:
        path = f"/consumers/{quote(self.name, safe='')}{job.path}"
        await self.client.send(
            job.method, path, job.body, job.content_type, timeout_s=self.timeout_s
        )

    @asynccontextmanager
    async def _watching(self, watch: _Watch) -> AsyncIterator[None]:
        async def look() -> None:
            while True:
                watch.see(await self.status())
                await asyncio.sleep(POLL_S)

        looking = asyncio.create_task(look())
        try:
            yield
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError):
                await looking


def free_mib(status: Status) -> int:
    """The free memory of all GPUs together."""
    return sum(gpu["free_mib"] for gpu in status["gpus"])


def obstacles(status: Status, name: str) -> Iterator[str]:
    """Why this is no time to measure; all of it can be forced but a state that is no rest."""
    consumers = status["consumers"]
    if status.get("paused") or status.get("draining"):
        yield "the broker is paused"
    if consumers[name]["pinned"]:
        yield f"{name} is pinned"
    waiting = len(status["queue"])
    if waiting:
        yield f"{waiting} job{'s wait' if waiting > 1 else ' waits'}"
    computing = [n for n, each in consumers.items() if each["running"] or each.get("busy")]
    if computing:
        yield f"{', '.join(computing)} {'compute' if len(computing) > 1 else 'computes'}"


async def measure(
    bench: Bench, cycles: int, job: Job | None, *, force: bool, advance: Callable[[str], None]
) -> tuple[list[Cycle], bool]:
    """Do so many cycles that can be trusted, and leave the consumer as it was found.

    Returns all that were done, and whether the consumer was found absent. Raises ``BrokerSaidNo``
    when somebody would be disturbed, unless forced.
    """
    found = await bench.status()
    consumer = found["consumers"][bench.name]
    if consumer["state"] not in _CALM:
        raise BrokerSaidNo(f"{bench.name} is {consumer['state']}: measure it when it is at rest")
    reasons = list(obstacles(found, bench.name))
    if reasons and not force:
        raise BrokerSaidNo(f"{'; '.join(reasons)}: measure later, or with --force")
    was_absent = consumer["state"] == ConsumerState.ABSENT
    done: list[Cycle] = []
    try:
        if consumer["pinned"]:
            await bench.act("unpin")
        if not was_absent:
            await bench.act("unload")
        while _trusted(done) < cycles and len(done) < cycles + MORE_TRIES:
            done.append(_judged(await bench.cycle(job, advance), first=was_absent and not done))
    finally:
        advance("leaving it as it was found")
        await bench.act("unload" if was_absent else "load")
        if consumer["pinned"]:
            await bench.act("pin")
    return done, was_absent


def figures(
    done: Sequence[Cycle], wanted: int, *, was_absent: bool, configured_residual_mib: int
) -> Figures:
    """What the cycles amount to; doubtful ones count only when there are no others.

    ``doubts`` are there when fewer than ``wanted`` could be trusted.
    """
    trusted = [cycle for cycle in done if not cycle.doubts]
    counted = trusted or list(done)
    doubts = dict.fromkeys(doubt for cycle in done for doubt in cycle.doubts)
    residual_mib = _left_behind(done, counted, was_absent=was_absent)
    held_before_mib = configured_residual_mib if residual_mib is None else residual_mib
    footprints = tuple(
        cycle.held_peak_mib
        if cycle.held_peak_mib is not None and cycle.by_process
        else cycle.free_before_mib
        - cycle.free_low_mib
        + (0 if residual_mib is not None and cycle is done[0] else held_before_mib)
        for cycle in counted
    )
    jobs = [cycle.job_s for cycle in counted if cycle.job_s is not None]
    return Figures(
        counted=tuple(zip(counted, footprints, strict=True)),
        footprint_mib=round(statistics.median(footprints)),
        residual_mib=residual_mib,
        load_s=statistics.median(cycle.load_s for cycle in counted),
        job_s=statistics.median(jobs) if jobs else None,
        unload_s=statistics.median(cycle.unload_s for cycle in counted),
        doubts=tuple(doubts) if len(trusted) < wanted else (),
    )


def _left_behind(
    done: Sequence[Cycle], counted: Sequence[Cycle], *, was_absent: bool
) -> int | None:
    """The residual; without figures by process it is seen at most once, after the first load.

    Whoever took memory in another cycle may have done so in that one, too.
    """
    rests = [cycle.held_after_mib for cycle in counted if cycle.held_after_mib is not None]
    if len(rests) == len(counted):
        return round(statistics.median(rests))
    left = done[0].free_before_mib - done[0].free_after_mib
    seen = was_absent and left > 0 and not any(cycle.doubts for cycle in done)
    return left if seen else None


def _judged(cycle: Cycle, *, first: bool) -> Cycle:
    """Doubt a cycle that ended with other free memory than it began with.

    The first load of a process may leave a residual behind: less is no surprise then.
    """
    if cycle.by_process:
        return replace(cycle, doubts=())
    more = cycle.free_after_mib - cycle.free_before_mib
    if more > TOLERANCE_MIB or (more < -TOLERANCE_MIB and not first):
        what = f"somebody else {'gave back' if more > 0 else 'took'} {abs(more)} MiB meanwhile"
        return replace(cycle, doubts=(*cycle.doubts, what))
    return cycle


def _trusted(done: Sequence[Cycle]) -> int:
    return sum(not cycle.doubts for cycle in done)


def _others(status: Status, name: str) -> tuple[str, ...]:
    """How the other consumers are, as far as it moves memory."""
    return tuple(
        f"{other} {each['state']} {bool(each['running'] or each.get('busy'))}"
        for other, each in status["consumers"].items()
        if other != name
    )


async def _timed(doing: Any) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await doing
    return loop.time() - began
