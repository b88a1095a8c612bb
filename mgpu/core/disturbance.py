"""Whose memory a change of the free figure tells about.

A GPU tells how much memory is free, not whose it was. A rise is a consumer's unload, and a fall a
consumer's load, only while nobody else moves memory on the same GPU. Where somebody does, the
unload or load is marked: nothing is concluded from the figure about that one any more.

Several unloads at once do not disturb each other: they are judged together
(``mgpu.core.unloading``).
"""

from __future__ import annotations

from collections.abc import Iterator

from mgpu.core.model import ConsumerState as S
from mgpu.core.state import Consumer, State, Swap


def note(state: State) -> None:
    """Mark every unload and load that is disturbed as things stand."""
    for consumer in state.leaving.values():
        unload = consumer.unload
        assert unload is not None
        if not unload.disturbed:
            unload.disturbed = any(
                _hides_unload(state, consumer, other)
                for other in _neighbours(state, consumer, consumer.gpus)
            )
    for swap in [*state.swaps.values(), *state.loaded.values()]:
        if swap.load_started_at is None or swap.blurred:
            continue
        target = state.consumers[swap.target]
        neighbours = list(_neighbours(state, target, swap.gpus))
        swap.blurred = _blurs(state, swap, neighbours)
        swap.disturbed |= swap.blurred or any(other.running for other in neighbours)
    for consumer in state.unfilled():
        # What others do between its jobs hides nothing of it.
        room = state.rooms[consumer.name]
        neighbours = list(_neighbours(state, consumer, room.gpus))
        room.blurred = bool(consumer.running) and (room.blurred or _blurs(state, room, neighbours))


def moved(state: State, consumer: Consumer) -> None:
    """A consumer's memory came or went at one blow, without having been asked to."""
    for other in _neighbours(state, consumer, consumer.gpus):
        if other.unload is not None:
            other.unload.disturbed = True


def blind(state: State, gpus: tuple[int, ...]) -> bool:
    """Whether the figures of one of these GPUs are stale."""
    return not all(state.gpus[index].healthy for index in gpus)


def _neighbours(state: State, consumer: Consumer, gpus: tuple[int, ...]) -> Iterator[Consumer]:
    for other in state.consumers.values():
        if other is not consumer and set(gpus).intersection(other.gpus):
            yield other


def _blurs(state: State, swap: Swap, neighbours: list[Consumer]) -> bool:
    """Whether it cannot be seen how far a load has got."""
    return blind(state, swap.gpus) or any(
        other.state in {S.LOADING, S.UNLOADING} or _loads_with_its_job(state, other)
        for other in neighbours
    )


def _hides_unload(state: State, consumer: Consumer, other: Consumer) -> bool:
    """Whether free memory cannot show a consumer's unload for what another one does."""
    if other.state is S.UNLOADING:
        assert other.unload is not None
        return consumer.state is S.QUARANTINED or other.unload.disturbed
    return other.state is S.LOADING or _loads_with_its_job(state, other)


def _loads_with_its_job(state: State, consumer: Consumer) -> bool:
    """Whether a consumer without a way to be loaded is in a job that may load it."""
    if consumer.policy.can_load or not consumer.running:
        return False
    room = state.rooms.get(consumer.name)
    unfilled = room is not None and room.filled_at is None
    return unfilled or consumer.last_used_at < consumer.resident_since
