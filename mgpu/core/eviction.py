"""Who leaves first when somebody has to: the order in which victims are taken.

``lru``: whoever was used longest ago. Use is the end of a finished job.

``reload-cost``: whoever is cheapest to bring back for the room it takes, unless it was used since.
This is GreedyDual-Size (P. Cao, S. Irani, "Cost-aware WWW proxy caching algorithms", USENIX
Symposium on Internet Technologies and Systems, 1997), a form of Landlord (N. Young, "On-line file
caching", SODA 1998). Each consumer has a credit: at every use it is set to its reload seconds per
GiB plus the floor, where the floor is the largest credit that anybody was evicted with. Whoever has
the smallest credit goes. Those that stay unused are overtaken by the rising floor, so that cost
never protects anybody for ever.

Under ``planned`` these decide between equals only: who leaves is the set whose return is expected
to cost least, by ``planning.absence_cost``. Up to ``EXACT`` candidates it is found exactly, beyond
that those go first that cost least for the room they take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from mgpu.core import planning, vram
from mgpu.core.model import Order, Victims
from mgpu.core.state import Consumer, State

EXACT = 8
"""Most candidates of whom every set is weighed: 256 sets."""


def ranked(state: State, consumers: Iterable[Consumer]) -> list[Consumer]:
    """Sort consumers, the first to leave first; ties are broken by name."""
    return sorted(consumers, key=RANKS[state.policy.victims])


def choose(
    state: State,
    candidates: list[Consumer],
    at: float,
    needs: Sequence[int],
    gains: Mapping[str, Sequence[int]],
) -> list[Consumer] | None:
    """Choose victims that together gain what is needed; None when all of them do not.

    ``candidates`` are ranked, ``needs`` has an entry for each thing that is short, and ``gains``
    says how much of each a candidate gives.
    """
    if state.policy.order is not Order.PLANNED:
        return _in_turn(candidates, needs, gains)
    costs = {c.name: planning.absence_cost(c, at) for c in candidates}
    if len(candidates) > EXACT:
        by_density = sorted(
            candidates, key=lambda c: costs[c.name] / max(1, vram.returnable_mib(c))
        )
        return _in_turn(by_density, needs, gains)
    return _Cheapest(candidates, needs, gains, costs).find()


def _in_turn(
    candidates: list[Consumer], needs: Sequence[int], gains: Mapping[str, Sequence[int]]
) -> list[Consumer] | None:
    """One after the other until it is enough; then spare whom it does not take, the last first."""
    short = list(needs)
    chosen: list[Consumer] = []
    for candidate in candidates:
        if max(short) <= 0:
            break
        chosen.append(candidate)
        short = _less(short, gains[candidate.name])
    if max(short) > 0:
        return None
    for candidate in reversed(chosen.copy()):
        without = [s + gain for s, gain in zip(short, gains[candidate.name], strict=True)]
        if max(without) <= 0:
            chosen.remove(candidate)
            short = without
    return chosen


class _Cheapest:
    """The set whose absence costs least, by branch and bound; of equals, the first by rank."""

    def __init__(
        self,
        candidates: list[Consumer],
        needs: Sequence[int],
        gains: Mapping[str, Sequence[int]],
        costs: Mapping[str, float],
    ) -> None:
        self._candidates = candidates
        self._gains = [gains[c.name] for c in candidates]
        self._costs = [costs[c.name] for c in candidates]
        self._needs = list(needs)
        self._best: tuple[float, list[int]] | None = None

    def find(self) -> list[Consumer] | None:
        self._try(0, [], 0.0, self._needs)
        if self._best is None:
            return None
        return [self._candidates[position] for position in reversed(self._best[1])]

    def _try(self, position: int, chosen: list[int], cost: float, short: list[int]) -> None:
        """Complete a choice; ``chosen`` are positions, the latest first."""
        if self._best is not None and cost > self._best[0]:
            return
        if max(short) <= 0:
            self._best = min(self._best or (cost, chosen), (cost, chosen))
        elif position < len(self._candidates):
            less = _less(short, self._gains[position])
            more = cost + self._costs[position]
            self._try(position + 1, [position, *chosen], more, less)
            self._try(position + 1, chosen, cost, short)


def _less(short: Sequence[int], gain: Sequence[int]) -> list[int]:
    return [missing - part for missing, part in zip(short, gain, strict=True)]


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
