"""The ledger: who is billed for how much memory, and how much is to be had.

For one GPU::

    available = min(free as measured - outstanding, total - billed - reservations) - cushion

A resident consumer is billed its footprint, an absent one its residual and what it failed to give
back, whether or not the GPU's figures show it yet. The ledger thus never trusts a promise: memory
is to be had only when the books and the measurement both say so. Memory of others (foreign) needs
no bill of its own: it is in the measured figure. That figure lacks what is still to be taken,
which is why it counts as outstanding until it shows.
"""

from __future__ import annotations

from mgpu.core.model import ConsumerState as S
from mgpu.core.state import Consumer, Gpu, State, Swap

HOLDING = frozenset({S.UNKNOWN, S.RESIDENT, S.DRAINING, S.UNLOADING, S.QUARANTINED})
"""States in which a consumer is billed its whole footprint."""


FRESH_S = 0.1
"""Figures older than this say nothing about the present: who has to leave is decided on new ones,
which take a millisecond to get. While memory moves they are read more often than that anyway."""


def figures_are_fresh(state: State, at: float) -> bool:
    """Whether every GPU has been read, or found unreadable, a moment ago.

    Figures from before the end of a job that loaded its consumer are old at once.
    """
    filled = any(room.filled_at is not None for room in state.rooms.values())
    return not filled and all(at - gpu.read_at <= FRESH_S for gpu in state.gpus.values())


def loads_show(state: State, gpus: tuple[int, ...]) -> bool:
    """Whether these GPUs were read, or found unreadable, since the last load on them was over.

    A rise of free memory that is counted from an earlier figure would lack what was loaded since.
    """
    return all(
        state.gpus[index].asked_at >= consumer.resident_since
        for consumer in state.consumers.values()
        for index in set(gpus).intersection(consumer.gpus)
        if state.gpus[index].healthy
    )


def shows_filled(state: State, room: Swap) -> bool:
    """Whether a job has loaded a consumer into its room, and figures were read since that can tell.

    A GPU that cannot be read tells nothing, and nothing is admitted to it.
    """
    filled_at = room.filled_at
    gpus = [state.gpus[index] for index in room.gpus]
    return filled_at is not None and all(g.asked_at > filled_at or not g.healthy for g in gpus)


