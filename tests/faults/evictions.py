"""Promise 8: nobody is evicted in vain, and never one that must stay."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mgpu.core.effects import Evicted
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import NothingToEvict, Order
from mgpu.core.state import Consumer, State
from tests.faults import books
from tests.faults.broken import hold
from tests.faults.turns import EPSILON_S

if TYPE_CHECKING:
    from tests.faults.world import World


def check(world: World, evicted: Evicted) -> None:
    """The victim may leave, somebody waits for its room, and needs it."""
    records, state, now = world.records, world.state, world.now
    victim, target = state.consumers[evicted.victim], state.consumers[evicted.target]
    what = f"{victim.name} is evicted for {target.name}"
    where = records.where[victim.name]
    hold(where is S.RESIDENT, f"{what} while {where}")
    hold(not any(x.consumer == victim.name for x in records.leases.values()), f"{what} at work")
    hold(not victim.pinned, f"{what} and is pinned")
    coexists = target.policy.can_coexist_with
    hold(not coexists & {victim.name, "*"}, f"{what} and may stay beside it")
    since = records.resident_since.get(victim.name, -math.inf)
    unasked = state.policy.restore_when_idle and victim.name in records.unused
    stayed = since + state.policy.min_resident_s <= now + EPSILON_S
    hold(unasked or stayed, f"{what} and just came")
    hold(bool(target.waiting), f"{what}, which nobody waits for")
    if victim.waiting:
        _check_worth(state, victim, target, now, what)
    if (swap := state.swaps.get(target.name)) is not None:
        _check_needed(world, swap.gpus, victim, target, what)


def _check_worth(state: State, victim: Consumer, target: Consumer, now: float, what: str) -> None:
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


def _check_needed(
    world: World, gpus: tuple[int, ...], victim: Consumer, target: Consumer, what: str
) -> None:
    """It must not fit without, and it must fit with.

    One whose load failed, or of which nothing is known yet, empties the GPUs anyway.
    """
    state, records = world.state, world.records
    emptied = target.retrying and target.name not in records.not_begun
    if emptied or target.needs_unknown or records.forcing:
        return
    together = {
        e.victim for e in records.effects if isinstance(e, Evicted) and e.target == target.name
    }
    here = [c for c in state.consumers.values() if set(gpus) & set(c.gpus)]
    early = {
        c.name
        for c in here
        if c is not victim  # which may have left and come back with this very event
        and records.believed[c.name] is S.UNLOADING
        and c.state is S.UNLOADING
        and not c.failures
        and not any(c.name in victims for victims in records.swaps_before.values())
    }
    hold(not early, f"{what} while {early} leave anyway")
    most = state.policy.max_resident
    counted = not most or books.others_there(state, target.name) - len(together) < most
    attempts = state.policy.when_nothing_to_evict is NothingToEvict.ATTEMPT
    hold(counted or records.shaken or attempts, f"{what}, and there are still too many")
    leaving = {c.name for c in here if c.state in {S.UNLOADING, S.DRAINING}}
    for gpu in gpus:
        free_mib = state.gpus[gpu].free_mib + state.gpus[gpu].owed_mib
        short_mib = books.shortage_mib(state, free_mib, gpu, target, gpus, leaving)
        hold(short_mib <= 0, f"{what} in vain: {short_mib} MiB are missing even so")
    others_move = len(state.swaps) > 1 or any(state.gpus[g].owed_mib for g in gpus)
    fewer = together - {victim.name}
    too_many = most and books.others_there(state, target.name) - len(fewer) >= most
    if not others_move and not leaving - together and not too_many:
        fits = books.fits(state, records.rooms, target, gpus, fewer)
        hold(not fits, f"{what}, which fits without that")
