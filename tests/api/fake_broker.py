"""A broker that is a lock: one job computes at a time, the others wait in order."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from mgpu import errors
from mgpu.core.effects import Phases
from mgpu.core.model import ConsumerState
from mgpu.core.views import ConsumerView, GpuView, JobView, Snapshot, WaiterView

DEADLINE_S = 5.0
PHASES = Phases(queue_s=0.25, evict_s=0.5, load_s=1.0)


@dataclass
class FakeLease:
    job: str
    consumer: str
    token: int
    gpus: tuple[int, ...] = (0,)
    phases: Phases = PHASES
    failed: bool = False


@dataclass
class Asked:
    """What a job asked for."""

    consumer: str
    priority: int | None
    max_wait_s: float | None
    idle_unload_s: float | None = None
    load_key: str | None = None


@dataclass
class FakeBroker:
    consumers: tuple[str, ...] = ("tts",)
    refuse: errors.MgpuError | None = None
    job_timeout_s: float | None = None
    ready_problems: tuple[str, ...] = ()
    waiting: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    asked: dict[str, Asked] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    actions: list[str] = field(default_factory=list)
    load_keys: list[str | None] = field(default_factory=list)
    states: dict[str, ConsumerState] = field(default_factory=dict)
    pinned: frozenset[str] = frozenset()
    paused: bool = False
    paused_s: float | None = None
    pause_kept: bool = False
    eta_s: float | None = None
    unwell: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self._lock = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._watchers: list[tuple[Callable[[FakeBroker], bool], asyncio.Event]] = []

    def new_job_id(self) -> str:
        return f"job-{next(self._numbers)}"

    @asynccontextmanager
    async def lease(
        self,
        job: str,
        consumer: str,
        *,
        priority: int | None = None,
        max_wait_s: float | None = None,
        idle_unload_s: float | None = None,
        load_key: str | None = None,
    ) -> AsyncIterator[FakeLease]:
        self.asked[job] = Asked(consumer, priority, max_wait_s, idle_unload_s, load_key)
        if self.refuse is not None:
            self._end(job, "rejected")
            raise self.refuse
        await self._granted(job)
        lease = FakeLease(job, consumer, len(self.asked))
        try:
            async with asyncio.timeout(self.job_timeout_s):
                yield lease
        except asyncio.CancelledError:
            self._end(job, "cancelled")
            raise
        except TimeoutError:
            self._end(job, "failed")
            raise errors.JobTimeout from None
        except BaseException:
            self._end(job, "failed")
            raise
        else:
            self._end(job, "failed" if lease.failed else "done")
        finally:
            self._lock.release()

    async def load(self, consumer: str, load_key: str | None = None) -> None:
        await self._act("load", consumer, ConsumerState.RESIDENT)
        self.load_keys.append(load_key)

    async def unload(self, consumer: str) -> None:
        await self._act("unload", consumer, ConsumerState.ABSENT)

    async def restart(self, consumer: str) -> None:
        await self._act("restart", consumer, ConsumerState.RESIDENT)

    async def pin(self, consumer: str, *, pinned: bool) -> None:
        self.actions.append(f"{'pin' if pinned else 'unpin'} {consumer}")
        self.pinned = self.pinned | {consumer} if pinned else self.pinned - {consumer}

    async def pause(self) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.actions.append("pause")
        self.paused = True

    async def resume(self) -> None:
        self.actions.append("resume")
        self.paused = False

    def cancel(self, job: str) -> None:
        self.actions.append(f"cancel {job}")

    def jobs(self) -> tuple[JobView, ...]:
        running = [JobView(j, self.asked[j].consumer, 0, 0.5, ran_s=2.5) for j in self.running]
        waiting = [
            JobView(j, self.asked[j].consumer, 0, 1.5, position, self.eta_s)
            for position, j in enumerate(self.waiting, 1)
        ]
        return (*running, *waiting)

    def job(self, job: str) -> JobView:
        for view in self.jobs():
            if view.job == job:
                return view
        raise errors.UnknownJob

    def snapshot(self) -> Snapshot:
        gpu = GpuView(
            index=0,
            uuid="GPU-0",
            name="Fake",
            healthy=True,
            error=None,
            total_mib=24576,
            free_mib=20000,
            reserved_mib=16,
            foreign_mib=8,
            lock_consumer=self.asked[self.running[0]].consumer if self.running else None,
            lock_jobs=tuple(self.running),
        )
        view = ConsumerView(
            name="",
            state=ConsumerState.ABSENT,
            healthy=True,
            footprint_mib=2400,
            measured_mib=None,
            gpus=(0,),
            running=0,
            queued=0,
            last_used_s=None,
            pinned=False,
        )
        consumers = {
            name: replace(
                view,
                name=name,
                state=self.states.get(name, ConsumerState.ABSENT),
                pinned=name in self.pinned,
                healthy=name not in self.unwell,
            )
            for name in self.consumers
        }
        queue = tuple(
            WaiterView(job, self.asked[job].consumer, position, 1.5, self.eta_s)
            for position, job in enumerate(self.waiting, 1)
        )
        return Snapshot(
            (gpu,),
            consumers,
            queue,
            len(queue),
            draining=False,
            evictions=3,
            loads=4,
            paused=self.paused,
            paused_s=self.paused_s,
            pause_kept=self.pause_kept,
        )

    async def until(self, true: Callable[[FakeBroker], bool], within_s: float = DEADLINE_S) -> None:
        """Wait until something is so; fails the test when it is not in time."""
        if true(self):
            return
        reached = asyncio.Event()
        self._watchers.append((true, reached))
        async with asyncio.timeout(within_s):
            await reached.wait()

    async def hold(self) -> None:
        """Take the lock, so that jobs wait."""
        await self._lock.acquire()

    def let_go(self) -> None:
        self._lock.release()

    async def _granted(self, job: str) -> None:
        self.waiting.append(job)
        self._tell()
        try:
            await self._lock.acquire()
        except asyncio.CancelledError:
            self.waiting.remove(job)
            self._end(job, "cancelled")
            raise
        self.waiting.remove(job)
        self.running.append(job)
        self._tell()

    async def _act(self, action: str, consumer: str, state: ConsumerState) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.actions.append(f"{action} {consumer}")
        self.states[consumer] = state

    def _end(self, job: str, outcome: str) -> None:
        assert job not in self.outcomes, "a job ends once"
        self.outcomes[job] = outcome
        if job in self.running:
            self.running.remove(job)
        self._tell()

    def _tell(self) -> None:
        for true, reached in self._watchers:
            if true(self):
                reached.set()
