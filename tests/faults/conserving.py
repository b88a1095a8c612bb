"""Promise 7: the oldest job of the highest priority never waits for what it could have."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mgpu.core.jobs import Job
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import LockMode
from mgpu.core.state import Consumer
from tests.faults import books
from tests.faults.broken import hold

if TYPE_CHECKING:
    from tests.faults.world import World


def check(world: World) -> None:
    """Raise when that job waits for what it could have."""
    state = world.state
    if state.paused or state.draining:
        return
    first = _first(world)
    if first is None:
        return
    consumer, job = first
    if consumer.state is S.RESIDENT and not consumer.suits(job):
        hold(not _could_be_reloaded(consumer), f"{job.id} waits, and nobody makes way for its load")
    elif consumer.state is S.RESIDENT:
        hold(not _could_compute(world, consumer), f"{job.id} could compute and waits")
    elif consumer.state is S.ABSENT and consumer.name not in state.swaps:
        hold(not _could_load(world, consumer), f"{job.id} waits, and nobody loads for it")


def _first(world: World) -> tuple[Consumer, Job] | None:
    """The job that is both the oldest and of the highest priority, if there is one."""
    oldest: tuple[Consumer, Job] | None = None
    highest = -(1 << 30)
    for consumer in world.state.consumers.values():
        for job in consumer.waiting:
            highest = max(highest, job.priority)
            if oldest is None or job.seq < oldest[1].seq:
                oldest = (consumer, job)
    return oldest if oldest is not None and oldest[1].priority == highest else None


def _could_compute(world: World, consumer: Consumer) -> bool:
    state, readable = world.state, world.records.readable
    if len(consumer.running) >= consumer.policy.concurrency or not consumer.gpus:
        return False
    exclusive = state.policy.lock is LockMode.EXCLUSIVE
    return all(
        readable.get(gpu, False)
        and not (exclusive and state.gpus[gpu].holders.keys() - {consumer.name})
        for gpu in consumer.gpus
    )


def _could_be_reloaded(consumer: Consumer) -> bool:
    """Whether nobody can do with what is loaded, so that it is to be loaded anew."""
    others = any(consumer.suits(job) for job in consumer.waiting)
    return not consumer.running and not consumer.busy and not others


def _could_load(world: World, target: Consumer) -> bool:
    """With nothing else going on: whether it fits, or would if one idle consumer left."""
    state, records, now = world.state, world.records, world.now
    sighted = all(records.readable.get(gpu, False) for gpu in state.gpus)
    # Figures of the same moment may be from before a job was done that loaded its consumer.
    filled = any(room.filled_at == now for room in state.rooms.values())
    quiet = not state.swaps and records.read_at == now and sighted and not filled
    still = all(
        c.state in {S.RESIDENT, S.ABSENT} and not c.running for c in state.consumers.values()
    )
    if not quiet or not still or not state.gpus:
        return False
    idle = [
        c.name
        for c in state.consumers.values()
        if c.state is S.RESIDENT
        and not c.waiting
        and not c.pinned
        and c is not target
        and c.policy.can_unload
        and not c.policy.vram_managed
        and not target.policy.can_coexist_with & {c.name, "*"}
        and c.resident_since + state.policy.min_resident_s <= now
    ]
    homes = [target.policy.gpus] if target.policy.gpus else [(g,) for g in state.gpus]
    most = state.policy.max_resident or math.inf
    others = books.others_there(state, target.name)
    return any(
        others - len(gone) < most and books.fits(state, records.rooms, target, gpus, gone)
        for gpus in homes
        for gone in [[], *([name] for name in idle)]
    )
