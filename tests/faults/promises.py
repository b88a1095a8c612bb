"""What must hold after every event, whatever the world does; and what must hold at rest.

The promises are checked against what really happened and against records of what was seen. Where
the scheduler's own figures are needed (a learned footprint, a leftover) they are read from its
state, but no judgement is left to its code. A promise that a fault excuses says which.

1. Nobody is unloaded under a running job that was not cut off before (``unloads``).
2. A load begins only where free memory as last read covers footprint and cushion, and where the
   books do so too; with nothing wrong in the world no load ever runs out of memory (``loads``,
   ``books``).
3. Under the exclusive lock one consumer computes on a GPU, one that was stopped at its work until
   it has answered; tokens grow, across restarts too, and an old one ends nothing (``leases``).
4. One load or unload per consumer at a time; who is on the way out takes no job until it is absent;
   an answer to an older question changes nothing (``loads``, ``unloads``).
5. A job ends exactly once, is granted at most once, and only while its consumer is there
   (``leases``).
6. Nobody is overtaken after ``max_overtake_s`` (``turns``); every wait has a timer at its deadline,
   and is over when that has fired (``timers``).
7. The oldest of the highest priority never waits for what it could have (``conserving``).
8. Nobody is evicted in vain: not for a target that fits without, not for one that cannot fit, not
   for nobody, and never one that must stay (``evictions``); who is brought back is in nobody's way
   (``restores``).
9. At rest nothing is running, reserved, locked, asked for or timed but the clocks of the idle
   (``rest``).
10. Queues and timers are bounded (``timers``, and the core's own invariants).
11. A job never computes while its consumer is loaded otherwise than the job asked for (``leases``).
12. While a person has the GPU nothing is granted or loaded, and who is pinned by hand is not
    evicted, across restarts too (``by_hand``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mgpu.core import invariants
from mgpu.core.effects import (
    Abort,
    Answer,
    CancelTimer,
    Effect,
    Evicted,
    Finish,
    Grant,
    LoadMeasured,
    StartLoad,
    StartUnload,
    StateChanged,
)
from mgpu.core.events import (
    ConsumerProbed,
    Event,
    JobArrived,
    JobEnded,
    LoadEnded,
    TimerFired,
    UnloadEnded,
)
from tests.faults import (
    by_hand,
    conserving,
    evictions,
    leases,
    loads,
    restores,
    timers,
    turns,
    unloads,
)
from tests.faults.broken import hold

if TYPE_CHECKING:
    from tests.faults.world import World


def check(world: World, event: Event, effects: list[Effect]) -> None:
    """Check what was decided on an event, and take it in."""
    invariants.check(world.state)
    invariants.check_effects(world.state, effects)
    world.records.effects = effects
    if (check_old := _OLD.get(type(event))) is not None:
        check_old(world, event, effects)
    for effect in effects:
        for check_effect in _OF_EFFECTS.get(type(effect), ()):
            check_effect(world, effect)
        world.records.saw(effect)
    if (check_event := _OF_EVENTS.get(type(event))) is not None:
        check_event(world, event)
    loads.check_memory(world)
    loads.check_side_by_side(world)
    if world.state.waiting:
        restores.check(world, effects)
        conserving.check(world)


def _check_answer(world: World, answer: Answer) -> None:
    hold(answer.request in world.requests, f"{answer.request} is answered again")


_OLD: Mapping[type[Event], Callable[[World, Any, list[Effect]], None]] = {
    JobEnded: leases.check_old_token,
    LoadEnded: loads.check_old_answer,
    UnloadEnded: unloads.check_old_answer,
    ConsumerProbed: unloads.check_old_probe,
}
"""Who says something too late is not believed: judged before the effects are taken in."""

_OF_EFFECTS: Mapping[type[Effect], tuple[Callable[[World, Any], None], ...]] = {
    Grant: (
        by_hand.check_begins,
        leases.check_grant,
        leases.check_loaded,
        leases.check_lock,
        turns.check,
        timers.check_grant,
    ),
    Finish: (leases.check_finish,),
    Abort: (leases.check_abort,),
    StartLoad: (by_hand.check_begins, loads.check_start),
    LoadMeasured: (loads.check_measured,),
    StartUnload: (unloads.check_start,),
    StateChanged: (unloads.check_change, loads.check_cooldown),
    Evicted: (by_hand.check_evicted, evictions.check),
    Answer: (_check_answer,),
    CancelTimer: (timers.check_cancel,),
}

_OF_EVENTS: Mapping[type[Event], Callable[[World, Any], None]] = {
    JobArrived: timers.check_arrival,
    TimerFired: timers.check_fired,
}
"""Judged when all that the event led to has been taken in."""
