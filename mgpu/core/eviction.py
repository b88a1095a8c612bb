"""Who leaves first when somebody has to: the order in which victims are taken.

``lru``: whoever was used longest ago. Use is the end of a finished job.

``reload-cost``: whoever is cheapest to bring back for the room it takes, unless it was used since.
This is GreedyDual-Size (P. Cao, S. Irani, "Cost-aware WWW proxy caching algorithms", USENIX
Symposium on Internet Technologies and Systems, 1997), a form of Landlord (N. Young, "On-line file
caching", SODA 1998). Each consumer has a credit: at every use it is set to its reload seconds per
GiB plus the floor, where the floor is the largest credit that anybody was evicted with. Whoever has
the smallest credit goes. Those that stay unused are overtaken by the rising floor, so that cost
never protects anybody for ever.
"""

from __future__ import annotations

from collections.abc import Callable

from mgpu.core import planning
from mgpu.core.model import Victims
from mgpu.core.state import Consumer, State


def ranked(state: State) -> list[Consumer]:
    """All consumers, the first to leave first; ties are broken by name."""
    return sorted(state.consumers.values(), key=RANKS[state.policy.victims])


def used(state: State, consumer: Consumer) -> None:
    """A consumer has just done something that makes it worth keeping: it came, or did a job."""
    size_gib = max(1, consumer.footprint_mib) / planning.MIB_PER_GIB
    consumer.credit = state.credit_floor + planning.reload_s(consumer) / size_gib


def evicted(state: State, consumer: Consumer) -> None:
    """A consumer had to leave: who stays is worth only what exceeds its credit."""
    state.credit_floor = max(state.credit_floor, consumer.credit)


def _lru(consumer: Consumer) -> tuple[float, str]:
    return (consumer.last_used_at, consumer.name)


def _reload_cost(consumer: Consumer) -> tuple[float, float, str]:
    return (consumer.credit, consumer.last_used_at, consumer.name)


RANKS: dict[Victims, Callable[[Consumer], tuple[float | str, ...]]] = {
    Victims.LRU: _lru,
    Victims.RELOAD_COST: _reload_cost,
}
