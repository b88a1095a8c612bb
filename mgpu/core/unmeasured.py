"""Consumers whose footprint is to be measured (``footprint_mib: auto``), and was not yet.

One that comes may need anything: everybody permitted makes room for it, it is taken to need all
there is then, and nobody else takes memory beside it, by a load or by a job that loads. What it
took shows when it is there.

One that was found in memory holds nobody knows how much, where its processes do not tell. It is
billed what nobody else explains, so that it can be evicted like anybody else, and is believed when
it says that it has left. What was wrong about that does no harm: a load is held to the measured
figure anyway, and its own next load is measured.
"""

from __future__ import annotations

from mgpu.core import vram
from mgpu.core.model import ConsumerState as S
from mgpu.core.state import Consumer, State, Swap


def takes_all(state: State, target: Consumer, swap: Swap) -> None:
    """A load begins that may need all that is to be had."""
    room_mib = [vram.available_mib(state, state.gpus[i], target.name) for i in swap.gpus]
    target.assumed_mib = max(0, min(room_mib)) * len(swap.gpus)


def is_not_alone(state: State, target: Consumer, swap: Swap) -> bool:
    """Whether others take memory beside a load, and of one of them nobody knows how much."""
    return any(
        (target.needs_unknown or other.needs_unknown)
        and other is not target
        and set(swap.gpus).intersection(other.gpus)
        and _takes_memory(state, other)
        for other in state.consumers.values()
    )


def bill(state: State) -> None:
    """Bill those that were found in memory what nobody explains, each an equal share.

    While memory is on its way, nothing can be said.
    """
    found = [c for c in state.consumers.values() if _was_found(state, c)]
    if not found or state.swaps or state.loaded or state.rooms or state.leaving:
        return
    for consumer in found:
        consumer.assumed_mib = 0
    unexplained_mib = {
        index: gpu.used_mib - vram.billed_mib(state, index) - vram.told_foreign_mib(gpu)
        for index, gpu in state.gpus.items()
    }
    for consumer in found:
        shares = [
            max(0, unexplained_mib[index]) // sum(index in other.gpus for other in found)
            for index in consumer.gpus
        ]
        consumer.assumed_mib = min(shares) * len(shares)


def _was_found(state: State, consumer: Consumer) -> bool:
    there = consumer.state is S.RESIDENT and bool(consumer.gpus)
    return there and consumer.needs_unknown and consumer.name not in state.rooms


def _takes_memory(state: State, consumer: Consumer) -> bool:
    """Whether a consumer loads, or is in a job that may do so."""
    if consumer.state is S.LOADING:
        return True
    return bool(consumer.running) and (consumer.needs_unknown or consumer.name in state.rooms)
