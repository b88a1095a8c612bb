"""In which phase of its job a client is, as the scheduler's state tells it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mgpu.core.model import ConsumerState
from tests.faults.kinds import Fault

if TYPE_CHECKING:
    from tests.faults.world import World

PHASES = {
    Fault.LEAVES_QUEUED: "queued",
    Fault.LEAVES_EVICTING: "evicting",
    Fault.LEAVES_SETTLING: "settling",
    Fault.LEAVES_LOADING: "loading",
    Fault.LEAVES_COMPUTING: "computing",
    Fault.LEAVES_STREAMING: "streaming",
}


def clients_in(world: World, phase: str) -> Iterator[str]:
    """Jobs whose clients are in this phase."""
    for visit in world.visits.values():
        if _phase(world, visit.job, visit.consumer) == phase:
            yield visit.job


def _phase(world: World, job_id: str, name: str) -> str | None:  # noqa: PLR0911 - one a phase
    state = world.state
    job, consumer = state.jobs.get(job_id), state.consumers[name]
    if job is None:
        return None
    if job.token:
        computing = world.machine.services[name].computing.get(job_id)
        if computing is None:
            return None
        half_way = (computing.began_at + min(computing.ends_at, computing.began_at + 10.0)) / 2
        return "streaming" if world.now > half_way else "computing"
    if consumer.state is ConsumerState.LOADING:
        return "loading"
    if (swap := state.swaps.get(name)) is None:
        return "queued"
    unloads = [state.consumers[victim].unload for victim in swap.victims]
    if unloads and all(unload is not None and unload.answered for unload in unloads):
        return "settling"
    return "evicting"
