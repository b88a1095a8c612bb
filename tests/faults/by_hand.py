"""Promise 12: what a person asked for holds until it is taken back, however often the broker ends.

It is judged by what was asked, never by what the scheduler believes of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mgpu.core.effects import Evicted, Grant, StartLoad
from tests.faults.broken import hold

if TYPE_CHECKING:
    from tests.faults.world import World


def check_begins(world: World, effect: Grant | StartLoad) -> None:
    """Nobody has asked for the GPU, and it computes or loads for others."""
    hold(not world.records.paused, f"a person has the GPU, and yet: {effect}")


def check_evicted(world: World, evicted: Evicted) -> None:
    """Nobody wants the victim to stay."""
    configured = world.state.policy.consumers[evicted.victim].pinned
    pinned = world.records.pins.get(evicted.victim, configured)
    hold(not pinned, f"{evicted.victim} is evicted, which a person pinned")
