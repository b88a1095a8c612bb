"""Making a target resident: evict, wait until the memory is measured, load.

A swap is planned whole (``mgpu.core.placement``), then advanced after every event: as soon as its
victims have answered and the target fits by the books and by measurement, it loads. When all of
them have gone and it still does not fit, it is planned anew. A load that fails is tried once more,
after everybody permitted has left, since out of memory is the usual cause and what others hold the
usual reason; nobody leaves for one that was not even begun.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from mgpu.core import (
    bandwidth,
    eviction,
    measuring,
    ordering,
    placement,
    residency,
    unloading,
    unmeasured,
    vram,
)
from mgpu.core.admission import refuse_waiting, satisfy_loads
from mgpu.core.effects import Evicted, FootprintLearned, LoadMeasured, Sample, StartLoad
from mgpu.core.events import TimerKind
from mgpu.core.model import ConsumerState as S
from mgpu.core.model import LockMode, NothingToEvict, Outcome, Refusal
from mgpu.core.state import THERE, Claim, Consumer, State, Swap, SwapTimes
from mgpu.core.step import Step


def request(step: Step, target: Consumer, claim: Claim) -> bool:
    """Start to make room for an absent target; False when that has to wait, if only for a reading.

    When room cannot be had at all, the target's waiting jobs are refused.
    """
    state = step.state
    if not state.gpus:
        return False
    if not vram.figures_are_fresh(state, step.at):
        step.emit(Sample(state.sampling_fast))
        return False
    # Of what it needs nothing is known: then all the room that can be made is made.
    verdict = placement.never_fits(state, target) or placement.plan(
        state, target, step.at, busy=_busy(step), claim=claim, everybody=target.needs_unknown
    )
    match verdict:
        case placement.Plan(gpus, victims):
            _start(step, Swap(target.name, gpus, step.at, claim), victims)
        case placement.Wait():
            return False
        case Refusal(code) if code == "vram-unavailable" and _attempt_anyway(step):
            gpus = placement.roomiest(state, target)
            _start(step, Swap(target.name, gpus, step.at, claim, forced=True), ())
        case Refusal():
            refuse_waiting(step, target, verdict)
        case _:
            assert_never(verdict)
    return not target.waiting or target.state is not S.ABSENT or target.name in state.swaps


def advance(step: Step) -> None:
    """Take every swap as far as it goes now."""
    for name, swap in list(step.state.loaded.items()):
        _watch_loaded(step, step.state.consumers[name], swap)
    for name, room in list(step.state.rooms.items()):
        _watch_room(step, step.state.consumers[name], room)
    for swap in list(step.state.swaps.values()):
        if swap.load_started_at is None:
            _advance(step, swap)
        elif not swap.blurred:
            for index in swap.gpus:
                free_mib = step.state.gpus[index].free_mib
                swap.lowest_mib[index] = min(swap.lowest_mib[index], free_mib)


def load_ended(step: Step, target: Consumer, error: str | None, *, begun: bool) -> None:
    """A load succeeded or failed; ``begun`` False: it was not even tried."""
    swap = step.state.swaps[target.name]
    assert swap.load_started_at is not None
    seconds = step.at - swap.load_started_at
    step.emit(LoadMeasured(target.name, ok=error is None, seconds=seconds))
    if error is not None:
        _learn_footprint(step, target, swap, ok=False)
    # A probe that was sent during the load says nothing about what came of it.
    target.attempt += 1
    if error is None:
        bandwidth.learn(step.state, target, swap, seconds)
        # One that had no process was ill until now, and the next probe may be seconds away.
        target.healthy = True
        target.failures = 0
        target.retrying = False
        _resident(step, target, swap, "loaded")
        step.state.loaded[target.name] = swap
    elif target.waiting and not target.retrying:
        _retry(step, target, swap, error, begun=begun)
    else:
        _give_up(step, target, error)


def resident_by_itself(step: Step, target: Consumer, reason: str) -> None:
    """A consumer turned out to be resident without having been asked to.

    A swap that was making room for it is void; victims that were asked to leave do so.
    """
    if target.retrying:
        target.retrying = False
        step.cancel_timer(TimerKind.SETTLE, target.name, target.attempt)
    measuring.reappeared(target)
    residency.found(target)
    _is_resident(step, target, reason)


def _is_resident(step: Step, target: Consumer, reason: str) -> None:
    step.state.swaps.pop(target.name, None)
    step.state.rooms.pop(target.name, None)
    step.state.loaded.pop(target.name, None)
    target.leftover_mib = 0
    target.peak_mib = 0
    target.resident_since = step.at
    eviction.used(step.state, target)
    step.move(target, S.RESIDENT, reason)
    if step.state.policy.min_resident_s:
        delay_s = step.state.policy.min_resident_s
        step.set_timer(TimerKind.MIN_RESIDENT, target.name, delay_s, target.attempt)
    satisfy_loads(step, target)


def _watch_loaded(step: Step, target: Consumer, swap: Swap) -> None:
    """Learn what a load took as soon as it shows: what came in its last moments is read after."""
    state = step.state
    if target.state not in THERE:
        del state.loaded[target.name]
    elif vram.loads_show(state, swap.gpus):
        del state.loaded[target.name]
        _learn_footprint(step, target, swap, ok=True)


def _watch_room(step: Step, consumer: Consumer, room: Swap) -> None:
    """Look how much of the room made for a consumer its job has taken; without one, nothing is."""
    state = step.state
    if vram.shows_filled(state, room):
        del state.rooms[consumer.name]
        if consumer.needs_unknown:
            _learn_footprint(step, consumer, room, ok=True)
        return
    for index in room.gpus:
        free_mib = state.gpus[index].free_mib
        if not consumer.running:
            room.baseline_mib[index] += free_mib - room.lowest_mib[index]
            room.lowest_mib[index] = free_mib
        elif not room.blurred:
            room.lowest_mib[index] = min(room.lowest_mib[index], free_mib)


def _attempt_anyway(step: Step) -> bool:
    return step.state.policy.when_nothing_to_evict is NothingToEvict.ATTEMPT


def _busy(step: Step) -> frozenset[int]:
    """GPUs on which no swap may start.

    With ``prefetch`` that is all of them once enough loads share disk and bus. Without, those where
    another swap is under way or the exclusive lock is held. One that is brought back does not
    count: nobody waits for it.
    """
    state, policy = step.state, step.state.policy
    swaps = [swap for name, swap in state.swaps.items() if name != state.restoring]
    if policy.prefetch:
        full = len(swaps) >= bandwidth.most_loads(state)
        return frozenset(state.gpus) if full else frozenset()
    exclusive = policy.lock is LockMode.EXCLUSIVE
    computing = {g.index for g in state.gpus.values() if exclusive and g.holders}
    swapping = {index for swap in swaps for index in swap.gpus}
    return frozenset(computing | swapping)


def _start(step: Step, swap: Swap, victims: tuple[str, ...]) -> None:
    target = step.state.consumers[swap.target]
    target.gpus = swap.gpus
    target.unasked = step.state.restoring == swap.target
    step.state.swaps[swap.target] = swap
    _evict(step, swap, victims)
    _advance(step, swap)


def _evict(step: Step, swap: Swap, victims: tuple[str, ...]) -> None:
    target = step.state.consumers[swap.target]
    need_mib = vram.share_mib(target.footprint_mib, swap.gpus) + step.state.policy.cushion_mib
    for name in victims:
        swap.victims.add(name)
        step.state.evictions += 1
        eviction.evicted(step.state, step.state.consumers[name])
        step.emit(Evicted(name, swap.target, need_mib))
        unloading.begin(step, step.state.consumers[name], f"evicted for {swap.target}")


def _advance(step: Step, swap: Swap) -> None:
    state = step.state
    target = state.consumers[swap.target]
    swap.victims = {v for v in swap.victims if state.consumers[v].state is S.UNLOADING}
    if not target.waiting:
        del state.swaps[swap.target]
    elif _may_load(state, target, swap):
        if _fits(state, target, swap):
            # What victims have not given back yet may come during the load.
            swap.disturbed = bool(swap.victims)
            for name in sorted(swap.victims):
                unloading.absent(step, state.consumers[name], "its memory is free")
            swap.victims.clear()
            _load(step, target, swap)
        elif not swap.victims and not _owed(step, swap):
            _plan_again(step, target, swap)


def _owed(step: Step, swap: Swap) -> bool:
    """Whether memory is still to come back: so long nothing is planned anew."""
    state = step.state
    leaving = [state.consumers[name] for name in placement.promised(state)]
    return any(
        vram.owed_mib(state.gpus[index], step.at) or any(index in c.gpus for c in leaving)
        for index in swap.gpus
    )


def _may_load(state: State, target: Consumer, swap: Swap) -> bool:
    """Whether every victim has gone as far as the load needs.

    Before a second try that is all the way: the measured figure was enough for the first.
    """
    if unmeasured.is_not_alone(state, target, swap):
        return False
    if target.retrying or target.needs_unknown:
        return not swap.victims
    leaving = [state.consumers[victim].unload for victim in swap.victims]
    return all(unload is not None and unload.answered for unload in leaving)


def _fits(state: State, target: Consumer, swap: Swap) -> bool:
    if swap.forced:
        return all(state.gpus[index].healthy for index in swap.gpus)
    return placement.fits(state, target, swap.gpus, frozenset(swap.victims))


def _plan_again(step: Step, target: Consumer, swap: Swap) -> None:
    """The victims have gone and it still does not fit: somebody else took or kept the memory."""
    del step.state.swaps[swap.target]
    _renew_claim(step, target, swap)
    verdict = placement.plan(step.state, target, step.at, busy=_busy(step), claim=swap.claim)
    if isinstance(verdict, placement.Plan) and verdict.victims:
        step.state.swaps[swap.target] = swap
        swap.gpus = target.gpus = verdict.gpus
        _evict(step, swap, verdict.victims)


def _load(step: Step, target: Consumer, swap: Swap) -> None:
    state = step.state
    swap.load_started_at = step.at
    state.loads += 1
    for index in swap.gpus:
        swap.baseline_mib[index] = swap.lowest_mib[index] = state.gpus[index].free_mib
    if target.needs_unknown:
        unmeasured.takes_all(state, target, swap)
    if not target.policy.can_load:
        # It loads with its first job; until then its memory is outstanding.
        step.emit(LoadMeasured(target.name, ok=True, seconds=None))
        residency.found(target)
        _resident(step, target, swap, "room made; its first job loads it")
        state.rooms[target.name] = swap
        return
    target.attempt += 1
    step.move(target, S.LOADING, "room made")
    load_key = residency.choose(step, target)
    step.emit(StartLoad(target.name, target.attempt, swap.gpus, load_key))


def _resident(step: Step, target: Consumer, swap: Swap, reason: str) -> None:
    assert swap.load_started_at is not None
    target.swap_times = SwapTimes(swap.started_at, swap.load_started_at, step.at)
    _is_resident(step, target, reason)


def _learn_footprint(step: Step, target: Consumer, swap: Swap, *, ok: bool) -> None:
    """Take the deepest fall of free memory during a load as the footprint that was seen.

    Where the consumer's own processes tell what they hold, that counts and nobody else's memory
    can distort it. Otherwise nothing is learned from a load that was disturbed; where nothing is
    known at all, one beside jobs of others counts, as these hold what they need already. From one
    that failed is learned only that more is needed than was known. Then a foreign process can still
    distort the figure; the next load corrects it, and it never grows past what a GPU can hold, so
    that it alone makes nothing impossible.
    """
    state = step.state
    target.assumed_mib = 0
    # None of it seen is no figure: a process that has just begun may not be known as its own yet.
    own_mib = target.own_total_mib or None
    disturbed = swap.blurred if ok and target.needs_unknown else swap.disturbed
    if own_mib is None and disturbed:
        return
    seen_mib = own_mib or sum(
        swap.baseline_mib[i] - min(swap.lowest_mib[i], state.gpus[i].free_mib) for i in swap.gpus
    )
    most_mib = sum(state.gpus[i].total_mib - state.policy.cushion_mib for i in swap.gpus)
    seen_mib = min(seen_mib, most_mib)
    if seen_mib > (0 if ok else target.footprint_mib):
        measuring.loaded(step, target, seen_mib)
        if seen_mib > target.policy.footprint_mib:
            step.emit(FootprintLearned(target.name, seen_mib))


def _renew_claim(step: Step, target: Consumer, swap: Swap) -> None:
    """Claim no more than the jobs that wait now: those it was begun for may have left."""
    now = ordering.claim_now(step.state, target, step.at)
    swap.claim = replace(now, over=swap.claim.over)


def _retry(step: Step, target: Consumer, swap: Swap, error: str, *, begun: bool) -> None:
    step.move(target, S.ABSENT, f"load failed: {error}")
    unloading.answer(step, target, None)
    target.retrying = True
    swap.load_started_at = None
    swap.beside_s = 0.0
    settle_s = step.state.policy.settle_timeout_s
    for index in swap.gpus if begun else ():
        # What the failed load held.
        gpu, held_mib = step.state.gpus[index], vram.reservation_mib(step.state, swap)
        vram.owe(gpu, held_mib, step.at, step.at + settle_s)
    step.set_timer(TimerKind.SETTLE, target.name, settle_s, target.attempt)
    others = _busy(step) - frozenset(swap.gpus)
    _renew_claim(step, target, swap)
    verdict = placement.plan(
        step.state, target, step.at, busy=others, claim=swap.claim, everybody=begun
    )
    if isinstance(verdict, placement.Plan):
        swap.gpus = target.gpus = verdict.gpus
        _evict(step, swap, verdict.victims)


def _give_up(step: Step, target: Consumer, error: str) -> None:
    del step.state.swaps[target.name]
    target.failures += 1
    target.retrying = False
    pause_s = unloading.backoff_s(target.failures)
    target.held_off_until = step.at + pause_s
    step.move(target, S.COOLDOWN, f"load failed: {error}")
    step.set_timer(TimerKind.COOLDOWN, target.name, pause_s, target.attempt)
    refusal = Refusal("load-failed", f"{target.name} could not be loaded: {error}", pause_s)
    refuse_waiting(step, target, refusal, Outcome.FAILED)
    unloading.answer(step, target, None)
