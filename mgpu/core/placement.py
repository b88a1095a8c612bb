"""Where a target goes, and who must leave for it.

The whole set of victims is planned before anybody is asked to leave: if it cannot suffice, nobody
is. Of the sets that do, ``mgpu.core.eviction`` chooses.

What may be a victim: resident, idle (also by its own word), without waiting jobs that keep its
place (``state.Claim``), not pinned, not just loaded (``min_resident_s``), with a way to be
unloaded, not running its own eviction, and not in the target's ``can_coexist_with``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mgpu.core import eviction, prospects, vram
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import Refusal
from mgpu.core.state import Claim, Consumer, State

RETRY_VRAM_S = 10.0
"""When to come back after ``vram-unavailable``: nobody can know, so neither soon nor never."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A target fits on these GPUs as soon as these victims have left."""

    gpus: tuple[int, ...]
    victims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """No plan now, but one is to be expected without anybody's help."""


Verdict = Plan | Wait | Refusal


def never_fits(state: State, consumer: Consumer) -> Refusal | None:
    """Why a consumer cannot fit on any GPUs it may use, were they empty; None when it can."""
    if consumer.policy.vram_managed or not state.gpus:
        return None
    cushion_mib = state.policy.cushion_mib
    for gpus in prospects.choices(state, consumer):
        need_mib = vram.share_mib(consumer.footprint_mib, gpus) + cushion_mib
        if need_mib <= min(_total_mib(state, index) for index in gpus):
            return None
    totals = ", ".join(f"GPU {g.index}: {g.total_mib} MiB" for g in state.gpus.values())
    wanted = "" if consumer.policy.gpus is None else f" on GPU {_names(consumer.policy.gpus)}"
    return Refusal(
        "never-fits",
        f"{consumer.name} needs {consumer.footprint_mib} MiB and a cushion of {cushion_mib} MiB"
        f"{wanted}; there is {totals}",
    )


def plan(  # noqa: PLR0913 - what is asked, and how hard
    state: State,
    target: Consumer,
    at: float,
    *,
    busy: frozenset[int],
    claim: Claim,
    everybody: bool = False,
) -> Verdict:
    """Choose GPUs and victims for a target.

    ``busy`` GPUs are not to be touched now; what could be had there shows when they are not busy
    any more. Consumers with waiting jobs that the ``claim`` spares are no victims: they are served
    first, and then may be. ``everybody``: take all permitted victims, needed or not (a load has
    failed although there was room by the books).
    """
    plans: list[tuple[int, int, Plan]] = []
    hope = False
    for gpus in prospects.choices(state, target):
        healthy = all(index in state.gpus and state.gpus[index].healthy for index in gpus)
        if not healthy or busy.intersection(gpus):
            hope = True
        elif found := _plan_on(state, target, gpus, at, claim, everybody=everybody):
            plans.append((len(found.victims), -_room_mib(state, target, gpus), found))
        else:
            hope = hope or prospects.could_fit_later(state, target, gpus, at)
    if plans:
        return min(plans, key=lambda entry: (entry[0], entry[1], entry[2].gpus))[2]
    return Wait() if hope else _unavailable(state, target)


def roomiest(state: State, target: Consumer) -> tuple[int, ...]:
    """The choice of GPUs with the most memory to be had now."""
    return max(prospects.choices(state, target), key=lambda gpus: _room_mib(state, target, gpus))


def fits(state: State, target: Consumer, gpus: tuple[int, ...], gone: frozenset[str]) -> bool:
    """Whether a target may begin to load, by the books and by measurement, were ``gone`` absent."""
    need_mib = vram.share_mib(target.footprint_mib, gpus)
    there = {c.name for c in state.consumers.values() if c.state in vram.HOLDING | {S.LOADING}}
    return not prospects.too_many_with(state, target, there - gone) and all(
        state.gpus[index].healthy
        and need_mib <= vram.available_mib(state, state.gpus[index], target.name, without=gone)
        for index in gpus
    )


def _room_mib(state: State, target: Consumer, gpus: tuple[int, ...]) -> int:
    return min(vram.available_mib(state, state.gpus[i], target.name) for i in gpus)


def _total_mib(state: State, index: int) -> int:
    gpu = state.gpus.get(index)
    if gpu is None:
        return 0
    # A GPU that has never been read has no total yet: nothing can be said against it.
    return gpu.total_mib if gpu.total_mib or gpu.healthy else 1 << 40


