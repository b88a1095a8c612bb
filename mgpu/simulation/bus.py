"""The way from disk to GPU: several loads at once, each at full speed or sharing the bandwidth.

Shared, it is processor sharing: each of n loads goes on at 1/n of the speed, so that two that begin
together take twice as long.
"""

from __future__ import annotations


class Bus:
    """What of each load is still to be done. Times are those of the simulation."""

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._left_s: dict[str, float] = {}
        self._at_s = 0.0

    def start(self, name: str, work_s: float, at_s: float) -> None:
        """Begin something that takes so long at full speed."""
        self._pass(at_s)
        self._left_s[name] = work_s

    def next_end_s(self) -> float | None:
        """When the next is through, if nothing else begins before."""
        if not self._left_s:
            return None
        return self._at_s + min(self._left_s.values()) * self._slowness

    def take(self, at_s: float) -> str:
        """Remove the one that is through at this moment; of several, the one that began first."""
        self._pass(at_s)
        name = min(self._left_s, key=lambda name: self._left_s[name])
        del self._left_s[name]
        return name

    @property
    def _slowness(self) -> int:
        return len(self._left_s) if self._shared else 1

    def _pass(self, at_s: float) -> None:
        if self._left_s:
            done_s = (at_s - self._at_s) / self._slowness
            self._left_s = {n: max(0.0, left_s - done_s) for n, left_s in self._left_s.items()}
        self._at_s = at_s
