"""Bringing back, while nobody waits, whom jobs are most likely to ask for (``restore_when_idle``).

A consumer in memory saves its reload whenever it is asked for. How often that is, the arrivals of
the last minutes tell (``averages.Demand``), and so each set of consumers that fits into a GPU has a
worth: the reload seconds it is expected to save over the next minutes. The most valuable set is a
knapsack's (R. Bellman, "Dynamic Programming", 1957; here by branch and bound, exactly for up to
``EXACT`` consumers, beyond that by worth per MiB). It is worth having when it saves more than
bringing it about costs, which also keeps two sets of nearly the same worth from taking turns.

One consumer at a time is brought back, by a job of the broker's own that only loads it. In its turn
it evicts idle ones that are not of the set; a job for one of those pays for its reload, as after
any eviction. It is never in a job's way: as soon as anybody else waits, it is given up, or, when it
loads already, does not count as one of the loads at once; and who was brought back may be evicted
at once. A load that was begun is not broken off, so a job that needs its room waits for its end,
and for nothing else of it.

Left out are consumers that a person has unloaded, those that are unloaded when idle, and those that
load by their own first job or live on several GPUs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mgpu.core import admission, keepalive, planning, preloading, prospects, vram
from mgpu.core.events import JobArrived, JobKind
from mgpu.core.model import ConsumerState as S
from mgpu.core.state import Consumer, Gpu, State
from mgpu.core.step import Step

EXACT = 12
"""Most consumers of whom every set is weighed."""

PAUSE_S = 60.0
"""A consumer that could not be brought back is tried again after this."""

MOVING = frozenset({S.LOADING, S.DRAINING, S.UNLOADING})


@dataclass(frozen=True, slots=True)
class _Item:
    """A consumer that is there and may leave, or that is not and may come."""

    consumer: Consumer
    size_mib: int
    worth_s: float

    @property
    def there(self) -> bool:
        return self.consumer.state is S.RESIDENT

    @property
    def density(self) -> float:
        return self.worth_s / max(1, self.size_mib)


def give_way(step: Step) -> None:
    """Let go of a consumer that is being brought back when anybody else waits."""
    state = step.state
    job = state.jobs.get(state.restore_job)
    if job is None:
        if state.restoring not in state.swaps:
            state.restoring = ""
    elif state.waiting > 1:
        state.consumers[state.restoring].restore_after = step.at
        admission.leave(step, job)


def give_up(step: Step) -> None:
    """Let go of a consumer for which no room could be made after all; after the waiting."""
    state = step.state
    job = state.jobs.get(state.restore_job)
    begun = state.restoring in state.swaps
    if job is not None and not begun and vram.figures_are_fresh(state, step.at):
        admission.leave(step, job)


def watch(step: Step) -> None:
    """Bring the next consumer of the most valuable set back, if nobody waits and nothing moves."""
    state = step.state
    if not (state.policy.restore_when_idle and _quiet(state)):
        return
    for gpu in state.gpus.values():
        best = _most_valuable(state, gpu, step.at)
        missing = [item for item in best if not item.there]
        due = [item for item in missing if item.consumer.restore_after <= step.at]
        if due:
            target = max(due, key=lambda item: item.density).consumer
            state.restore_keeps = frozenset(item.consumer.name for item in best)
            _bring_back(step, target)
            return


def _bring_back(step: Step, target: Consumer) -> None:
    state = step.state
    target.restore_after = step.at + PAUSE_S
    state.restoring = target.name
    state.restore_job = f"{preloading.JOB_PREFIX}{target.name}-{state.next_seq}"
    admission.arrive(step, JobArrived(step.at, state.restore_job, target.name, kind=JobKind.LOAD))


def _quiet(state: State) -> bool:
    idle = state.policy.prefetch or not any(gpu.holders for gpu in state.gpus.values())
    return (
        idle
        and not state.waiting
        and not state.swaps
        and not state.draining
        and not state.paused
        and all(gpu.healthy for gpu in state.gpus.values())
        and not any(c.state in MOVING for c in state.consumers.values())
    )


def _most_valuable(state: State, gpu: Gpu, at: float) -> list[_Item]:
    """The set to have on a GPU, or nothing when it is not worth bringing about."""
    items = [
        _Item(c, vram.returnable_mib(c), planning.absence_cost(c, at))
        for c in state.consumers.values()
        if _may_leave(c, gpu) or _may_come(state, c, gpu)
    ]
    there = [item for item in items if item.there]
    room_mib = sum(item.size_mib for item in there) + _free_mib(state, gpu)
    most = len(items)
    if state.policy.max_resident:
        others = sum(
            vram.held_mib(c) > 0 and c.state in vram.HOLDING for c in state.consumers.values()
        )
        most = state.policy.max_resident - (others - len(there))
    best = _knapsack(items, room_mib, most)
    gain_s = sum(item.worth_s for item in best) - sum(item.worth_s for item in there)
    cost_s = sum(planning.load_s(item.consumer) for item in best if not item.there)
    return best if gain_s > cost_s > 0 else []


def _may_leave(consumer: Consumer, gpu: Gpu) -> bool:
    return (
        consumer.state is S.RESIDENT
        and consumer.gpus == (gpu.index,)
        and not consumer.running
        and not consumer.pinned
        and consumer.can_be_unloaded
    )


def _may_come(state: State, consumer: Consumer, gpu: Gpu) -> bool:
    return (
        consumer.state is S.ABSENT
        and not consumer.retired
        and (gpu.index,) in prospects.choices(state, consumer)
        and consumer.policy.can_load
        and not consumer.policy.vram_managed
        and not consumer.unloaded_by_hand
        and keepalive.limit_s(consumer) == math.inf
    )


def _free_mib(state: State, gpu: Gpu) -> int:
    booked_mib = gpu.total_mib - vram.billed_mib(state, gpu.index)
    return min(gpu.free_mib, booked_mib) - state.policy.cushion_mib


def _knapsack(items: list[_Item], room_mib: int, most: int) -> list[_Item]:
    """The set of at most so many items that fits and is worth most."""
    by_density = sorted(items, key=lambda item: (-item.density, item.consumer.name))
    exact = len(items) <= EXACT
    best: tuple[float, list[_Item]] = (0.0, [])

    def fill(position: int, taken: list[_Item], room_mib: int, worth_s: float) -> None:
        nonlocal best
        if worth_s > best[0]:
            best = (worth_s, taken)
        rest = by_density[position:]
        if not rest or worth_s + sum(item.worth_s for item in rest) <= best[0]:
            return
        item = rest[0]
        fits = item.size_mib <= room_mib and len(taken) < most
        if fits:
            left_mib = room_mib - item.size_mib
            fill(position + 1, [*taken, item], left_mib, worth_s + item.worth_s)
        if exact or not fits:
            fill(position + 1, taken, room_mib, worth_s)

    fill(0, [], room_mib, 0.0)
    return best[1]