def _names(gpus: Iterable[int]) -> str:
    return ", ".join(map(str, gpus))


def _evictable(state: State, target: Consumer, victim: Consumer, at: float) -> bool:
    """Whether a consumer may be evicted for a target now."""
    return (
        victim.state is S.RESIDENT
        and not victim.running
        and not victim.busy
        and prospects.permitted(target, victim)
        and prospects.stays_until(state, victim) <= at
    )


def _spared(state: State, target: Consumer, victim: Consumer, claim: Claim) -> bool:
    """Whether a consumer keeps its place for its waiting jobs, or for what it is worth."""
    if target.name == state.restoring and victim.name in state.restore_keeps:
        return True
    return victim.name in state.awaited and claim.spares(victim)


def _shortage_mib(state: State, target: Consumer, gpus: tuple[int, ...], at: float) -> list[int]:
    """What is missing on each GPU; what victims of other swaps will give back is not."""
    need_mib = vram.share_mib(target.footprint_mib, gpus)
    leaving = promised(state)
    short_mib = []
    for index in gpus:
        gpu = state.gpus[index]
        owed_mib = vram.owed_mib(gpu, at) + sum(
            vram.gain_mib(state.consumers[name])
            for name in leaving
            if index in state.consumers[name].gpus
        )
        available_mib = vram.available_mib(
            state, gpu, target.name, without=leaving, owed_mib=owed_mib
        )
        short_mib.append(need_mib - available_mib)
    return short_mib


def promised(state: State) -> frozenset[str]:
    """Who is leaving for somebody else; that one's reservation stands against it."""
    return frozenset(victim for swap in state.swaps.values() for victim in swap.victims)


def _plan_on(  # noqa: PLR0913 - as plan
    state: State,
    target: Consumer,
    gpus: tuple[int, ...],
    at: float,
    claim: Claim,
    *,
    everybody: bool,
) -> Plan | None:
    shortage_mib = _shortage_mib(state, target, gpus, at)
    too_many = prospects.to_leave(state, target)
    candidates = eviction.ranked(
        state,
        [
            c
            for c in state.consumers.values()
            if _evictable(state, target, c, at)
            and (too_many or set(gpus).intersection(c.gpus))
            and not _spared(state, target, c, claim)
        ],
    )
    if everybody:
        enough = len(candidates) >= too_many
        return Plan(gpus, tuple(c.name for c in candidates)) if enough else None
    needs = [*shortage_mib, too_many]
    if max(needs) <= 0:
        return Plan(gpus)
    leaving = promised(state)
    if any(
        _will_be_gone(c) and c.name not in leaving and (too_many or set(gpus) & set(c.gpus))
        for c in state.leaving.values()
    ):
        return None
    gains = {c.name: _gains(c, gpus) for c in candidates}
    chosen = eviction.choose(state, candidates, at, needs, gains)
    return None if chosen is None else Plan(gpus, tuple(c.name for c in chosen))


def _gains(victim: Consumer, gpus: tuple[int, ...]) -> list[int]:
    """What each of these GPUs gets back when a victim leaves, and that it is one less."""
    return [*(vram.gain_mib(victim) if index in victim.gpus else 0 for index in gpus), 1]


def _will_be_gone(consumer: Consumer) -> bool:
    """Whether memory is on its way back, so that it is too early to ask another to leave.

    Nobody waits for a consumer that failed to unload before.
    """
    return consumer.state is S.UNLOADING and not consumer.failures


def _unavailable(state: State, target: Consumer) -> Refusal:
    staying = ", ".join(
        f"{c.name} ({_why_it_stays(target, c)})"
        for c in eviction.ranked(state, state.consumers.values())
        if c.state in vram.HOLDING and c is not target and _stays(target, c)
    )
    return Refusal(
        "vram-unavailable",
        f"{target.name} needs {target.footprint_mib} MiB and not enough can be freed"
        + (f"; these stay: {staying}" if staying else "; other processes hold the memory"),
        RETRY_VRAM_S,
    )


def _stays(target: Consumer, other: Consumer) -> bool:
    return other.state is S.QUARANTINED or not prospects.permitted(target, other)


def _why_it_stays(target: Consumer, other: Consumer) -> str:
    if other.state is S.QUARANTINED:
        return "did not give its memory back"
    if other.policy.vram_managed:
        return "manages its own VRAM"
    if other.pinned:
        return "pinned"
    if target.policy.coexists_with(other.name):
        return "may coexist"
    return "cannot be unloaded"
