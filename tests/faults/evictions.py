"""Promise 8: nobody is evicted in vain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpu.core.effects import Evicted
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import NothingToEvict, Order
from mgpu.core.state import Consumer, State
from tests.faults import books
from tests.faults.broken import hold

if TYPE_CHECKING:
    from tests.faults.promises import Promises


def check_worth(state: State, victim: Consumer, target: Consumer, now: float, what: str) -> None:
    """One with jobs waiting makes room for a higher priority, an older job, or many short ones."""
    ours, theirs = max(j.priority for j in target.waiting), max(j.priority for j in victim.waiting)
    older = min(j.seq for j in target.waiting) < min(j.seq for j in victim.waiting)
    if ours > theirs or older:
        return
    hold(ours == theirs, f"{what}, and its own jobs come first")
    hold(state.policy.order is Order.PLANNED, f"{what}, and its own jobs are older")
    hold(state.policy.prefetch, f"{what}, and its own jobs are older")
    since = min(j.arrived_at for j in victim.waiting)
    hold(now - since < state.policy.max_overtake_s, f"{what}, and its jobs wait for too long")


def check_needed(
    promises: Promises, gpus: tuple[int, ...], victim: Consumer, target: Consumer, what: str
) -> None:
    """It must not fit without, and it must fit with; ``retrying`` empties the GPUs anyway."""
    state = promises.world.state
    if target.retrying or promises.forcing:
        return
    together = {
        e.victim for e in promises.effects if isinstance(e, Evicted) and e.target == target.name
    }
    here = [c for c in state.consumers.values() if set(gpus) & set(c.gpus)]
    others_move = len(state.swaps) > 1 or any(state.gpus[g].owed_mib for g in gpus)
    early = {
        c.name
        for c in here
        if promises.believed[c.name] is S.UNLOADING
        and c.state is S.UNLOADING
        and not c.failures
        and not any(c.name in victims for victims in promises.swaps_before.values())
    }
    hold(not early, f"{what} while {early} leave anyway")
    most = state.policy.max_resident
    counted = not most or books.others_there(state, target.name) - len(together) < most
    attempts = state.policy.when_nothing_to_evict is NothingToEvict.ATTEMPT
    hold(counted or promises.shaken or attempts, f"{what}, and there are still too many")
    leaving = {c.name for c in here if c.state in {S.UNLOADING, S.DRAINING}}
    for gpu in gpus:
        free_mib = state.gpus[gpu].free_mib + state.gpus[gpu].owed_mib
        short_mib = books.shortage_mib(state, free_mib, gpu, target, gpus, leaving)
        hold(short_mib <= 0, f"{what} in vain: {short_mib} MiB are missing even so")
    if others_move or leaving - together:
        return
    fewer = together - {victim.name}
    if most and books.others_there(state, target.name) - len(fewer) >= most:
        return
    fits = all(
        books.shortage_mib(
            state,
            state.gpus[g].free_mib - books.room_mib(state, promises.rooms, g, target.name),
            g,
            target,
            gpus,
            fewer,
        )
        <= 0
        for g in gpus
    )
    hold(not fits, f"{what}, which fits without that")