def share_mib(total_mib: int, gpus: tuple[int, ...]) -> int:
    """What each of several GPUs carries of a consumer, rounded up."""
    return -(-total_mib // len(gpus))


def kept_mib(consumer: Consumer) -> int:
    """What a consumer holds when it is absent."""
    return max(consumer.policy.residual_mib, consumer.kept_seen_mib) + consumer.leftover_mib


def kept_on_mib(consumer: Consumer, gpu: int) -> int:
    """What a consumer holds on a GPU when it is absent."""
    return share_mib(kept_mib(consumer), consumer.gpus) if gpu in consumer.gpus else 0


def held_mib(consumer: Consumer) -> int:
    """What a consumer is billed for at present, over all its GPUs.

    One that loads is not billed: its swap's reservation stands for it.
    """
    if consumer.policy.vram_managed:
        return 0
    if consumer.state in HOLDING:
        return consumer.footprint_mib
    return kept_mib(consumer)


def returnable_mib(consumer: Consumer) -> int:
    """What a consumer that holds its footprint gives back when it leaves, over all its GPUs."""
    return max(0, consumer.footprint_mib - kept_mib(consumer))


def gain_mib(consumer: Consumer) -> int:
    """What each of its GPUs gets back when a consumer that holds its footprint leaves."""
    return share_mib(returnable_mib(consumer), consumer.gpus)


def billed_mib(state: State, gpu: int, *, without: frozenset[str] = frozenset()) -> int:
    """Sum of what consumers are billed for on a GPU; ``without`` are counted as if absent."""
    return sum(
        share_mib(mib, c.gpus)
        for c in state.consumers.values()
        if gpu in c.gpus
        and not c.policy.vram_managed
        and (mib := kept_mib(c) if c.name in without else held_mib(c))
    )


def reservation_mib(state: State, swap: Swap) -> int:
    """What each GPU of a swap keeps for its target."""
    return share_mib(state.consumers[swap.target].footprint_mib, swap.gpus)


def reserved_mib(state: State, gpu: int, *, without: str = "") -> int:
    """Sum of what swaps under way keep on a GPU, save the swap of the target ``without``."""
    return sum(
        reservation_mib(state, swap)
        for swap in state.swaps.values()
        if gpu in swap.gpus and swap.target != without
    )


def outstanding_mib(state: State, gpu: int, *, without: str = "") -> int:
    """What loads on a GPU have still to take: their reservations, less what they were seen to take.

    So has a consumer that its first job loads, from when its room was made (``State.rooms``). What
    its processes hold is what it took, where that is known. Else a load is seen for as long as
    nobody else comes or goes beside it (``Swap.blurred``).
    """
    coming = [*state.swaps.values(), *(state.rooms[c.name] for c in state.unfilled())]
    return sum(
        max(0, reservation_mib(state, swap) - _taken_mib(state, swap, gpu))
        for swap in coming
        if gpu in swap.gpus and swap.target != without
    )


def _taken_mib(state: State, swap: Swap, gpu: int) -> int:
    if swap.load_started_at is None:
        return 0
    # Nothing of its own seen is no figure: a new process may not be known as its own yet.
    own_mib = state.consumers[swap.target].own_mib.get(gpu)
    return own_mib or swap.baseline_mib[gpu] - swap.lowest_mib[gpu]


def owe(gpu: Gpu, mib: int, at: float, until: float) -> None:
    """Expect memory to show as free on a GPU before long."""
    gpu.owed_mib = owed_mib(gpu, at) + max(0, mib)
    gpu.owed_until = until


def owe_what_vanished(state: State, consumer: Consumer, at: float) -> None:
    """Expect what a consumer holds that is gone at one blow: the driver may take a while for it.

    Not what shows as free already. To be called while it is still billed. Who waits for it is
    looked at with every reading, so that no timer is needed for the end of its time.
    """
    until = at + state.policy.settle_timeout_s
    for index in consumer.gpus:
        gpu = state.gpus[index]
        shown_mib = max(0, billed_mib(state, index) - gpu.used_mib)
        owe(gpu, gain_mib(consumer) - shown_mib, at, until)


def owed_mib(gpu: Gpu, at: float) -> int:
    """What is still to be expected: a plan counts on it, so that nobody is evicted in its place.

    A load does not: it waits until the memory is measured.
    """
    return gpu.owed_mib if at < gpu.owed_until else 0


def available_mib(
    state: State,
    gpu: Gpu,
    target: str,
    *,
    without: frozenset[str] = frozenset(),
    owed_mib: int = 0,
) -> int:
    """What ``target`` could take on a GPU now, cushion kept; ``without`` as in ``billed_mib``.

    ``owed_mib`` counts as free already. The target's own residual counts as taken in the measured
    figure only, so that a load begins when, and only when, the measured free memory covers its
    footprint and the cushion.
    """
    booked = gpu.total_mib - billed_mib(state, gpu.index, without=without | {target})
    own = state.consumers[target]
    booked += kept_on_mib(own, gpu.index)
    booked -= reserved_mib(state, gpu.index, without=target)
    measured = gpu.free_mib + owed_mib - outstanding_mib(state, gpu.index, without=target)
    return min(measured, booked) - state.policy.cushion_mib


def foreign_mib(state: State, gpu: Gpu) -> int:
    """Memory that no consumer accounts for, and at least what processes of nobody are seen to hold.

    What only the books miss is 0 for as long as a load under way may explain it.
    """
    explained = billed_mib(state, gpu.index) + reserved_mib(state, gpu.index)
    return max(told_foreign_mib(gpu), gpu.used_mib - explained)


def told_foreign_mib(gpu: Gpu) -> int:
    """What processes of nobody are seen to hold on a GPU."""
    return min(gpu.used_mib, sum(process.mib or 0 for process in gpu.foreign))


def believe_the_gpu(state: State, gpu: Gpu) -> None:
    """Write off leftovers that a GPU's figures no longer bear out."""
    excess = billed_mib(state, gpu.index) - gpu.used_mib
    for consumer in state.consumers.values():
        if excess > 0 and consumer.leftover_mib and gpu.index in consumer.gpus:
            written_off = min(excess * len(consumer.gpus), consumer.leftover_mib)
            consumer.leftover_mib -= written_off
            excess -= share_mib(written_off, consumer.gpus)
