"""The broker as everybody else sees it: take a lease, load, unload, look.

A job is a lease: ``async with broker.lease(...)`` waits until the job may compute and gives the
lease back when its body ends, however it ends. Waiting ends with an error of ``mgpu.errors`` when
the scheduler refuses.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from types import MappingProxyType

import structlog

from mgpu.broker.clients import Clients, Lease
from mgpu.broker.effects import EffectRunner, Observed
from mgpu.broker.loop import Loop
from mgpu.broker.probing import Prober
from mgpu.broker.sampling import Sampler
from mgpu.broker.tasks import Tasks
from mgpu.core import prospects, views
from mgpu.core.events import (
    DrainRequested,
    Event,
    JobArrived,
    JobKind,
    JobLeft,
    PauseRequested,
    PinRequested,
    PolicyChanged,
    RestartRequested,
    ResumeRequested,
    UnloadRequested,
)
from mgpu.core.model import NOTHING_ASKED, ByHand, ConsumerState, Policy
from mgpu.core.scheduler import Scheduler
from mgpu.core.views import JobView, Snapshot
from mgpu.errors import UnknownJob
from mgpu.ports import Clock, ConsumerController, GpuProbe, Keeper, Placement

log = structlog.get_logger(__name__)


class Broker:
    """Everything between a request and the GPU, wired to one scheduler.

    ``observe`` is told every fact and every job's grant and end, ``observe_decision`` how many
    seconds each decision took. ``keeper`` writes down what people ask for, ``kept`` is what they
    had asked for when the program last ran.
    """

    def __init__(  # noqa: PLR0913 - it is where everything meets
        self,
        policy: Policy,
        *,
        controllers: MutableMapping[str, ConsumerController],
        probe: GpuProbe,
        clock: Clock,
        first_token: int,
        sample_interval_s: float,
        observe: Callable[[Observed], None],
        observe_decision: Callable[[float], None],
        keeper: Keeper,
        learned_mib: Mapping[str, tuple[int, int]] = MappingProxyType({}),
        kept: ByHand = NOTHING_ASKED,
    ) -> None:
        self._scheduler = Scheduler(policy, first_token, learned_mib, kept)
        self._controllers = controllers
        self._probers: dict[str, asyncio.Task[None]] = {}
        self._clock = clock
        self._keeper = keeper
        self._tasks = Tasks()
        self._clients = Clients(clock, self._post)
        self._sampler = Sampler(probe, clock, self._post, sample_interval_s)
        self._prober = Prober(controllers, self._attempt_of, clock, self._post)
        self._effects = EffectRunner(
            clients=self._clients,
            forget=self._forget,
            controllers=controllers,
            placement_of=self._placement,
            clock=clock,
            tasks=self._tasks,
            post=self._post,
            sampler=self._sampler,
            prober=self._prober,
            keeper=keeper,
            observe=observe,
        )
        self._loop = Loop(self._scheduler, self._effects.run, observe_decision)

    def start(self) -> None:
        """Begin to watch the GPUs and the consumers."""
        self._tasks.spawn("sample the GPUs", self._sampler.run())
        self._ask_everybody()

    def reconfigure(self, policy: Policy, controllers: Mapping[str, ConsumerController]) -> None:
        """Live by other rules from now on.

        ``controllers`` are those of consumers that are new or controlled in another way than
        before. Who is not in the rules any more is unloaded when idle, then forgotten.
        """
        self._controllers.update(controllers)
        for name in self._scheduler.state.kept.pins.keys() - policy.consumers.keys():
            log.info("a pin by hand is forgotten: it is not configured any more", consumer=name)
        self._loop.post(PolicyChanged(self._clock.now(), policy))
        self._ask_everybody()

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new, refuse who waits, and let running jobs end; False when time is up."""
        self._loop.post(DrainRequested(self._clock.now()))
        try:
            async with asyncio.timeout(timeout_s):
                await self._clients.none_computes()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End every background task."""
        self._effects.close()
        await self._tasks.close()

    def new_job_id(self) -> str:
        """An identifier that no other job has."""
        return uuid.uuid4().hex

    @asynccontextmanager
    async def lease(  # noqa: PLR0913 - what a job may ask for
        self,
        job: str,
        consumer: str,
        *,
        priority: int | None = None,
        max_wait_s: float | None = None,
        idle_unload_s: float | None = None,
        load_key: str | None = None,
    ) -> AsyncIterator[Lease]:
        """Hold a lease on a consumer's GPUs for as long as the body runs.

        ``idle_unload_s``: how long the consumer may be idle after it, infinity for ever; None
        stands, as for the others, for what the policy says. ``load_key``: with what the consumer
        must be loaded (``mgpu.config.residency``); None: with anything.

        Raises an ``AdmissionError`` or ``LoadFailed`` when the job is refused, ``JobTimeout`` when
        the body ran longer than it may, and whatever the body raises.
        """
        arrival = JobArrived(
            self._clock.now(),
            job,
            consumer,
            priority=priority,
            max_wait_s=max_wait_s,
            idle_unload_s=idle_unload_s,
            load_key=load_key,
        )
        async with self._clients.lease(arrival) as lease:
            yield lease

    async def load(self, consumer: str, load_key: str | None = None) -> None:
        """Make a consumer resident; raises what a job for it would be refused with.

        ``load_key``: as for ``lease``; one that is loaded otherwise is loaded anew when it is idle.
        """
        job, now = self.new_job_id(), self._clock.now()
        arrival = JobArrived(now, job, consumer, kind=JobKind.LOAD, load_key=load_key)
        await self._clients.loaded(arrival)

    async def unload(self, consumer: str) -> None:
        """Make a consumer absent, its running jobs first; raises ``MgpuError`` when it fails."""
        await self._clients.answer_to(
            lambda request: UnloadRequested(self._clock.now(), request, consumer)
        )

    async def restart(self, consumer: str) -> None:
        """Stop a consumer, whatever it does, and load it again if there is a way to.

        Raises ``MgpuError`` when it cannot be stopped, or what a job that loads is refused with.
        """
        log.info("restarting", consumer=consumer)
        await self._clients.answer_to(
            lambda request: RestartRequested(self._clock.now(), request, consumer)
        )
        state = self._scheduler.state
        if state.consumers[consumer].policy.can_load and not state.paused:
            await self.load(consumer)

    async def pin(self, consumer: str, *, pinned: bool) -> None:
        """Keep a consumer in VRAM from now on, or do not any more; returns when that is kept."""
        log.info("pinned" if pinned else "unpinned", consumer=consumer)
        self._loop.post(PinRequested(self._clock.now(), consumer, pinned))
        await self._keeper.written()

    async def pause(self) -> None:
        """Hold the queue; returns when everybody who can leave has left, or at ``resume``.

        It is paused from the first moment, and kept so when this returns. Raises ``UnloadFailed``
        when somebody may hold memory still; it is paused all the same.
        """
        log.info("paused")
        await self._clients.answer_to(lambda request: PauseRequested(self._clock.now(), request))
        await self._keeper.written()

    async def resume(self) -> None:
        """Go on after a pause, at once; returns when that is kept."""
        log.info("resumed")
        self._loop.post(ResumeRequested(self._clock.now()))
        await self._keeper.written()

    def cancel(self, job: str) -> None:
        """Nobody wants this job's result any more."""
        self._loop.post(JobLeft(self._clock.now(), job))

    def probe_soon(self, consumer: str) -> None:
        """Ask a consumer how it is now: it is known to have changed."""
        self._prober.probe_soon(consumer)

    def places(self, consumer: str) -> list[Placement]:
        """Where a consumer may live, first where it is taken to live; empty before GPUs were read.

        Unknown consumers have no place.
        """
        state = self._scheduler.state
        if (known := state.consumers.get(consumer)) is None:
            return []
        choices = dict.fromkeys([known.gpus, *prospects.choices(state, known)])
        return [self._placement(gpus) for gpus in choices if gpus and set(gpus) <= set(state.gpus)]

    def jobs(self) -> tuple[JobView, ...]:
        """Every job that runs, then those that wait, in the order in which they are served."""
        return views.jobs(self._scheduler.state, self._clock.now())

    def job(self, job: str) -> JobView:
        """One job that has not ended; raise ``UnknownJob``."""
        view = views.job(self._scheduler.state, job, self._clock.now())
        if view is None:
            raise UnknownJob(f"There is no job {job!r}, or it has ended.")
        return view

    @property
    def revision(self) -> Hashable:
        """Another one whenever a job came, began or went, and when the broker was paused or drains.

        Made in no time: it is asked for after every decision.
        """
        state = self._scheduler.state
        return state.next_seq, state.waiting, len(state.jobs), state.paused, state.draining

    def snapshot(self) -> Snapshot:
        """Everything as it is now."""
        return views.take(self._scheduler.state, self._clock.now())

    @property
    def ready_problems(self) -> tuple[str, ...]:
        """Why no job should be sent here now; empty when ready."""
        state = self._scheduler.state
        problems = []
        if state.draining:
            problems.append("the broker is shutting down")
        if state.paused:
            problems.append("the broker is paused")
        if not state.gpus:
            problems.append(state.gpus_error or "no GPU has been read yet")
        problems += [f"GPU {gpu.index}: {gpu.error}" for gpu in state.gpus.values() if gpu.error]
        problems += [
            f"{name} has not been asked yet"
            for name, consumer in state.consumers.items()
            if consumer.state is ConsumerState.UNKNOWN
        ]
        return tuple(problems)

    def _forget(self, consumer: str) -> None:
        """Leave a consumer alone that is not there any more."""
        if (prober := self._probers.pop(consumer, None)) is not None:
            prober.cancel()
        if (controller := self._controllers.pop(consumer, None)) is not None:
            self._tasks.spawn(f"close {consumer}", controller.close())

    def _ask_everybody(self) -> None:
        """Begin to watch the consumers that nobody watches yet."""
        for name in self._scheduler.state.consumers:
            if name not in self._probers:
                self._probers[name] = self._tasks.spawn(f"probe {name}", self._prober.run(name))

    def _placement(self, gpus: tuple[int, ...]) -> Placement:
        return Placement(gpus, tuple(self._scheduler.state.gpus[index].uuid for index in gpus))

    def _attempt_of(self, consumer: str) -> int:
        return self._scheduler.state.consumers[consumer].attempt

    def _post(self, event: Event) -> None:
        self._loop.post(event)
