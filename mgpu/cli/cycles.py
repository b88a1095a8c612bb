"""Cycling a consumer through a running broker, and watching the memory meanwhile.

A cycle is a load, a job if there is one, and an unload, with a wait for the memory to stand still
between them. A job is over when its work is, however early the consumer answers. What the figures
amount to is ``mgpu.cli.figures``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from mgpu.cli.client import Client, action
from mgpu.cli.failures import BrokerSaidNo, TookTooLong
from mgpu.cli.figures import Cycle, judged
from mgpu.config.problems import did_you_mean
from mgpu.core.model import ConsumerState
from mgpu.errors import MgpuError

STATUS_TIMEOUT_S = 10.0
POLL_S = 0.05
MORE_TRIES = 3
"""Cycles beyond those asked for, when some are doubtful."""
_STEADY_TIMES = 20
_STEPS = 3
"""Of a cycle without a job."""
_CALM = frozenset({ConsumerState.RESIDENT, ConsumerState.ABSENT})

Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """A request to the consumer itself."""

    method: str
    path: str
    body: bytes
    content_type: str


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
    (``gpu.sample_interval_s``). ``timeout_s`` is for a load and for an unload, ``job_timeout_s``
    for a job.
    """

    client: Client
    name: str
    settle_s: float
    timeout_s: float
    job_timeout_s: float

    async def status(self) -> Status:
        """The broker's; raise ``BrokerSaidNo`` when there is no such consumer or a GPU is ill."""
        status: Status = await self.client.ask("GET", "/api/status", timeout_s=STATUS_TIMEOUT_S)
        if self.name not in status["consumers"]:
            hint = did_you_mean(self.name, status["consumers"], what="consumers")
            raise BrokerSaidNo(f"there is no consumer {self.name}; {hint}")
        if not status["gpus"]:
            raise BrokerSaidNo("no GPU can be read, so nothing can be measured: see mgpu status")
        ill = [str(gpu["index"]) for gpu in status["gpus"] if not gpu["healthy"]]
        if ill:
            raise BrokerSaidNo(f"GPU {', '.join(ill)}: no measurements; mgpu status says why")
        return status

    async def act(self, verb: str) -> float:
        """Load, unload, pin or unpin; return the seconds it took."""
        asking = self.client.ask("POST", action(self.name, verb), timeout_s=self.timeout_s)
        return await _timed(asking, f"to {verb} {self.name}", self.timeout_s)

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
                job_s = await self._send(job)
                await self.steady()
            advance("unloading")
            # Watched still: without a completion it may compute until it lets itself be unloaded.
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

    async def restore(self, *, resident: bool, pinned: bool) -> None:
        """Make the consumer what it was."""
        try:
            await self.act("load" if resident else "unload")
        finally:
            if pinned:
                await self.act("pin")

    async def _send(self, job: Job) -> float:
        """Do the job; return the seconds until its work was over."""
        path = f"/consumers/{quote(self.name, safe='')}{job.path}"
        limit_s = self.job_timeout_s
        sending = self.client.send(job.method, path, job.body, job.content_type, timeout_s=limit_s)
        return await _timed(sending, "the job", limit_s)

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
            # Who awaits it while it is cancelled would take an interruption of his own for its.
            await asyncio.wait([looking])
            if not looking.cancelled():
                looking.result()


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

    Returns all that were done, and whether the consumer was found absent. ``advance`` is told each
    step as it begins, ``steps`` of them. Raises ``BrokerSaidNo`` when somebody would be disturbed,
    unless forced, and when a load, a job or an unload fails.
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
    async with _left_as_found(bench, consumer, advance):
        advance("unloading")
        if consumer["pinned"]:
            await bench.act("unpin")
        # One that is absent too: who has no way to be unloaded must not be loaded.
        await bench.act("unload")
        while _trusted(done) < cycles and len(done) < cycles + MORE_TRIES:
            done.append(judged(await bench.cycle(job, advance), first=was_absent and not done))
    return done, was_absent


def steps(cycles: int, job: Job | None) -> int:
    """How many steps there are when no cycle is repeated: those of each, the first and the last."""
    return 1 + cycles * (_STEPS + (job is not None)) + 1


@asynccontextmanager
async def _left_as_found(
    bench: Bench, consumer: Mapping[str, Any], advance: Callable[[str], None]
) -> AsyncIterator[None]:
    """Make the consumer what it was, whatever happens; where that fails too, say both."""
    failure: MgpuError | None = None
    try:
        yield
    except MgpuError as error:
        failure = error
        raise
    finally:
        advance("leaving it as it was found")
        try:
            await bench.restore(
                resident=consumer["state"] == ConsumerState.RESIDENT, pinned=consumer["pinned"]
            )
        except MgpuError as error:
            if failure is None:
                raise
            also = f"{bench.name} could not be left as it was found: {error}"
            raise type(failure)(f"{failure}; and {also}") from failure


def _trusted(done: Sequence[Cycle]) -> int:
    return sum(not cycle.doubts for cycle in done)


def _others(status: Status, name: str) -> tuple[str, ...]:
    """How the other consumers are, as far as it moves memory."""
    return tuple(
        f"{other} {each['state']} {bool(each['running'] or each.get('busy'))}"
        for other, each in status["consumers"].items()
        if other != name
    )


async def _timed(doing: Awaitable[object], what: str, limit_s: float) -> float:
    """The seconds that it took; raise ``TookTooLong`` with what it was, and its limit."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        await doing
    except TookTooLong as error:
        longer = f"{what} took longer than {limit_s:g} s; --wait gives it more"
        raise TookTooLong(longer) from error
    return loop.time() - began
