"""Promises 2 and 4, of loads: one at a time, where there is room, and not again too soon.

A load begins only where free memory as last read covers footprint and cushion, and where the books
do so too; with nothing wrong in the world no load ever runs out of memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mgpu.core.effects import Effect, LoadMeasured, StartLoad, StateChanged
from mgpu.core.events import LoadEnded
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import NothingToEvict
from mgpu.core.state import Consumer
from tests.faults import books
from tests.faults.broken import hold
from tests.faults.turns import EPSILON_S

if TYPE_CHECKING:
    from tests.faults.world import World


def check_start(world: World, load: StartLoad) -> None:
    """It may begin, its consumer is neither leaving nor cooling down, and there is room for it."""
    records, name = world.records, load.consumer
    began = name in records.swaps_before
    hold(not world.draining or began, f"{name} loads in a draining broker")
    hold(name not in records.leaving, f"{name} loads while it leaves")
    not_before = records.not_before.get(name, -math.inf)
    hold(world.now >= not_before - EPSILON_S, f"{name} loads in its cooldown")
    hold(records.loads_failed.get(name, 0) < 2, f"{name} loads a third time")
    consumer = world.state.consumers[name]
    places = consumer.policy.gpus
    hold(places is None or places == load.gpus, f"{name} loads on {load.gpus}")
    _check_room(world, consumer, load.gpus)


def check_measured(world: World, load: LoadMeasured) -> None:
    """One that its first job loads has its room as that job may begin."""
    if load.seconds is None:
        consumer = world.state.consumers[load.consumer]
        _check_room(world, consumer, consumer.gpus)


def check_cooldown(world: World, change: StateChanged) -> None:
    """Who waits for one that cannot be loaded is told."""
    if change.new is S.COOLDOWN:
        waiting = len(world.state.consumers[change.consumer].waiting)
        hold(not waiting, f"{waiting} jobs are not told that {change.consumer} cannot be loaded")


def check_old_answer(world: World, event: LoadEnded, effects: list[Effect]) -> None:
    """An answer to an older load changes nothing."""
    name = event.consumer
    if world.records.loads.get(name) == event.attempt:
        return
    for effect in effects:
        believed = isinstance(effect, LoadMeasured) and effect.consumer == name
        hold(not believed, f"an old answer ended {name}'s load")


def check_memory(world: World) -> None:
    """With nothing wrong in the world, no load that was asked for runs out of memory.

    But for the first one of a consumer that is to be measured, beside others that must stay.
    """
    records = world.records
    failed = world.machine.out_of_memory[records.out_of_memory :]
    forced = world.scenario.policy.when_nothing_to_evict == "attempt"
    for name in failed if not records.shaken and not forced else ():
        hold(world.state.consumers[name].needs_unknown, f"{name}'s load ran out of memory")
    records.out_of_memory += len(failed)


def check_side_by_side(world: World) -> None:
    """No more loads at once than are allowed, and no two on a GPU where that is not wanted."""
    state = world.state
    if len(state.swaps) < 2:
        return
    if state.policy.prefetch:
        # One that was being brought back when somebody came is nobody's load any more.
        most = state.policy.max_parallel_loads + (state.restoring in state.swaps)
        hold(len(state.swaps) <= most, f"{sorted(state.swaps)} load at once")
    else:
        wanted = [swap for name, swap in state.swaps.items() if name != state.restoring]
        gpus = [gpu for swap in wanted for gpu in swap.gpus]
        hold(len(gpus) == len(set(gpus)), f"{sorted(state.swaps)} on one GPU")


def _check_room(world: World, target: Consumer, gpus: tuple[int, ...]) -> None:
    """By measurement and by the books."""
    state, records = world.state, world.records
    for gpu in gpus:
        hold(records.readable.get(gpu, False), f"{target.name} loads on GPU {gpu}, unread")
    if records.forcing:
        return
    attempts = state.policy.when_nothing_to_evict is NothingToEvict.ATTEMPT
    # Who was planned after this one, in the same step, took what it leaves.
    planned = {
        name
        for name, swap in state.swaps.items()
        if name not in records.swaps_before and swap.load_started_at is None
    }
    for gpu in gpus:
        free_mib = state.gpus[gpu].free_mib - _untaken_mib(world, gpu, target.name)
        short_mib = books.shortage_mib(state, free_mib, gpu, target, gpus, without=planned)
        hold(short_mib <= 0, f"{target.name} loads with {short_mib} MiB too few on GPU {gpu}")
    if state.policy.max_resident and not records.shaken and not attempts:
        others = books.others_there(state, target.name, loading=True)
        hold(others < state.policy.max_resident, f"{target.name} is one too many")


def _untaken_mib(world: World, gpu: int, target: str) -> int:
    """What other loads have still to take, as it really is.

    Where somebody else took memory meanwhile, that cannot be told from theirs. Loads that begin
    after the target's, in the same step, do not count: they were decided on what it leaves.
    """
    machine, state, begun = world.machine, world.state, world.records.loads
    coming = {
        name: swap.load_started_at
        for name, swap in state.swaps.items()
        if swap.load_started_at is not None and begun.get(name) == state.consumers[name].attempt
    }
    there = {S.RESIDENT, S.DRAINING}
    rooms = world.records.rooms
    coming |= {name: at for name, at in rooms.items() if state.consumers[name].state in there}
    return sum(
        books.share(books.need_mib(consumer), consumer.gpus)
        for name, since in coming.items()
        if gpu in (consumer := state.consumers[name]).gpus
        and name != target
        and not machine.services[name].held_mib
        and not any(at >= since for at, _ in machine.memory.moved_at[gpu])
    )
