"""Promises 3, 5 and 11: who computes, where, beside whom, how often, and on what.

Under the exclusive lock one consumer computes on a GPU; a job ends exactly once, is granted at most
once, only while its consumer is there, and never on one that is loaded otherwise than it asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpu.core.effects import Abort, Effect, Finish, Grant
from mgpu.core.events import JobEnded
from mgpu.core.model import LockMode
from tests.faults.broken import hold

if TYPE_CHECKING:
    from tests.faults.world import World


def check_grant(world: World, grant: Grant) -> None:
    """It waited, its token is new, and its consumer stays and can be seen."""
    records, job, name = world.records, grant.job, grant.consumer
    hold(job in records.waiting, f"{job} is granted and does not wait")
    hold(grant.token > records.last_token, f"token {grant.token} after {records.last_token}")
    hold(not world.draining, f"{job} is granted while the broker drains")
    hold(name not in records.leaving, f"{name} is on its way out, and takes {job}")
    for gpu in grant.gpus:
        hold(records.readable.get(gpu, False), f"{job} is granted on GPU {gpu}, which is blind")


def check_loaded(world: World, grant: Grant) -> None:
    """Its consumer is there, loaded as the job asked for: unless nobody could know of that."""
    job, name = grant.job, grant.consumer
    service = world.machine.services[name]
    loads = service.spec.policy.can_load and not service.spec.policy.vram_managed
    there = service.loaded or service.doubtful or not loads
    hold(there, f"{job} is granted and {name} is not there")
    wanted, key = world.state.jobs[job].load_key, service.loaded_key
    asked_for = wanted is None or not service.loaded or service.doubtful or wanted == key
    hold(asked_for, f"{job} wants {name} loaded with {wanted}, and it is with {key or 'what?'}")


def check_lock(world: World, grant: Grant) -> None:
    """Nobody else computes on its GPUs, nor one that has not answered to being stopped there."""
    if world.state.policy.lock is not LockMode.EXCLUSIVE:
        return
    job, gpus = grant.job, set(grant.gpus)
    for other, lease in world.records.leases.items():
        apart = lease.consumer == grant.consumer or not set(lease.gpus) & gpus
        hold(apart, f"{job} and {other} compute at once")
    for name, cut in world.records.cut.items():
        apart = name == grant.consumer or not set(cut) & gpus
        hold(apart, f"{job} computes while {name} may do so")


def check_finish(world: World, finish: Finish) -> None:
    """It ends for the first time, and was told to stop if it is still at work."""
    records, job = world.records, finish.job
    if job not in world.visits:
        hold(job.startswith("preload-"), f"{job} ended twice, or never came")
        return
    hold(job not in records.ended, f"{job} ended twice")
    if records.computes(job):
        hold(job in records.aborted, f"{job} is ended while it computes")


def check_abort(world: World, abort: Abort) -> None:
    """Only one that computes is told to stop."""
    hold(abort.job in world.records.leases, f"{abort.job} is told to stop and does not compute")


def check_old_token(world: World, event: JobEnded, effects: list[Effect]) -> None:
    """A release with another token than the lease's ends nothing."""
    lease = world.records.leases.get(event.job)
    if lease is not None and lease.token == event.token:
        return
    for effect in effects:
        ended = isinstance(effect, Finish) and effect.job == event.job
        hold(not ended, f"an old token ended {event.job}")
