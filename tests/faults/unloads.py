"""Promises 1 and 4, of unloads: from under nobody, to the end, and believed when it is measured.

Nobody is unloaded under a running job that was not cut off before, and who is on the way out does
not come back to life.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mgpu.core.effects import Effect, StartUnload, StateChanged, UnloadMeasured
from mgpu.core.events import ConsumerProbed, UnloadEnded
from mgpu.core.model import ConsumerState as S
from tests.faults import books
from tests.faults.broken import hold

if TYPE_CHECKING:
    from tests.faults.world import World


def check_start(world: World, unload: StartUnload) -> None:
    """There is a way to do it, and no job is in its way."""
    name = unload.consumer
    policy = world.state.consumers[name].policy
    hold(policy.can_unload and not policy.vram_managed, f"{name} cannot be unloaded")
    hold(not unload.escalate or policy.can_escalate, f"{name} has no harder way")
    for job, lease in world.records.leases.items():
        hold(lease.consumer != name, f"{name} is unloaded under {job}")


def check_change(world: World, change: StateChanged) -> None:
    """Who leaves does leave, and with its memory."""
    name = change.consumer
    if change.new is S.RESIDENT:
        hold(name not in world.records.leaving, f"{name} comes back to life")
    measured = change.old is S.UNLOADING and change.reason == "its memory is free"
    if change.new is S.ABSENT and measured:
        _check_really_left(world, name)


def _check_really_left(world: World, name: str) -> None:
    """Memory that is believed to be free is, unless others moved memory beside it.

    Of one that is still to be measured nobody knows what is to come back.
    """
    machine, records = world.machine, world.records
    service, consumer = machine.services[name], world.state.consumers[name]
    if consumer.needs_unknown or records.shaken:
        return
    if any(name in victims for victims in records.swaps_before.values()):
        return
    since = records.unload_began_at.get(name, -math.inf)
    for gpu in consumer.gpus:
        moved = {whose for at, whose in machine.memory.moved_at[gpu] if at >= since}
        if moved <= {name}:
            held_mib = service.held_mib.get(gpu, 0)
            most_mib = 0.25 * books.share(books.need_mib(consumer), consumer.gpus)
            hold(held_mib <= most_mib, f"{name} is believed gone and holds {held_mib} MiB")


def check_old_answer(world: World, event: UnloadEnded, effects: list[Effect]) -> None:
    """An answer to an older unload changes nothing."""
    records, name = world.records, event.consumer
    if records.unloads.get(name) == event.attempt:
        return
    unload = world.state.consumers[name].unload
    believed = unload is not None and unload.answered and not records.answered
    hold(not believed, f"an old answer ended {name}'s unload")
    for effect in effects:
        if isinstance(effect, UnloadMeasured) and effect.consumer == name:
            hold(effect.ok, f"an old answer ended {name}'s unload")


def check_old_probe(world: World, event: ConsumerProbed, effects: list[Effect]) -> None:
    """An answer to a question from before a load or unload takes nobody away."""
    if event.attempt == world.records.attempt:
        return
    for effect in effects:
        if isinstance(effect, StateChanged) and effect.consumer == event.consumer:
            lost = effect.old is S.RESIDENT and effect.new is S.ABSENT
            hold(not lost, f"an old probe said that {event.consumer} is absent")
