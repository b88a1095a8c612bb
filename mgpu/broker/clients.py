"""Those who wait for the scheduler's word: jobs for their leases, people for an answer.

A body that has to stop (its time is up) is cancelled from here and the reason raised in its place,
the way ``asyncio.timeout`` does it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mgpu.core.effects import Abort, Answer, Finish, Grant, Phases
from mgpu.core.events import Event, JobArrived, JobEnded, JobLeft
from mgpu.core.model import Outcome, Refusal
from mgpu.errors import BY_CODE, ClientLeft, JobCancelled, MgpuError
from mgpu.ports import Clock


@dataclass(slots=True)
class Lease:
    """The right to compute. Whoever holds it sets ``failed`` when the consumer's answer was one."""

    job: str
    consumer: str
    token: int
    gpus: tuple[int, ...]
    phases: Phases
    failed: bool = False
    aborted: Refusal | None = None
    """Why its body was told to stop, if it was."""


@dataclass(frozen=True, slots=True)
class _Waiter:
    task: asyncio.Task[object] | None
    granted: asyncio.Future[None]


class Clients:
    """Everybody who waits or computes. ``post`` takes what they want to the scheduler."""

    def __init__(self, clock: Clock, post: Callable[[Event], None]) -> None:
        self._clock = clock
        self._post = post
        self._waiters: dict[str, _Waiter] = {}
        self._leases: dict[str, Lease] = {}
        self._requests: dict[str, asyncio.Future[None]] = {}
        self._request_numbers = itertools.count(1)
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def lease(self, arrival: JobArrived) -> AsyncIterator[Lease]:
        """Wait until a job may compute, and give its lease back when the body ends, however.

        Raises what the job is refused or stopped with, and whatever the body raises.
        """
        job = arrival.job
        outcome = Outcome.FAILED
        try:
            await self._admitted(arrival)
            lease = self._leases[job]
            yield lease
            outcome = Outcome.FAILED if lease.failed else Outcome.DONE
        except asyncio.CancelledError:
            reason = self._reason_to_stop(job)
            if reason is None or isinstance(reason, JobCancelled):
                outcome = Outcome.CANCELLED
            if reason is None:
                raise
            raise reason from None
        finally:
            self._give_back(job, outcome)

    async def loaded(self, arrival: JobArrived) -> None:
        """Wait until a job that only loads is done; raises what it is refused with."""
        try:
            await self._admitted(arrival)
        finally:
            self._give_back(arrival.job, Outcome.CANCELLED)

    async def answer_to(self, event: Callable[[str], Event]) -> None:
        """Post what a person wants under a name of its own, and wait for the answer.

        Raises the ``MgpuError`` that it is refused with.
        """
        request = f"request-{next(self._request_numbers)}"
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests[request] = future
        try:
            self._post(event(request))
            await future
        finally:
            del self._requests[request]

    async def none_computes(self) -> None:
        """Wait until nobody holds a lease."""
        await self._idle.wait()

    def granted(self, effect: Grant) -> None:
        """Wake the job up; what it does with the lease is its own affair."""
        lease = Lease(effect.job, effect.consumer, effect.token, effect.gpus, effect.phases)
        self._leases[effect.job] = lease
        self._idle.clear()
        _settle(self._waiters[effect.job].granted, None)

    def aborted(self, effect: Abort) -> None:
        """Stop a running job."""
        self._leases[effect.job].aborted = effect.refusal
        if (task := self._waiters[effect.job].task) is not None:
            task.cancel()

    def finished(self, effect: Finish) -> None:
        """Tell a job that waits that it need not any longer."""
        if (waiter := self._waiters.get(effect.job)) is not None:
            _settle(waiter.granted, effect.refusal)

    def answered(self, effect: Answer) -> None:
        """Tell a person's request how it went; nobody may be listening any more."""
        if (future := self._requests.get(effect.request)) is not None:
            _settle(future, effect.refusal)

    async def _admitted(self, arrival: JobArrived) -> None:
        """Wait for the scheduler's word on a job."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[arrival.job] = _Waiter(asyncio.current_task(), granted)
        self._post(arrival)
        await granted

    def _reason_to_stop(self, job: str) -> MgpuError | None:
        """Why a job's task was cancelled, when that was done here and by nobody else."""
        lease = self._leases.get(job)
        task = self._waiters[job].task
        if lease is None or lease.aborted is None or task is None or task.uncancel():
            return None
        return _error(lease.aborted)

    def _give_back(self, job: str, outcome: Outcome) -> None:
        """A job's task is through with it: it holds a lease, waits still, or was refused."""
        self._waiters.pop(job, None)
        lease = self._leases.pop(job, None)
        if not self._leases:
            self._idle.set()
        if lease is None:
            self._post(JobLeft(self._clock.now(), job))
        else:
            self._post(JobEnded(self._clock.now(), job, lease.token, outcome))


def _settle(future: asyncio.Future[None], refusal: Refusal | None) -> None:
    """End a wait, unless whoever waited has gone."""
    if future.done():
        return
    if refusal is None:
        future.set_result(None)
    else:
        future.set_exception(_error(refusal))


def _error(refusal: Refusal) -> MgpuError:
    if refusal.code == ClientLeft.code:
        return JobCancelled()  # who is still there to be told has not left
    return BY_CODE[refusal.code](refusal.detail, retry_after_s=refusal.retry_after_s)
