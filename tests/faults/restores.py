"""Promise 8, of those that are brought back while nobody waits: they are never in a job's way.

A load that has begun is not broken off, so that its rest is all that one can cost a job; and whom
no job has used since may leave again at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mgpu.core.effects import Effect, Evicted, StartLoad
from tests.faults.broken import hold

if TYPE_CHECKING:
    from tests.faults.world import World


def check(world: World, effects: Iterable[Effect]) -> None:
    """Raise when, with a client's job waiting, anything but the end of a load is waited for."""
    state = world.state
    name = state.restoring
    if not name or not any(job in world.visits and not j.token for job, j in state.jobs.items()):
        return
    hold(state.restore_job not in state.jobs, f"{name} is being brought back while a job waits")
    if any(job.consumer == name for job in state.jobs.values()):
        return  # its own job wants it now
    swap = state.swaps.get(name)
    begun = swap is None or swap.load_started_at is not None
    hold(begun, f"room is made to bring {name} back while a job waits")
    for effect in effects:
        evicts = isinstance(effect, Evicted) and effect.target == name
        loads = isinstance(effect, StartLoad) and effect.consumer == name
        hold(not evicts and not loads, f"{name} is brought back while a job waits: {effect}")
