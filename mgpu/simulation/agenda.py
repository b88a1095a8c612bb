"""Virtual time: what is to happen when, played in order; at one moment, in the order it was set."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Agenda:
    """A heap of actions. ``now_s`` is the time of the action being played."""

    def __init__(self, start_s: float = 0.0) -> None:
        self.now_s = start_s
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def at(self, at_s: float, action: Callable[[], None]) -> None:
        """Do something at a moment that is not over yet."""
        self._number += 1
        heapq.heappush(self._heap, (max(at_s, self.now_s), self._number, action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something so much later."""
        self.at(self.now_s + delay_s, action)

    def step(self) -> bool:
        """Play the next action; False when there is none."""
        if not self._heap:
            return False
        self.now_s, _, action = heapq.heappop(self._heap)
        action()
        return True
