"""The ledger, kept a second time and differently: what the scheduler may rely on, in MiB.

Written from what is promised and not from ``mgpu.core.vram``, so that a bug there is no bug here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mgpu.core.model import ConsumerState as S
from mgpu.core.state import Consumer, State

THERE = frozenset({S.UNKNOWN, S.RESIDENT, S.DRAINING, S.UNLOADING, S.QUARANTINED})


def share(mib: int, gpus: tuple[int, ...]) -> int:
    """What each of these GPUs carries."""
    return -(-mib // max(1, len(gpus)))


def need_mib(consumer: Consumer) -> int:
    """What a consumer is known to need: configured or measured, whichever is more.

    What one is taken to need of which that is not known yet is no fact, but to be relied on.
    """
    known_mib = max(consumer.policy.footprint_mib, consumer.measured_mib or 0)
    return max(known_mib, consumer.assumed_mib)


def kept_mib(consumer: Consumer) -> int:
    """What it keeps when it is absent: configured or seen, and what it failed to give back."""
    return max(consumer.policy.residual_mib, consumer.kept_seen_mib) + consumer.leftover_mib


def gain_mib(consumer: Consumer) -> int:
    """What each of its GPUs gets when it leaves."""
    return share(max(0, need_mib(consumer) - kept_mib(consumer)), consumer.gpus)


def billed_mib(state: State, consumer: Consumer, gpu: int) -> int:
    """What is not to be given to anybody else on a GPU because of a consumer."""
    swap = state.swaps.get(consumer.name)
    if swap is not None:
        return share(need_mib(consumer), swap.gpus) if gpu in swap.gpus else 0
    if consumer.policy.vram_managed or gpu not in consumer.gpus:
        return 0
    held = need_mib(consumer) if consumer.state in THERE else kept_mib(consumer)
    return share(held, consumer.gpus)


def booked_mib(
    state: State, gpu: int, target: str, *, gone: Iterable[str], without: Collection[str]
) -> int:
    """What everybody but the target is billed on a GPU; ``gone`` as if they were absent."""
    leaving = frozenset(gone)
    total = 0
    for consumer in state.consumers.values():
        if consumer.name == target or consumer.name in without:
            continue
        billed = billed_mib(state, consumer, gpu)
        if consumer.name in leaving and gpu in consumer.gpus:
            billed -= gain_mib(consumer)
        total += billed
    return total


def shortage_mib(  # noqa: PLR0917 - of what, where, and who has gone
    state: State,
    free_mib: int,
    gpu: int,
    target: Consumer,
    gpus: tuple[int, ...],
    gone: Iterable[str] = (),
    without: Collection[str] = (),
) -> int:
    """What is missing for a target on a GPU, were some gone; 0 or less when it fits.

    ``without``: swaps whose reservations do not count.
    """
    need = share(need_mib(target), gpus) + state.policy.cushion_mib
    leaving = [state.consumers[name] for name in gone]
    freed = sum(gain_mib(c) for c in leaving if gpu in c.gpus)
    booked = booked_mib(state, gpu, target.name, gone=[c.name for c in leaving], without=without)
    return max(need - free_mib - freed, need - (state.gpus[gpu].total_mib - booked))


def room_at_last(state: State, target: Consumer, gpu: int) -> bool:
    """Whether a target that may live on any one GPU fits on this one when all who may have left."""
    figures = state.gpus[gpu]
    billed = {c.name: billed_mib(state, c, gpu) for c in state.consumers.values()}
    unexplained_mib = figures.total_mib - figures.free_mib - sum(billed.values())
    foreign_mib = max(0, unexplained_mib, sum(p.mib or 0 for p in figures.foreign))
    stays_mib = sum(
        billed[c.name] if _stays(target, c) else share(kept_mib(c), c.gpus)
        for c in state.consumers.values()
        if c is not target and billed[c.name]
    )
    need = need_mib(target) + state.policy.cushion_mib
    return need <= figures.total_mib - foreign_mib - stays_mib


def _stays(target: Consumer, other: Consumer) -> bool:
    coexists = bool(target.policy.can_coexist_with & {other.name, "*"})
    stuck = other.state is S.QUARANTINED or not other.policy.can_unload
    return coexists or stuck or other.pinned or other.policy.vram_managed


def room_mib(state: State, rooms: Collection[str], gpu: int, target: str) -> int:
    """What may still be taken on a GPU by others than the target whose room was made.

    As much as they need at most: how much of it they hold cannot always be seen.
    """
    return sum(
        share(need_mib(consumer), consumer.gpus)
        for name in rooms
        if name != target and gpu in (consumer := state.consumers[name]).gpus
    )


def fits(
    state: State,
    rooms: Collection[str],
    target: Consumer,
    gpus: tuple[int, ...],
    gone: Collection[str],
) -> bool:
    """Whether a target fits on these GPUs, were some gone, beside the rooms made for others."""
    return all(
        gpu in state.gpus
        and shortage_mib(
            state,
            state.gpus[gpu].free_mib - room_mib(state, rooms, gpu, target.name),
            gpu,
            target,
            gpus,
            gone,
        )
        <= 0
        for gpu in gpus
    )


def others_there(state: State, target: str, *, loading: bool = False) -> int:
    """How many count against ``max_resident`` besides the target.

    ``loading``: of those that are to come, only who loads; the others' places are not free yet.
    """
    coming = {
        name
        for name, swap in state.swaps.items()
        if not loading or swap.load_started_at is not None
    }
    return sum(
        c.state in THERE or c.name in coming
        for c in state.consumers.values()
        if c.name != target and not c.policy.vram_managed
    )
